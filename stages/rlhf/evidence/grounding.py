"""Answers that the shown passages state, and refusals instead of all others.

A model answers from memory where the passages say nothing, and declines where they do: a small one
knows what it has read better than whether it is written there. So what it says is compared with the
passages, by the words of both. What no passage states is not given: of answers sampled with one
passage at a time, which a model reads with fewer slips, the most frequent that is stated is.

A passage states an answer where one of its clauses has the question's subject, most of what the
question is about, most of its words that other questions share (what is wanted of the subject), and
most of what the answer asserts: a true sentence about something else of the subject is no answer.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from stages.rlhf.chat import REFUSAL, cite, cited, declines, without_citations
from stages.rlhf.records import PromptRow, Response
from stages.rlhf.retrieval.passages import sentences_of
from stages.rlhf.retrieval.support import SUPPORTS, Support, Words, claim, named_in, words_of
from stages.rlhf.retrieval.tokens import topic

TRIES = 16  # answers sampled with a passage alone
LEAST = 2  # of them the same, from which on they count
ABOUT = 0.7  # of the weight of the question's words, from which on a clause is about it
_BREAK = re.compile(r",\s|(?<=[이하되])고\s")  # between clauses: 서울이고, 속하고
_ASKS = re.compile(r"\?$|(?:주세요|싶어요|궁금합니다)\.$")
_TOPIC_MARKER = re.compile(r"(?<=[가-힣A-Za-z0-9])[은는]\s")
_HOW_MANY = "몇/M"


def clauses(text: str) -> Iterator[str]:
    """The parts of each sentence that a comma or -고 divides; an answer's follow their question."""
    before = ""
    for sentence in sentences_of(text):
        for part in _BREAK.split(sentence):
            yield f"{before} {part}".lstrip()
        before = sentence if _ASKS.search(sentence) else ""


def source(support: Support, question: str, passages: Sequence[str], answer: str) -> int | None:
    """The number of the passage that states the answer, the cited one first; None: no passage."""
    if declines(answer):
        return None
    words, own = asserted(question, without_citations(answer)), cited(answer)
    for number in sorted(range(1, 1 + len(passages)), key=lambda number: number != own):
        parts = _about(support, question, passages[number - 1])
        if any(support.has(part, words) for part in parts):
            return number
    return None


def _about(support: Support, question: str, passage: str) -> Iterator[str]:
    """The passage's clauses that have the subject and what is wanted of it."""
    words = words_of(topic(question)) - {_HOW_MANY}
    known = [word for word in words if word in support.frequencies]
    wanted = [word for word in known if word in support.common]
    for clause in clauses(passage):
        has = words_of(clause), clause.lower()
        there = {word for word in known if word in has[0] or _form(word) in has[1]}
        if (
            any(named_in(clause, word) for word in support.rarest(question)[:1])
            and support.share(there, known) >= ABOUT
            and support.share(there.intersection(wanted), wanted) >= SUPPORTS
        ):
            yield clause


@lru_cache(maxsize=1 << 16)
def asserted(question: str, answer: str) -> Words:
    """Words that the first sentence which adds any has after its topic: 네, of 다리 수는 네 개."""
    for sentence in sentences_of(answer):
        if whole := claim(question, sentence):
            return claim(question, _TOPIC_MARKER.split(sentence, maxsplit=1)[-1]) or whole
    return frozenset()


def _form(word: str) -> str:
    return word.rpartition("/")[0]


def stated(
    support: Support, question: str, passages: Sequence[str], answer: str, others: Iterable[str]
) -> str:
    """The answer if a passage states it, else the most frequent other one that is; or a refusal.

    With the passage's number. Where the answer is stated, the others are not made.
    """
    if number := source(support, question, passages, answer):
        return cite(without_citations(answer), number)
    found = Counter(map(without_citations, others))
    for other, times in found.most_common():
        if times >= LEAST and (number := source(support, question, passages, other)):
            return cite(other, number)
    return REFUSAL


def about(support: Support, question: str, passages: Sequence[str]) -> list[str]:
    """Those of the passages that are about the question; no other states an answer."""
    return [passage for passage in passages if any(_about(support, question, passage))]


def unstated(
    responses: Sequence[Response], rows: Sequence[PromptRow], support: Support
) -> list[int]:
    """Indices of responses that no passage of their rows states; refusals are among them."""
    return [
        index
        for index, (one, row) in enumerate(zip(responses, rows, strict=True))
        if source(support, row.question, row.passages or (), one.text) is None
    ]


def checked(
    responses: Sequence[Response],
    others: Mapping[int, Sequence[Response]],
    rows: Sequence[PromptRow],
    support: Support,
) -> list[Response]:
    """Each row's response as `stated` has it, `others` of those that no passage states by index.

    A refusal or another answer has the length of the first response.
    """
    found = []
    for index, (one, row) in enumerate(zip(responses, rows, strict=True)):
        tries = (other.text for other in others.get(index, ()))
        text = stated(support, row.question, row.passages or (), one.text, tries)
        found.append(Response(text, one.tokens, one.ended))
    return found
