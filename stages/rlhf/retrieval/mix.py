"""Rows with passages: what the models read where `rag` is enabled.

Of training rows with an answer, `right` get passages that support it among others that do not, and
the answer cites one; `absent` get others alone, and the right answer declines; the rest get none.
Where no passage is known to support an answer, nothing is known of the others either: such a row
gets none. Held-out rows get what the index finds, best first.
"""

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from stages.rlhf.chat import REFUSAL, cite, fitting
from stages.rlhf.config.preprocess import RagConfig
from stages.rlhf.records import PromptRow, RmRow, Row, SftRow
from stages.rlhf.retrieval.library import Library

SEARCHED = 40  # passages of which those for a training row are chosen
SEARCHED_FOREIGN = 1000  # the same for a prompt: the best ones are all about its subject
BEST_FIRST = 0.6  # share of rows that get the best passages; the others any of those searched
MISCITED = 0.5  # share of groups that get their best answer with a wrong citation


class Sides(NamedTuple):
    """Passages found for a question, best first."""

    supporting: list[int]
    others: list[int]  # that say something else


class Shown(NamedTuple):
    """Passages of a row, in the order in which they are numbered from 1."""

    passages: tuple[int, ...]
    supporting: frozenset[int]


class Mix:
    """Adds passages to rows. `seed`: of all draws; a row's depend on its id, too.

    `tokens`: length of a text; passages that exceed rag.passage_tokens together are left out.
    """

    def __init__(
        self, library: Library, rag: RagConfig, seed: int, tokens: Callable[[str], int]
    ) -> None:
        self.library, self.rag, self.seed = library, rag, seed
        self.tokens = lru_cache(maxsize=1 << 16)(tokens)

    def sft(self, row: SftRow) -> SftRow:
        """A demonstration; where it is wrong, no passage supports it."""
        rng = self._rng(row)
        shown = self._shown(rng, row.question, row.answer)
        if shown is None:
            return row
        return self._with(row, shown, answer=self._cited(row.answer, shown))

    def held_out(self, row: SftRow) -> SftRow:
        """What the index finds; the answer cites the first passage that supports it, if any."""
        found = self._fitting(self.library.find(row.question, self.rag.passages))
        if not found:
            return row
        known = row.question, row.answer, row.must_contain
        shown = Shown(tuple(found), frozenset(i for i in found if self.supports(i, *known)))
        answer = self._cited(row.answer, shown) if shown.supporting else row.answer
        return self._with(row, shown, answer=answer)

    def without_evidence(self, row: SftRow) -> SftRow | None:
        """A held-out row as if its evidence were not in the index; None if none is known to be."""
        sides = self._sides(row.question, row.answer, row.must_contain)
        others = self._fitting(sides.others[: self.rag.passages])
        if not sides.supporting or not others:
            return None
        return self._with(row, Shown(tuple(others), frozenset()))

    def group(self, row: RmRow) -> RmRow:
        """Ranked answers, each with a citation; one more declines, at times one more miscites.

        Where the passages answer, to decline is as bad as the worst answer; where they do not, it
        is better than all.
        """
        rng = self._rng(row)
        best = row.best_answer
        shown = self._shown(rng, row.question, best)
        if shown is None:
            return row
        answers = [self._claimed(row, answer, shown, rng) for answer in row.answers]
        ranks, defects = list(row.ranks), list(row.defects or ())
        answers.append(REFUSAL)
        if shown.supporting:
            ranks.append(max(ranks))
            defects.append("declines")
            wrong = [n for n, i in enumerate(shown.passages, 1) if i not in shown.supporting]
            if wrong and rng.random() < MISCITED:
                answers.append(cite(best, rng.choice(wrong)))
                ranks.append(min(ranks) + 0.5)
                defects.append("miscites")
        else:
            ranks.append(min(ranks) - 1)
            defects = [
                "+".join(d for d in (defect, "unsupported") if d != "none") for defect in defects
            ]
            defects.append("none")
        labels = {"defects": tuple(defects)} if row.defects else {}
        return self._with(row, shown, answers=tuple(answers), ranks=tuple(ranks), **labels)

    def prompt(self, row: PromptRow) -> PromptRow:
        """A question alone: what the index finds, passages about something else, or none."""
        rng = self._rng(row)
        draw = rng.random()
        if draw >= self.rag.right + self.rag.absent:
            return row
        if draw < self.rag.right:
            return self._unlabelled(row, self.library.find(row.question, self.rag.passages))
        foreign = self.library.support.foreign
        found = self.library.find(row.question, SEARCHED_FOREIGN)
        others = (i for i in found if foreign(self._text(i), row.question))
        return self._unlabelled(row, list(islice(others, self.rag.passages)))

    def found(self, row: PromptRow) -> PromptRow:
        """A held-out question alone: what the index finds."""
        return self._unlabelled(row, self.library.find(row.question, self.rag.passages))

    def supports(self, i: int, question: str, answer: str, phrase: str | None = None) -> bool:
        """Whether the passage is known to state the answer."""
        found = self.library.support.stance(self._text(i), question, answer, phrase)
        return found == "supports"

    def _unlabelled(self, row: PromptRow, found: Sequence[int]) -> PromptRow:
        passages = self._fitting(found[: self.rag.passages])
        return self._with(row, Shown(tuple(passages), frozenset())) if passages else row

    def _sides(self, question: str, answer: str, phrase: str | None = None) -> Sides:
        sides = Sides([], [])
        for i in self.library.find(question, SEARCHED):
            stance = self.library.support.stance(self._text(i), question, answer, phrase)
            if stance != "unclear":
                (sides.supporting if stance == "supports" else sides.others).append(i)
        return sides

    def _shown(self, rng: random.Random, question: str, answer: str) -> Shown | None:
        """The passages of a training row; None for none."""
        draw, count = rng.random(), self.rag.passages
        if draw >= self.rag.right + self.rag.absent:
            return None
        sides = self._sides(question, answer)
        if not sides.supporting:
            return None
        if draw >= self.rag.right:
            if not sides.others:
                return None
            others = self._fitting(_some(sides.others, count, rng))
            return Shown(tuple(others), frozenset()) if others else None
        right = _some(sides.supporting, rng.randint(1, max(1, count - 1)), rng)
        passages = self._fitting([*right, *_some(sides.others, count - len(right), rng)])
        rng.shuffle(passages)
        return Shown(tuple(passages), frozenset(right)) if passages else None

    def _fitting(self, passages: Sequence[int]) -> list[int]:
        """The first passages that fit into rag.passage_tokens together."""
        texts = [self._text(i) for i in passages]
        return list(passages[: fitting(texts, self.tokens, self.rag.passage_tokens)])

    def _cited(self, answer: str, shown: Shown) -> str:
        """The answer with the first passage that supports it; a refusal where none does."""
        for number, i in enumerate(shown.passages, 1):
            if i in shown.supporting:
                return cite(answer, number)
        return REFUSAL

    def _claimed(self, row: RmRow, answer: str, shown: Shown, rng: random.Random) -> str:
        """An answer of a group with the passage that supports it, or with any."""
        numbers = range(1, 1 + len(shown.passages))
        own = [n for n in numbers if self.supports(shown.passages[n - 1], row.question, answer)]
        if answer == row.best_answer:
            own = [n for n in numbers if shown.passages[n - 1] in shown.supporting]
        return cite(answer, own[0] if own else rng.choice(numbers))

    def _text(self, i: int) -> str:
        return self.library.texts[i]

    def _with(self, row: Row, shown: Shown, **changed: object) -> Row:
        texts = tuple(self._text(i) for i in shown.passages)
        return row.model_copy(update={"passages": texts, **changed})

    def _rng(self, row: PromptRow) -> random.Random:
        return random.Random(f"{self.seed}/rag/{row.id}")


def _some(passages: Sequence[int], count: int, rng: random.Random) -> list[int]:
    """`count` of them: mostly the best, else any."""
    if rng.random() < BEST_FIRST:
        return list(passages[:count])
    return rng.sample(list(passages), min(count, len(passages)))
