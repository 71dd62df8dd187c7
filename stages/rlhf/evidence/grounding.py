"""Answers that the shown passages state, and refusals instead of all others.

A model answers from memory where the passages say nothing, and declines where they do: a small one
knows what it has read better than whether it is written there. So what it says is compared with the
passages, by the words of both, and of several answers the first that one of them states is given.

A passage states an answer where one of its clauses has the question's subject, most of what the
question is about, and most of the answer's claim: a true sentence about something else of the same
subject is no answer.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from stages.rlhf.chat import REFUSAL, cite, cited, declines, without_citations
from stages.rlhf.records import PromptRow, Response
from stages.rlhf.retrieval.passages import sentences_of
from stages.rlhf.retrieval.support import SUPPORTS, Support, words_of
from stages.rlhf.retrieval.tokens import topic

_BREAK = re.compile(r",\s|(?<=[이하되])고\s")  # between clauses: 서울이고, 속하고


def clauses(text: str) -> Iterator[str]:
    """The parts of each sentence that a comma or -고 divides."""
    for sentence in sentences_of(text):
        yield from _BREAK.split(sentence)


def source(support: Support, question: str, passages: Sequence[str], answer: str) -> int | None:
    """The number of the passage that states the answer, the cited one first; None: no passage."""
    if declines(answer):
        return None
    statement, own = without_citations(answer), cited(answer)
    for number in sorted(range(1, 1 + len(passages)), key=lambda number: number != own):
        parts = clauses(passages[number - 1])
        if any(_states(support, question, part, statement) for part in parts):
            return number
    return None


def _states(support: Support, question: str, clause: str, answer: str) -> bool:
    """Whether the clause has the subject, the claim, and most of what the question is about."""
    wanted, phrase = support.claim(question, answer), None
    if wanted and wanted <= support.common:  # 노르웨이, of 작곡가의 나라는 노르웨이입니다
        phrase = _form(max(wanted, key=lambda word: (support.weight(word), word)))
    if support.stance(clause, question, answer, phrase) != "supports":
        return False
    about = [word for word in words_of(topic(question)) if word in support.frequencies]
    there = (word for word in about if word in words_of(clause) or _form(word) in clause.lower())
    return sum(map(support.weight, there)) >= SUPPORTS * sum(map(support.weight, about))


def _form(word: str) -> str:
    return word.rpartition("/")[0]


def stated(support: Support, question: str, passages: Sequence[str], answers: Iterable[str]) -> str:
    """The first answer that a passage states, with that passage cited; a refusal if there is none.

    Of later answers none is taken from the iterable.
    """
    for answer in answers:
        if (number := source(support, question, passages, answer)) is not None:
            return cite(without_citations(answer), number)
    return REFUSAL


def one_by_one(row: PromptRow) -> list[PromptRow]:
    """The row with each of its passages alone: of one, a model picks the wrong sentence less."""
    return [row.model_copy(update={"passages": (passage,)}) for passage in row.passages or ()]


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
    again: Mapping[int, Sequence[Response]],
    rows: Sequence[PromptRow],
    support: Support,
) -> list[Response]:
    """Of each row's response, and the others of `again`, the first that a passage states.

    Where no passage states any, a refusal, with the length of the first response.
    """
    found = []
    for index, (one, row) in enumerate(zip(responses, rows, strict=True)):
        texts = [one.text, *(other.text for other in again.get(index, ()))]
        text = stated(support, row.question, row.passages or (), texts)
        found.append(Response(text, one.tokens, one.ended))
    return found
