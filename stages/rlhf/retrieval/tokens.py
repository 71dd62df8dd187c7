"""What words are to a lexical index: Korean words carry particles and endings, so blanks do not do.

`pieces` are pairs of neighbouring characters within a word; `morphemes` are the stems and nouns
that Kiwi finds (kiwipiepy). On KorQuAD each finds paragraphs that the other misses:
metrics/tables/retrieval.csv. A question is searched by its `topic`, without the words that ask.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any, Literal

Name = Literal["pieces", "morphemes"]

_WORD = re.compile(r"[가-힣ㄱ-ㅎㅏ-ㅣ]+|[a-z]+|\d+|[一-龥]+|[ぁ-ヿ]+")
# Kiwi's tags without particles (J), endings (E), suffixes (XS), copulas and marks (SF, SP, ...)
_CONTENT = re.compile(r"N[NPR]|V[VA]|M[MA]|XPN|XR|SL|SH|SN")
_NOUN = re.compile(r"NN[GP]|XPN|SL|SH")
_JOINED = re.compile(r"NN[GP]|NR|XPN|SL|SH|SN")
_BOUND = {"NNB", "XSN"}  # nouns only after another
_FUNCTION = re.compile(r"J|E|XS|VC|VX|S[FPSEO]")  # particles, endings, suffixes, copulas, marks
_ASKING = re.compile(  # content words that a question ends with: 누구인지 알려 줄 수 있나요
    r"(무엇|뭐|누구|어디|언제|몇)/(NP|MM|MA.|NR)|(알|알리|말하|설명하|가르치|주|있|궁금하)/V.*"
    r"|궁금/XR|(수|줄)/NNB"
)
_ACTS = {"말", "설명"}  # nouns that ask where 하다 follows


def pieces(texts: Sequence[str]) -> Iterator[list[str]]:
    """Pairs of neighbouring characters within a word; a word of one character is itself one."""
    for text in texts:
        words = _WORD.findall(text.lower())
        yield [word[i : i + 2] for word in words for i in range(max(1, len(word) - 1))]


def morphemes(texts: Sequence[str]) -> Iterator[list[str]]:
    """Form and part of speech (N, V, ...) of every morpheme with a meaning of its own."""
    for found in _kiwi().tokenize(texts):
        yield [f"{t.form.lower()}/{t.tag[0]}" for t in found if _CONTENT.match(t.tag)]


def terms(texts: Sequence[str]) -> Iterator[list[str]]:
    """The same, but nouns and numbers with those joined to them as one: 네덜란드어/N, 5월/N.

    So a name is one term, however Kiwi takes it apart in this sentence or that.
    """
    for text, found in zip(texts, _kiwi().tokenize(texts), strict=True):
        made: list[str] = []
        start, end = 0, -1  # of the last noun
        for token in found:
            noun = _JOINED.match(token.tag)
            if end == token.start and (noun or token.tag in _BOUND):
                end = token.end
                made[-1] = f"{text[start:end].lower()}/N"
            elif noun:
                start, end = token.start, token.end
                made.append(f"{text[start:end].lower()}/N")
            elif _CONTENT.match(token.tag):
                made.append(f"{token.form.lower()}/{token.tag[0]}")
        yield made


def nouns(text: str) -> Iterator[tuple[str, str]]:
    """Words that are a noun, or several without a blank, and what follows it: particles, marks.

    쿠알라룸푸르, 이고. Other words with a noun in them (속한, 원자) are left out.
    """
    found = iter(_kiwi().tokenize(text))
    token = next(found, None)
    for word in re.finditer(r"\S+", text):
        end, plain = word.start(), True
        while token and token.start < word.end():
            bound = token.tag in _BOUND and token.start > word.start()
            if plain and end == token.start and (bound or _NOUN.match(token.tag)):
                end = token.end
            elif not _FUNCTION.match(token.tag) or token.tag[:2] in {"XS", "VX"}:
                plain = False
            token = next(found, None)
        if plain and word.start() < end <= word.end():
            yield text[word.start() : end], text[end : word.end()]


@lru_cache(maxsize=1 << 14)
def topic(question: str) -> str:
    """The question up to where it begins to ask: 일본의 수도 of "일본의 수도가 어디인지 아시나요?".

    Otherwise texts that ask in the same words about something else are found first.
    All of the question where nothing would be left.
    """
    end, after = len(question), ""
    for token in reversed(_kiwi().tokenize(question)):
        act = token.form in _ACTS and after == "XSV"
        if not (
            act or _FUNCTION.match(token.tag) or _ASKING.fullmatch(f"{token.form}/{token.tag}")
        ):
            end = max(end, token.end)  # 썼: the verb and its tense in one syllable
            break
        end, after = token.start, token.tag
    return question[:end].strip() or question


TOKENISERS: dict[Name, Callable[[Sequence[str]], Iterator[list[str]]]] = {
    "pieces": pieces,
    "morphemes": morphemes,
}


def version_of(name: Name) -> str:
    """The tokeniser and the version of what it is made with: others may split differently."""
    return f"{name} kiwipiepy {version('kiwipiepy')}" if name == "morphemes" else name


@cache
def _kiwi() -> Any:
    """One for the process: its model takes a second to load."""
    from kiwipiepy import Kiwi  # not above: who wants pieces alone does not wait for it

    return Kiwi(num_workers=1)
