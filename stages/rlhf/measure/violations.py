"""What costs a response a fixed penalty: saying a thing over and over, and copying the question.

Both are also metrics. A penalty on a right answer teaches PPO to avoid it and a gap is exploited:
emphasis (네, 네, 네), lists, code and answers that take up the question's words are none of these.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from stages.rlhf.measure.style import speech_level

# Weight of a unit in letters (of Latin, half) -> how often in a row it makes a loop.
LOOP = ((5.0, 3), (3.0, 4), (1.0, 5), (0.5, 10), (0.0, 12))
# The same for units in which nothing but the numbers differs: sentences, and others.
COUNT, COUNT_WORDS = ((8.0, 5), (1.0, 20)), ((8.0, 8), (1.0, 20))
SAME_DIGITS = 30  # in a row: 1000000 is a number
CUT_OFF = 8.0  # weight of a unit that loops when it stands twice and is cut off in the third
LONGEST_GLUED = 20  # characters of a unit without spaces around it

LEAD = 12  # letters that may introduce a copy: 질문은 '...'
NEAR = 0.6  # share of the question that a rewording of it begins with
HALF = 0.5  # share of the question that an answer without content begins with

_ASKS = re.compile(r"무엇|무슨|뭐|뭘|누구|누가|어디|언제|어느|어떤|어떻|어때|몇|왜|얼마")
_REQUESTS = re.compile(
    r"(?:주세요|주시겠어요|주십시오|줄래요?|줘요?|줄수있나요|수있을까요|궁금합니다|궁금해요?|싶습니다|싶어요?"
    r"|바랍니다|하세요|시오|해라|하라|해봐)$"
)
_EMPTY = re.compile(  # says nothing: a copula without a noun before it, a courtesy
    r"(?:입니다|입니까|인가요|이에요|예요|이다|이야|야|네|예|음|좋은질문입니다|질문해주셔서감사합니다"
    r"|감사합니다|(?:차근차근)?(?:답해|말씀|알려|설명해?)드리겠습니다)+"
)
_INTERROGATIVE = re.compile(r"(?:까요?|[나가]요?|니|냐)$")  # never a statement
_TOPIC = re.compile(r"[은는]$")
_STOPS = ".?!…。？！\n"


def loops(response: str) -> bool:
    """It is stuck: a unit is repeated in a row, more often the shorter it is (LOOP).

    The unit is a sequence of words, without punctuation and case, and if it is a sentence, its
    numbers may count (1990년에 열렸다. 1991년에 열렸다. ...); or it is characters, of which two
    glued letters need three repeats (ㅋㅋㅋㅋㅋㅋ, but not 하하하, 1000000 or ......).
    A response that is nothing but one unit three times is a loop, too.
    """
    text = " ".join(_nfc(response).split())
    words = [letters for word in text.split() if (letters := _bare(word))]
    return _word_loop(words, cut_off=text[-1:].isalnum()) or _counting(words) or _glued(text)


def _word_loop(words: list[str], cut_off: bool) -> bool:
    for unit, start, stop in _stretches(words, len(words)):
        size, weight = len(unit), _weight(unit)
        if cut_off and stop == len(words) - 1 and words[stop - size].startswith(words[stop]):
            stop += 1  # the last word is cut off itself
        at_the_end = stop == len(words)
        if _enough((stop - start) // size, weight, LOOP):
            return True
        if at_the_end and start == 0 and stop >= 3 * size and weight:
            return True
        if cut_off and at_the_end and stop - start > 2 * size and weight >= CUT_OFF:
            return True
    return False


def _counting(words: list[str]) -> bool:
    """A sentence in which only the numbers change, or a numbered word without end."""
    if sum(any(map(str.isdigit, word)) for word in words) < COUNT[0][1]:
        return False
    masked = [re.sub(r"\d+", "0", word) for word in words]
    for unit, start, stop in _stretches(masked, len(masked)):
        sentence = any(word.endswith(("다", "요", "죠")) for word in unit)
        table = COUNT if sentence else COUNT_WORDS
        if "0" in "".join(unit) and _enough((stop - start) // len(unit), _weight(unit), table):
            return True
    return False


def _glued(text: str) -> bool:
    for unit, start, stop in _stretches(text, LONGEST_GLUED):
        repeats, weight = (stop - start) // len(unit), _weight(unit)
        if len(unit) > 1 and repeats >= 3 and all(map(_is_korean, unit)):
            return True
        if weight and _enough(repeats, weight, LOOP):
            return True
        if repeats >= SAME_DIGITS and "".join(unit).isdecimal():
            return True
    return False


def _stretches(units: Sequence[str], longest: int) -> Iterator[tuple[Sequence[str], int, int]]:
    """(unit, start, stop) of every stretch that says a unit of n items at least twice in a row.

    units[i] == units[i + n] for start <= i < stop - n.
    """
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(unit, len(numbers)) for unit in units])
    for n in range(1, min(longest, len(units) // 2) + 1):
        breaks = np.flatnonzero(codes[:-n] != codes[n:])
        edges = np.concatenate(([-1], breaks, [len(units) - n]))
        for i in np.flatnonzero(np.diff(edges) > n).tolist():
            start = int(edges[i]) + 1
            yield units[start : start + n], start, int(edges[i + 1]) + n


def _enough(repeats: int, weight: float, table: Sequence[tuple[float, int]]) -> bool:
    return any(weight >= least and repeats >= needed for least, needed in table)


def _weight(unit: Sequence[str]) -> float:
    letters = [char for char in "".join(unit) if char.isalpha() or char == "\ufffd"]
    return sum(0.5 if char.isascii() else 1.0 for char in letters)


def _is_korean(char: str) -> bool:
    return "가" <= char <= "힣" or "ㄱ" <= char <= "ㅣ" or char == "\ufffd"


class _Read(NamedTuple):
    """A text as its letters and digits, and offsets into them."""

    letters: str
    begins: list[int]  # where a copy may begin
    words: set[int]  # where a word ends
    stops: list[int]  # where a sentence or line ends
    questions: set[int]  # where one ends with a question mark


def copies(response: str, question: str, reference: str) -> bool:
    """The response gives the question back.

    It repeats the question and adds nothing (한라산의 높이는 입니다.); or it begins with it, word
    for word or reworded, as a sentence of its own. To take up its words in an answer is no copy
    (높이는? 높이는 1947m입니다.), nor is to begin with it where the reference does. Compared by
    letters and digits.
    """
    text, target = _read(response), _bare(question)
    if not target or not text.letters:
        return False
    if not text.letters.replace(target, ""):
        return text.letters != target or bool(text.questions) or not _confirmable(question)
    if _adds_nothing(text.letters, question):
        return True
    return _restates(text, question) and not _restates(_read(reference), question)


def _yes_or_no(question: str) -> bool:
    """It can be answered by its own words: 서울은 수도인가요? 서울은 수도입니다."""
    target = _bare(question)
    if _ASKS.search(target) or _REQUESTS.search(target):
        return False
    topics = any(_TOPIC.search(_bare(word)) for word in question.split()[:-1])
    return _is_sentence(question) or (topics and not _TOPIC.search(target))


def _confirmable(question: str) -> bool:
    """Without the question mark, it is an answer: 맛있어요? 맛있어요."""
    target = _bare(question)
    return "?" in question and _yes_or_no(question) and not _INTERROGATIVE.search(target)


def _is_sentence(question: str) -> bool:
    """It is no phrase that an answer can take up: 높이는? or 대한민국의 수도."""
    ends_asking = [match.end() for match in _ASKS.finditer(_bare(question))][-1:]
    return speech_level(question) is not None or ends_asking == [len(_bare(question))]


def _adds_nothing(letters: str, question: str) -> bool:
    """Half of the question or more, and else only courtesies and its own words again."""
    target = _bare(question)
    courtesy = _EMPTY.match(letters)
    if courtesy and not target.startswith(courtesy.group()):
        letters = letters[courtesy.end() :]
    shared = _shared(letters, target)
    if shared < HALF * len(target) or _yes_or_no(question):
        return False
    rest = letters[shared:]
    while rest:
        again = _shared(rest, target)
        courtesy = _EMPTY.match(rest)
        if again < HALF * len(target) and courtesy is None:
            return False
        rest = rest[courtesy.end() if courtesy else again :]
    return True


def _restates(text: _Read, question: str) -> bool:
    """It begins with the question, or a rewording, as a sentence of its own."""
    target = _bare(question)
    for begin in text.begins if _is_sentence(question) else ():
        shared = _shared(text.letters[begin:], target)
        end = begin + shared
        if shared == len(target) and end in text.words:
            return True
        stop = next((stop for stop in text.stops if stop >= end), len(text.letters))
        asks = stop in text.questions or _REQUESTS.search(text.letters[begin:stop])
        if asks and shared >= NEAR * len(target) and stop - end <= HALF * len(target):
            return True
    return False


def _read(text: str) -> _Read:
    letters = ""
    words, stops, questions = set(), set(), set()
    for char in f"{_nfc(text)}\n":
        if char.isalnum():
            letters += char.casefold()
            continue
        words.add(len(letters))
        if char in _STOPS:
            stops.add(len(letters))
            if char in "?？":
                questions.add(len(letters))
    first = min(stops)
    begins = [0, *(end for end in sorted(words) if 0 < end <= LEAD and end < len(letters))]
    begins = [b for b in begins if b < first or _EMPTY.fullmatch(letters[:b])]
    return _Read(letters, begins, words, sorted(stops), questions)


def _shared(one: str, other: str) -> int:
    """Length of the prefix that both have."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _bare(text: str) -> str:
    return "".join(char.casefold() for char in _nfc(text) if char.isalnum())
