"""Answers that the shown passages state, and refusals instead of all others.

A model answers from memory where the passages say nothing, and declines where they do: a small one
knows what it has read better than whether it is written there. So what it says is compared with the
passages, by the words of both, and of several answers the first that one of them states is given.
"""

from collections.abc import Iterable, Mapping, Sequence

from stages.rlhf.chat import REFUSAL, cite, cited, declines, without_citations
from stages.rlhf.records import PromptRow, Response
from stages.rlhf.retrieval.support import Support


def source(support: Support, question: str, passages: Sequence[str], answer: str) -> int | None:
    """The number of the passage that states the answer, the cited one first; None: no passage."""
    if declines(answer):
        return None
    statement, own = without_citations(answer), cited(answer)
    numbers = sorted(range(1, 1 + len(passages)), key=lambda number: number != own)
    for number in numbers:
        if support.stance(passages[number - 1], question, statement) == "supports":
            return number
    return None


def stated(support: Support, question: str, passages: Sequence[str], answers: Iterable[str]) -> str:
    """The first answer that a passage states, with that passage cited; a refusal if there is none.

    Of later answers none is taken from the iterable.
    """
    for answer in answers:
        if (number := source(support, question, passages, answer)) is not None:
            return cite(without_citations(answer), number)
    return REFUSAL


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
