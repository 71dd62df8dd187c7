"""How Korean an answer is: speech level, script, broken characters, sentences that are cut off.

Strings in, numbers out; every text is cleaned first. Speech levels are read off sentence endings
alone, so that nothing has to be parsed: 해요체 and 하십시오체 are polite (존댓말), 해체 and 해라체
plain (반말, and the written -다); a sentence that ends in neither, such as a noun, says nothing.
"""

import re
from collections.abc import Sequence

from stages.rlhf.korean import clean, sentence_ends

STYLE_METRICS = (
    "polite_rate",
    "level_consistency",
    "non_hangul_share",
    "broken_rate",
    "truncation_rate",
)
POLITE, PLAIN = "polite", "plain"

_TAIL = re.compile(r"[^가-힣]+$")
_POLITE = re.compile(r"(?:요|죠|니다|니까|시오|소서|나이다)$")
# Plain endings that hardly end a noun; past tenses in -ㅆ어 are found by the syllable before.
_PLAIN = re.compile(
    r"(?:[가-힣][다지네까]|[이하되거]야|[같않많좋잖]아|[싶없]어|거든|구나|느냐|몰라|그래|니|해|돼)$"
)
_SYLLABLES, _FINALS, _SSANG_SIOT = 0xAC00, 28, 20  # how Unicode orders syllables: finals last


def sentences(text: str) -> list[str]:
    """The sentences of a text; what stands behind the last sentence end is one too."""
    text = clean(text)
    ends = sentence_ends(text)
    starts = [0, *ends]
    parts = [text[a:b].strip() for a, b in zip(starts, [*ends, len(text)], strict=True)]
    return [part for part in parts if part]


def speech_level(sentence: str) -> str | None:
    """POLITE, PLAIN, or None where the ending is neither."""
    stem = _TAIL.sub("", sentence)
    if _POLITE.search(stem):
        return POLITE
    return PLAIN if _PLAIN.search(stem) or _is_past(stem) else None


def _is_past(stem: str) -> bool:
    """The stem ends in -ㅆ어, as 갔어, 먹었어, 하겠어."""
    return stem[-1:] == "어" and stem[-2:-1] >= "가" and _final(stem[-2]) == _SSANG_SIOT


def _final(syllable: str) -> int:
    return (ord(syllable) - _SYLLABLES) % _FINALS


def levels(text: str) -> list[str]:
    """The speech levels of its sentences, in order; those without one left out."""
    return [level for level in map(speech_level, sentences(text)) if level is not None]


def polite(text: str) -> bool | None:
    """Whether every sentence with a speech level is polite; None where none has one."""
    found = levels(text)
    return set(found) == {POLITE} if found else None


def consistent(text: str) -> bool | None:
    """Whether its sentences keep one speech level; None where fewer than two have one."""
    found = levels(text)
    return len(set(found)) == 1 if len(found) > 1 else None


def non_hangul_share(text: str) -> float | None:
    """Share of its letters that are not Hangul: Latin, Hanja, kana; None without letters."""
    letters = [sign for sign in clean(text) if sign.isalpha()]
    if not letters:
        return None
    return sum(not _is_hangul(sign) for sign in letters) / len(letters)


def broken(text: str) -> bool:
    """It holds U+FFFD: bytes that were no character."""
    return "\ufffd" in text


def truncated(text: str) -> bool:
    """It stops in mid-sentence, whatever ended it; an empty text does."""
    text = clean(text)
    ends = sentence_ends(text)
    return not ends or ends[-1] < len(text)


def style_values(text: str) -> dict[str, float | None]:
    """A number for each of STYLE_METRICS; None where it says nothing of this text."""
    found = (
        polite(text),
        consistent(text),
        non_hangul_share(text),
        broken(text),
        truncated(text),
    )
    return dict(zip(STYLE_METRICS, found, strict=True))


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct n-grams of words over all n-grams of all texts; None where there are none.

    Li et al. 2016, arXiv 1510.03055. It falls with the amount of text: compare equal numbers.
    """
    grams = [
        tuple(words[i : i + n])
        for words in (clean(text).split() for text in texts)
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else None


def _is_hangul(sign: str) -> bool:
    return "가" <= sign <= "힣" or "\u1100" <= sign <= "\u11ff" or "\u3130" <= sign <= "\u318f"
