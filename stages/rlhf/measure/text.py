"""What can be said of an answer from its text alone. Strings in, numbers out.

Every text is folded first: NFC, whitespace runs to one space, outer whitespace off. Each function
judges one answer, and every metric is a mean over answers, so that it can be bootstrapped.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import CHRF

from stages.rlhf.model.generation import Answer
from stages.rlhf.records import SftRow

MAX_UNIT = 20  # characters of a loop's unit inside a text; longer loops are found by words
ECHO = 0.8  # share of a question's letters from which an answer's start is its echo
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

Values = NDArray[np.float64]  # (N,), one per answer

# What may not stand before, and behind, a phrase that begins, or ends, with such a character.
_EDGES = {
    "digit": (r"(?<!\d)(?<!\d[.,])", r"(?!\d)(?![.,]\d)"),
    "latin": (r"(?<![A-Za-z])", r"(?![A-Za-z])"),
    "other": ("", ""),
}

_CHRF = CHRF(char_order=6, word_order=0, beta=2)


def fold(text: str) -> str:
    """NFC, whitespace folded."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def chrf(answer: str, reference: str) -> float:
    """Sentence chrF2 of sacrebleu in [0, 100]: character 1- to 6-grams, beta 2, no word n-grams.

    The metric over a test set is the mean of these, not sacrebleu's corpus score, which pools
    n-gram counts over all sentences. Popović 2015.
    """
    return float(_CHRF.sentence_score(fold(answer), [fold(reference)]).score)


def exact(answer: str, reference: str) -> bool:
    """Equal after folding."""
    return fold(answer) == fold(reference)


def holds(answer: str, phrase: str) -> bool:
    """The phrase stands in the answer, and not inside a longer number or Latin word.

    3년 is not in 13년, W is not in Wb; Hangul may go on before and behind, as particles do.
    """
    return _find(answer, phrase, "")


def names(answer: str, phrase: str) -> bool:
    """The phrase begins a word of the answer: 원입니다 names 원, 병원 only holds it."""
    return _find(answer, phrase, r"(?<!\w)")


def commits_wrongly(answer: str, phrase: str, rivals: Collection[str]) -> bool | None:
    """True: it names a rival value and does not hold the right one; False: it does; None: neither.

    An answer with both counts as right: a rival may stand in its second sentence.
    """
    if holds(answer, phrase):
        return False
    return True if any(names(answer, rival) for rival in rivals) else None


def loops(answer: str) -> bool:
    """Some unit stands three times or more in a row.

    The unit is a run of words of any length, punctuation and letter case aside; or a run of 2 to
    MAX_UNIT characters that holds a letter or a broken one (U+FFFD), which finds loops without
    spaces (ㅋㅋㅋㅋㅋㅋ, but not 하하하, 1000000 or ......).
    """
    text = fold(answer)
    words = [word for word in map(_bare, text.split(" ")) if word]
    return _repeats(words, 1, len(words), bool) or _repeats(text, 2, MAX_UNIT, _has_letter)


def copies(answer: str, question: str, reference: str) -> bool:
    """The answer gives the question back, where the reference does not.

    Compared by letters and digits alone. It gives the question back if it holds all of it, or if
    the two share a beginning of at least ECHO of the question's length. The reference excuses an
    answer to an elliptic question (한라산의 높이는? 한라산의 높이는 1947m입니다.), but never an
    answer that is nothing but the question, once or in a row.
    """
    said, asked = _bare(answer), _bare(question)
    if not asked or not said:
        return False
    if not said.replace(asked, ""):
        return True
    return _echoes(said, asked) and not _echoes(_bare(reference), asked)


def length(answer: str) -> int:
    """Characters of the folded answer, spaces included: the same for every tokenizer."""
    return len(fold(answer))


def rival_values(rows: Sequence[SftRow]) -> list[set[str]]:
    """Per row: the values that would be wrong there.

    They are what other rows of the same category must contain, less what the row's own question or
    reference holds: that may stand in a right answer. Values of no other row are not known here.
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
            if not holds(f"{row.question} / {row.answer}", value)
        }
        for row in rows
    ]


def answer_values(answers: Sequence[Answer], rows: Sequence[SftRow]) -> dict[str, Values]:
    """(N,) numbers per metric, NaN where it says nothing of that answer.

    chrf, exact, contains (NaN: the row has no phrase), wrong_fact_rate (NaN: no phrase, or the
    answer commits to no value), eos_rate, repetition, copy_rate, length.
    """
    columns: dict[str, list[float | None]] = {name: [] for name in TEXT_METRICS}
    for answer, row, rivals in zip(answers, rows, rival_values(rows), strict=True):
        phrase = row.must_contain
        found = {
            "chrf": chrf(answer.text, row.answer),
            "exact": exact(answer.text, row.answer),
            "contains": holds(answer.text, phrase) if phrase else None,
            "wrong_fact_rate": commits_wrongly(answer.text, phrase, rivals) if phrase else None,
            "eos_rate": answer.ended,
            "repetition": loops(answer.text),
            "copy_rate": copies(answer.text, row.question, row.answer),
            "length": length(answer.text),
        }
        for name, value in found.items():
            columns[name].append(value)
    return {name: np.array(column, dtype=np.float64) for name, column in columns.items()}


def _repeats(
    units: Sequence[str], shortest: int, longest: int, counts: Callable[[str], bool]
) -> bool:
    # Three n-grams in a row: units[i] == units[i + n] at 2n places running.
    for n in range(shortest, min(longest, len(units) // 3) + 1):
        run = 0
        for i in range(len(units) - n):
            run = run + 1 if units[i] == units[i + n] else 0
            if run >= 2 * n and counts("".join(units[i : i + n])):
                return True
    return False


def _has_letter(text: str) -> bool:
    return any(sign.isalpha() or sign == "\ufffd" for sign in text)


def _find(answer: str, phrase: str, before: str) -> bool:
    text, phrase = fold(answer), fold(phrase)
    if not phrase or phrase not in text:
        return False
    left, right = _EDGES[_kind(phrase[0])][0], _EDGES[_kind(phrase[-1])][1]
    return re.search(before + left + re.escape(phrase) + right, text) is not None


def _kind(sign: str) -> str:
    if sign.isdigit():
        return "digit"
    return "latin" if sign.isascii() and sign.isalpha() else "other"


def _bare(text: str) -> str:
    return "".join(c for c in fold(text).casefold() if c.isalnum())


def _echoes(said: str, asked: str) -> bool:
    if asked in said:
        return True
    pairs = zip(said, asked, strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return shared >= ECHO * len(asked)
