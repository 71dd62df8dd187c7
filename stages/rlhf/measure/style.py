"""Korean style of a response: speech level, script, broken characters, truncated sentences.

Strings in, numbers out; every text is cleaned first. Speech levels are recognised by sentence
endings, without a parser: 해요체 and 하십시오체 are polite (존댓말), 해체 and 해라체 plain (반말,
and the written -다); a sentence with any other ending, such as a noun, has no level.
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
# Plain endings that rarely end a noun; past tense -ㅆ어 is recognised by the preceding syllable.
_PLAIN = re.compile(
    r"(?:[가-힣][다지네까]|[이하되거]야|[같않많좋잖]아|[싶없]어|거든|구나|느냐|몰라|그래|니|해|돼)$"
)
_SYLLABLES, _FINALS, _SSANG_SIOT = 0xAC00, 28, 20  # Unicode's syllable order: finals vary fastest


def sentences(text: str) -> list[str]:
    """The sentences of a text, including an unfinished last one."""
    text = clean(text)
    ends = sentence_ends(text)
    starts = [0, *ends]
    parts = [text[a:b].strip() for a, b in zip(starts, [*ends, len(text)], strict=True)]
    return [part for part in parts if part]


def speech_level(sentence: str) -> str | None:
    """POLITE, PLAIN, or None if the ending is neither."""
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
    """The speech levels of its sentences in order, without those that have none."""
    return [level for level in map(speech_level, sentences(text)) if level is not None]


def polite(text: str) -> bool | None:
    """Whether every sentence with a speech level is polite; None if no sentence has one."""
    found = levels(text)
    return set(found) == {POLITE} if found else None


def consistent(text: str) -> bool | None:
    """Whether its sentences share one speech level; None if fewer than two have one."""
    found = levels(text)
    return len(set(found)) == 1 if len(found) > 1 else None


def non_hangul_share(text: str) -> float | None:
    """Share of its letters that are not Hangul: Latin, Hanja, kana; None without letters."""
    letters = [char for char in clean(text) if char.isalpha()]
    if not letters:
        return None
    return sum(not _is_hangul(char) for char in letters) / len(letters)


def broken(text: str) -> bool:
    """Whether it contains U+FFFD: bytes that are not valid UTF-8."""
    return "\ufffd" in text


def truncated(text: str) -> bool:
    """Whether it stops in mid-sentence, with or without EOS; true of an empty text."""
    text = clean(text)
    ends = sentence_ends(text)
    return not ends or ends[-1] < len(text)


def style_values(text: str) -> dict[str, float | None]:
    """A value for each of STYLE_METRICS; None where undefined."""
    found = (
        polite(text),
        consistent(text),
        non_hangul_share(text),
        broken(text),
        truncated(text),
    )
    return dict(zip(STYLE_METRICS, found, strict=True))


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Share of distinct word n-grams among all n-grams of the texts; None without n-grams.

    Li et al. 2016, arXiv 1510.03055. It decreases with the amount of text: compare equal amounts.
    """
    grams = [
        tuple(words[i : i + n])
        for words in (clean(text).split() for text in texts)
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else None


def _is_hangul(char: str) -> bool:
    return "가" <= char <= "힣" or "\u1100" <= char <= "\u11ff" or "\u3130" <= char <= "\u318f"
