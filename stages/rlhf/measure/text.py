"""Text metrics of responses: strings in, numbers out.

Every text is folded first: NFC, whitespace collapsed and stripped. Each function scores one
response, and every metric is a mean over responses, so that it can be bootstrapped.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import CHRF

from stages.rlhf.measure.violations import copies, loops
from stages.rlhf.records import Response, SftRow

TEXT_METRICS = (
    "chrf",
    "chrf_plus_plus",
    "exact",
    "contains",
    "wrong_fact_rate",
    "eos_rate",
    "repetition",
    "copy_rate",
    "length",
)

Values = NDArray[np.float64]  # (N,), one per response

# Boundary required before (after) a phrase that begins (ends) with such a character: 3년 is not in
# 13년, 5도 not in -5도, 10m not in 10mm, 10m² or 10m/s.
_EDGES = {
    "digit": (r"(?<!\d)(?<!\d[.,])(?<!\s[-−])(?<!^[-−])", r"(?!\d)(?![.,]\d)"),
    "latin": (r"(?<![A-Za-z])", r"(?![A-Za-z²³]|/[^\W\d])"),
    "other": ("", ""),
}
_WIDE = {ord("０") + i: chr(ord("0") + i) for i in range(10)} | {ord("％"): "%"}
_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)")  # 1,947, but not 1,2 or 1,94
_UNIT_APART = re.compile(r"(?<=\d) (?=[^\W\d_]|[%°℃℉])")  # 1947 m

_CHRF = CHRF(char_order=6, word_order=0, beta=2)
_CHRF_PLUS_PLUS = CHRF(char_order=6, word_order=2, beta=2)


def fold(text: str) -> str:
    """NFC, whitespace collapsed and stripped."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def chrf(response: str, reference: str) -> float:
    """Sentence chrF2 of sacrebleu in [0, 100]: character 1- to 6-grams, beta 2, no word n-grams.

    The metric of a test set is the mean of these, not sacrebleu's corpus score, which pools
    n-gram counts over all sentences. Popović 2015.
    """
    return float(_CHRF.sentence_score(fold(response), [fold(reference)]).score)


def chrf_plus_plus(response: str, reference: str) -> float:
    """`chrf` with word 1- and 2-grams next to the characters': sees spacing, which chrF ignores.

    Popović 2017. Words are split at whitespace, and one mark at either end is a word.
    """
    return float(_CHRF_PLUS_PLUS.sentence_score(fold(response), [fold(reference)]).score)


def exact(response: str, reference: str) -> bool:
    """Equal after folding."""
    return fold(response) == fold(reference)


def contains(response: str, phrase: str) -> bool:
    """The phrase occurs in the response, and not inside a longer number or Latin word.

    3년 is not in 13년, W is not in Wb; Hangul may precede and follow it, as particles do. Numbers
    are equal as 1947m, 1,947m, １９４７m and 1947 m; a number in words or in another unit is not.
    """
    return _find(response, phrase, "")


def names(response: str, phrase: str) -> bool:
    """The phrase begins a word of the response: 원입니다 names 원, 병원 only contains it."""
    return _find(response, phrase, r"(?<!\w)")


def states_wrong_fact(response: str, phrase: str, rivals: Collection[str]) -> bool | None:
    """False if it contains the correct value; True if it names a rival instead; else None.

    A response with both counts as correct: a rival may appear in its second sentence.
    """
    if contains(response, phrase):
        return False
    return True if any(names(response, rival) for rival in rivals) else None


def length(response: str) -> int:
    """Characters of the folded text, spaces included: independent of the tokenizer."""
    return len(fold(response))


def rival_values(rows: Sequence[SftRow]) -> list[set[str]]:
    """Per row, the values that would be wrong: what other rows of its category must contain.

    Values in the row's own question or reference are excluded, because a correct response may
    contain them. Values that no other row has are unknown here.
    """
    values: dict[str | None, set[str]] = {}
    for row in rows:
        group = values.setdefault(row.category, set())
        if row.must_contain:
            group.add(_plain_numbers(row.must_contain))
    return [
        {
            value
            for value in values[row.category]
            if not contains(f"{row.question} / {row.answer}", value)
        }
        for row in rows
    ]


def text_values(responses: Sequence[Response], rows: Sequence[SftRow]) -> dict[str, Values]:
    """(N,) per metric, NaN where undefined for that response.

    TEXT_METRICS; contains is NaN where the row has no phrase, wrong_fact_rate also where the
    response states no value.
    """
    columns: dict[str, list[float | None]] = {name: [] for name in TEXT_METRICS}
    for response, row, rivals in zip(responses, rows, rival_values(rows), strict=True):
        text, phrase = response.text, row.must_contain
        found = {
            "chrf": chrf(text, row.answer),
            "chrf_plus_plus": chrf_plus_plus(text, row.answer),
            "exact": exact(text, row.answer),
            "contains": contains(text, phrase) if phrase else None,
            "wrong_fact_rate": states_wrong_fact(text, phrase, rivals) if phrase else None,
            "eos_rate": response.ended,
            "repetition": loops(text),
            "copy_rate": copies(text, row.question, row.answer),
            "length": length(text),
        }
        for name, value in found.items():
            columns[name].append(value)
    return {name: np.array(column, dtype=np.float64) for name, column in columns.items()}


def _plain_numbers(text: str) -> str:
    """Folded; digits of normal width, without commas in groups or a blank before their unit."""
    text = fold(text).translate(_WIDE)
    text = _GROUPS.sub(lambda match: match.group().replace(",", ""), text)
    return _UNIT_APART.sub("", text)


def _find(response: str, phrase: str, before: str) -> bool:
    read = _plain_numbers if any(map(str.isdigit, phrase)) else fold
    text, phrase = read(response), read(phrase)
    if not phrase or phrase not in text:
        return False
    left, right = _EDGES[_kind(phrase[0])][0], _EDGES[_kind(phrase[-1])][1]
    return re.search(before + left + re.escape(phrase) + right, text) is not None


def _kind(char: str) -> str:
    if char.isdigit():
        return "digit"
    return "latin" if char.isascii() and char.isalpha() else "other"
