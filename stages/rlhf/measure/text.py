"""Text metrics of responses: strings in, numbers out.

Every text is folded first: NFC, whitespace collapsed and stripped. Each function scores one
response, and every metric is a mean over responses, so that it can be bootstrapped.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import CHRF

from stages.rlhf.records import Response, SftRow

MAX_UNIT = 20  # characters of a loop's unit; longer units are found by words
ECHO = 0.8  # a response that starts with this share of the question's letters echoes it
TEXT_METRICS = (
    "chrf",
    "exact",
    "contains",
    "wrong_fact_rate",
    "eos_rate",
    "repetition",
    "copy_rate",
    "length",
)

Values = NDArray[np.float64]  # (N,), one per response

# Boundary required before (after) a phrase that begins (ends) with such a character.
_EDGES = {
    "digit": (r"(?<!\d)(?<!\d[.,])", r"(?!\d)(?![.,]\d)"),
    "latin": (r"(?<![A-Za-z])", r"(?![A-Za-z])"),
    "other": ("", ""),
}

_CHRF = CHRF(char_order=6, word_order=0, beta=2)


def fold(text: str) -> str:
    """NFC, whitespace collapsed and stripped."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def chrf(response: str, reference: str) -> float:
    """Sentence chrF2 of sacrebleu in [0, 100]: character 1- to 6-grams, beta 2, no word n-grams.

    The metric of a test set is the mean of these, not sacrebleu's corpus score, which pools
    n-gram counts over all sentences. Popović 2015.
    """
    return float(_CHRF.sentence_score(fold(response), [fold(reference)]).score)


def exact(response: str, reference: str) -> bool:
    """Equal after folding."""
    return fold(response) == fold(reference)


def contains(response: str, phrase: str) -> bool:
    """The phrase occurs in the response, and not inside a longer number or Latin word.

    3년 is not in 13년, W is not in Wb; Hangul may precede and follow it, as particles do.
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


def loops(response: str) -> bool:
    """Some unit repeats three or more times in a row.

    The unit is a sequence of words of any length, ignoring punctuation and case; or of 2 to
    MAX_UNIT characters, at least one a letter or broken (U+FFFD), which finds loops without spaces
    (ㅋㅋㅋㅋㅋㅋ, but not 하하하, 1000000 or ......).
    """
    text = fold(response)
    words = [word for word in map(_bare, text.split(" ")) if word]
    return _repeats(words, 1, len(words), bool) or _repeats(text, 2, MAX_UNIT, _has_letter)


def copies(response: str, question: str, reference: str) -> bool:
    """The response copies the question, and the reference does not.

    Compared by letters and digits only. It copies the question if it contains all of it, or if the
    two share a prefix of at least ECHO of the question's length. The reference excuses a response
    to an elliptic question (한라산의 높이는? 한라산의 높이는 1947m입니다.), but never one that is
    just the question, once or repeated.
    """
    text, question = _bare(response), _bare(question)
    if not question or not text:
        return False
    if not text.replace(question, ""):
        return True
    return _echoes(text, question) and not _echoes(_bare(reference), question)


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
            group.add(fold(row.must_contain))
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

    chrf, exact, contains (NaN: the row has no phrase), wrong_fact_rate (NaN: no phrase, or the
    response states no value), eos_rate, repetition, copy_rate, length.
    """
    columns: dict[str, list[float | None]] = {name: [] for name in TEXT_METRICS}
    for response, row, rivals in zip(responses, rows, rival_values(rows), strict=True):
        text, phrase = response.text, row.must_contain
        found = {
            "chrf": chrf(text, row.answer),
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


def _repeats(
    units: Sequence[str], shortest: int, longest: int, counts: Callable[[str], bool]
) -> bool:
    # Three equal n-grams in a row: units[i] == units[i + n] for 2n consecutive i.
    for n in range(shortest, min(longest, len(units) // 3) + 1):
        run = 0
        for i in range(len(units) - n):
            run = run + 1 if units[i] == units[i + n] else 0
            if run >= 2 * n and counts("".join(units[i : i + n])):
                return True
    return False


def _has_letter(text: str) -> bool:
    return any(char.isalpha() or char == "\ufffd" for char in text)


def _find(response: str, phrase: str, before: str) -> bool:
    text, phrase = fold(response), fold(phrase)
    if not phrase or phrase not in text:
        return False
    left, right = _EDGES[_kind(phrase[0])][0], _EDGES[_kind(phrase[-1])][1]
    return re.search(before + left + re.escape(phrase) + right, text) is not None


def _kind(char: str) -> str:
    if char.isdigit():
        return "digit"
    return "latin" if char.isascii() and char.isalpha() else "other"


def _bare(text: str) -> str:
    return "".join(c for c in fold(text).casefold() if c.isalnum())


def _echoes(text: str, question: str) -> bool:
    if question in text:
        return True
    pairs = zip(text, question, strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return shared >= ECHO * len(question)
