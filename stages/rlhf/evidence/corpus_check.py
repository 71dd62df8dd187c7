"""Does a corpus say so? An answer's sentences, compared with the sentences that were read.

A sentence is supported where the corpus has it, formal or plain (입니다, 이다), and contradicted
where the corpus has only one that differs in one word: of the same subject, which comes first,
something else is stated. Of all other sentences nothing is known, nor of a supported one whose
subject the question does not name: it may be true, and does not answer.
The check reads the corpus alone, no question's answer; it knows no paraphrase, so that free text
is mostly unknown to it.
"""

import re
from collections.abc import Iterable
from itertools import pairwise

from stages.rlhf.korean import sentence_ends

# 입니다, 이다; 합니다 and 한다 lose a final consonant, too
_ENDING = re.compile(r"(?<=.)(?:입니다|이다|습니다|는다|니다|다)$")
_FINALS = {"니다": 17, "다": 4}  # ㅂ and ㄴ, as numbers of a syllable's final consonant
_MARKS = ".!?…,;:'\"()[]“”‘’"
LONGEST = 12  # words of a sentence that is looked up; longer ones are unknown
SHORTEST = 2
UNKNOWN = -0.5  # of an answer's sentence: were it 0, saying nothing would be safer than answering
PARTICLE = 2  # characters that a subject may end with: 에서

Words = tuple[str, ...]


def sentences(text: str) -> list[str]:
    """The sentences of a text, blanks around them cut off; what follows the last end is one."""
    ends = [0, *sentence_ends(text), len(text)]
    found = (text[start:end].strip() for start, end in pairwise(ends))
    return [sentence for sentence in found if sentence]


def words_of(sentence: str) -> Words:
    """Its words without marks around them, the last as a stem: 합니다 and 한다 are 하.

    None of a question, which states nothing.
    """
    if sentence.endswith("?"):
        return ()
    words = [word for word in (part.strip(_MARKS) for part in sentence.split()) if word]
    return (*words[:-1], stem(words[-1])) if words else ()


def stem(word: str) -> str:
    """A predicate without the ending that makes it formal or plain: 둡니다 and 둔다 are 두."""
    found = _ENDING.search(word)
    if not found:
        return word
    word, final = word[: found.start()], _FINALS.get(found[0])
    code = ord(word[-1]) - ord("가")
    if final and 0 <= code < 11172 and code % 28 == final:
        return word[:-1] + chr(ord(word[-1]) - final)
    return word


class CorpusCheck:
    """Looks sentences up in a corpus. Raises ValueError where it has none to look up."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._known: set[Words] = set()
        for text in texts:
            for sentence in sentences(text):
                words = words_of(sentence)
                if SHORTEST <= len(words) <= LONGEST:
                    self._known.add(words)
        if not self._known:
            raise ValueError(
                f"the corpus has no sentence of {SHORTEST} to {LONGEST} words to check answers by"
            )
        self._frames = {frame for words in self._known for frame in _frames(words)}

    def of_sentence(self, sentence: str, question: str) -> int:
        """1 supported, -1 contradicted, 0 unknown."""
        words = words_of(sentence)
        if words in self._known:
            return int(names(question, words[0]))
        return -1 if any(frame in self._frames for frame in _frames(words)) else 0

    def __call__(self, question: str, answer: str) -> float:
        """The mean over the answer's sentences, in [-1, 1]; UNKNOWN for an answer without any."""
        found = [self.of_sentence(sentence, question) or UNKNOWN for sentence in sentences(answer)]
        return sum(found) / len(found) if found else UNKNOWN


def names(question: str, subject: str) -> bool:
    """Whether a word of the question starts as the subject does, particles aside: 눈의, 눈이."""
    start = subject[: max(1, len(subject) - PARTICLE)]
    return any(word.strip(_MARKS).startswith(start) for word in question.split())


def _frames(words: Words) -> Iterable[tuple[int, Words]]:
    """The words with one of them left open, but for the first; with that one's index."""
    if not SHORTEST <= len(words) <= LONGEST:
        return
    for index in range(1, len(words)):
        yield index, (*words[:index], *words[index + 1 :])
