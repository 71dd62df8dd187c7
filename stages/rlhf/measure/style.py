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
# Endings are matched on spelled syllables (합니다 is 하ㅂ니다): a final consonant tells the verb
# 들어 (드ㄹ어) from the noun 상어 (사ㅇ어). Words that end in the same letters are named and left.
_POLITE = re.compile(
    r"(?:(?<!피ㄹ|주ㅇ)(?<![수소])요|죠|ㅂ니다|ㅂ니까|ㅂ시다|시오|소서)$"  # but 필요, 중요, 수요
)
_STEM = "ㄲㄵㄶㄷㄹㄺㄻㄼㄾㄿㅀㅂㅄㅅㅆㅈㅊㅌㅍㅎ"  # finals of verbs, of few nouns in -어 or -아
_PLAIN = re.compile(
    "(?:"
    # declarative, interrogative; not 까지, 강아지, 아버지, 이미지, 어머니, 언니, 케냐
    r"[가-힣ㄱ-ㅎ][다네]|(?<![까아버미])지|ㄹ까|(?<!머)(?<!어ㄴ)니|(?<!케)냐|[ㅄㅆ]나"
    r"|(?:느|더|으|이|니|하|거|우|르|쁘|러|떠)ㄴ가"
    # -어/-아 after a consonant; not 술어, 발아
    rf"|[{_STEM}](?<!수ㄹ)어|[{_STEM}](?<!바ㄹ)아"
    r"|[머주써이찌시]ㄱ어|[노마자바소]ㄱ아|[너수시]ㅁ어|[가나다사차]ㅁ아"
    # contracted with the stem: 고마워, 기뻐, 마셔, 보여, 걸려; not 파워, 타워, 샤워
    r"|[되뛰쉬뀌]어|(?<![라샤타파])워|[봐놔줘둬춰꿔써떠]|[나어아져라려]와|[기예이]뻐|스ㄹ퍼|[나바]빠|[고아]파"
    r"|[겨껴쳐져켜셔]|[보쓰ㄱㄹㅌㅍㅎ]여|[거그기내느다도버여오흐ㄹ]려|(?<!오ㄹ)(?<![새피])해|돼|모ㄹ라|그래|어때"
    # copula -야; not -어야, 분야, 전야, 심야, 평야, 시야
    r"|(?<!부ㄴ|저ㄴ|시ㅁ|펴ㅇ)(?<![써서시아어여와워져쳐해])야"
    # reported, remembered, exclaimed: 간대, 좋더라고, 맞거든, 있군
    r"|[ㅄㅆㅎㄶ]대|[되오우하]ㄴ대|더라[고구]?|거드ㄴ|구나|구마ㄴ|(?:느ㄴ|더|[ㅄㅆ])구ㄴ"
    # imperative, hortative, promise: 바꿔라, 가자, 할게
    r"|[꿔려봐아어워져줘쳐하해]라|마ㄹ라|(?:[되하]|[드노마]ㄹ|머ㄱ|[아어해]보|[러아어] ?가)자"
    r"|[가되보오으주하]ㄹ게"
    ")$"
)
_SYLLABLES, _FINALS = 0xAC00, 28  # Unicode's syllable order: finals vary fastest
_JAMO = "\0ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"


def sentences(text: str) -> list[str]:
    """The sentences of a text, including an unfinished last one."""
    text = clean(text)
    ends = sentence_ends(text)
    starts = [0, *ends]
    parts = [text[a:b].strip() for a, b in zip(starts, [*ends, len(text)], strict=True)]
    return [part for part in parts if part]


def speech_level(sentence: str) -> str | None:
    """POLITE, PLAIN, or None if the ending is neither."""
    stem = _spelled(_TAIL.sub("", sentence)[-5:])
    if _POLITE.search(stem):
        return POLITE
    return PLAIN if _PLAIN.search(stem) else None


def _spelled(stem: str) -> str:
    """Each final consonant as a letter of its own: 합니다 is 하ㅂ니다."""
    found = ""
    for char in stem:
        index = ord(char) - _SYLLABLES
        final = index % _FINALS if "가" <= char <= "힣" else 0
        found += chr(ord(char) - final) + _JAMO[final] if final else char
    return found


def levels(text: str) -> list[str]:
    """The speech levels of its sentences in order, without those that have none, as code has."""
    spoken = [sentence for sentence in sentences(text) if "```" not in sentence]
    return [level for level in map(speech_level, spoken) if level is not None]


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
