"""Who may ask what: questions dealt to training, judge, validation and test, never to two of them.

Held out of training, three kinds of question:
    unseen_wording   the pair is asked in training, never in this noun phrase with this ending
    never_asked      the (entity, attribute) pair is asked nowhere else
    unseen_ending    the ending occurs nowhere else
Validation has the first two, the second of pairs of its own, so that what test asks can be chosen
for; unseen endings are test's alone.
No question is a near-duplicate of one that another side asks.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from stages.rlhf.config.sample import SampleConfig
from stages.world.facts import Fact, all_facts, column
from stages.world.questions import (
    HELD_OUT_COMBOS,
    Question,
    similarity,
    training_combos,
    unseen_ending_combos,
    wordings,
)

UNSEEN_WORDING, NEVER_ASKED, UNSEEN_ENDING = "unseen_wording", "never_asked", "unseen_ending"
NEVER_ASKED_SHARES = {"test": 0.10, "validation": 0.05}  # of the pairs of every attribute
NEAR = 0.85  # similarity from which two questions may not be on two sides; stricter than 0.9


@dataclass(frozen=True)
class Sizes:
    """Questions on the held-out sides: the default run's, or fewer where training is smaller."""

    test_sft: dict[str, int]
    test_rm: dict[str, int]
    validation_sft: dict[str, int]
    validation_rm: dict[str, int]
    judge_test: int
    test_prompts: int
    validation_prompts: int

    @classmethod
    def of(cls, sample: SampleConfig) -> "Sizes":
        """In proportion to the training parts, no more than the default run's."""

        def part(most: int, trained: int, default: int) -> int:
            return max(4, min(most, round(most * trained / default)))

        def kinds(trained: int, default: int, *most: int) -> dict[str, int]:
            names = (UNSEEN_WORDING, NEVER_ASKED, UNSEEN_ENDING)
            return {k: part(n, trained, default) for k, n in zip(names, most, strict=False)}

        demos, groups = (sample.demonstrations, 3200), (sample.groups, 2400)
        return cls(
            kinds(*demos, 400, 200, 150),
            kinds(*groups, 250, 120, 80),
            kinds(*demos, 200, 100),
            kinds(*groups, 300, 120),
            part(240, sample.judge_groups, 1200),
            part(100, sample.prompts, 3000),
            part(100, sample.prompts, 3000),
        )


@dataclass(frozen=True)
class Splits:
    """Questions by side; those of validation and test by kind."""

    training: list[Question]
    judge: list[Question]
    validation: dict[str, list[Question]]
    test: dict[str, list[Question]]


class _Sides:
    """Remembers which side asks what, and refuses near-duplicates across sides."""

    def __init__(self) -> None:
        self._asked: dict[tuple[str, ...], list[tuple[str, Question]]] = defaultdict(list)

    def deal(self, side: str, questions: Iterable[Question], count: int | None) -> list[Question]:
        """The first `count` of the questions that no other side asks, or all of them."""
        dealt: list[Question] = []
        for question in questions:
            if len(dealt) == count:
                break
            places = self._places(question)
            if any(
                other != side and similarity(question, known) >= NEAR
                for place in places
                for other, known in self._asked[place]
            ):
                continue
            for place in places:
                self._asked[place].append((side, question))
            dealt.append(question)
        if count is not None and len(dealt) < count:
            raise ValueError(
                f"sample: {count} questions are wanted for {side}, the tables yield {len(dealt)}"
            )
        return dealt

    @staticmethod
    def _places(question: Question) -> tuple[tuple[str, ...], ...]:
        """Near-duplicates share the wording, or the fact."""
        fact = question.fact
        wording = (fact.table, fact.attribute, str(question.ask), str(question.ending))
        return wording, fact.pair


def never_asked(rng: Random) -> dict[str, set[Fact]]:
    """Side -> the pairs that it alone asks: a share of every attribute's, of different entities."""
    held: dict[str, set[Fact]] = {side: set() for side in NEVER_ASKED_SHARES}
    entities: set[tuple[str, str]] = set()
    attributes = dict.fromkeys((fact.table, fact.attribute) for fact in all_facts())
    for side, share in NEVER_ASKED_SHARES.items():
        for table, attribute in attributes:
            facts = list(column(table, attribute))
            rng.shuffle(facts)
            free = [fact for fact in facts if (table, fact.entity) not in entities]
            for fact in free[: max(1, round(len(facts) * share))]:
                held[side].add(fact)
                entities.add((table, fact.entity))
    return held


def _in_turn(facts: Iterable[Fact], combos: list[tuple[int, int]], rng: Random) -> list[Question]:
    """All wordings of the facts, shuffled, every fact once before any comes again."""
    piles = [wordings(fact, rng.sample(combos, len(combos))) for fact in facts]
    rounds: list[Question] = []
    for turn in range(len(combos)):
        layer = [pile[turn] for pile in piles]
        rng.shuffle(layer)
        rounds += layer
    return rounds


def deal_questions(sample: SampleConfig) -> Splits:
    """Deal every question that is needed to one side.

    Raises ValueError, with both numbers, where the tables hold too few.
    """
    rng = Random(f"{sample.seed}/splits")
    sizes = Sizes.of(sample)
    held = never_asked(rng)
    asked = [fact for fact in all_facts() if not any(fact in hidden for hidden in held.values())]
    hidden = {side: [f for f in all_facts() if f in pairs] for side, pairs in held.items()}
    sides = _Sides()
    unseen = _in_turn(asked, list(HELD_OUT_COMBOS), rng)

    def deal_hidden(side: str, count: int) -> list[Question]:
        return sides.deal(side, _in_turn(hidden[side], training_combos(), rng), count)

    test = {
        UNSEEN_WORDING: sides.deal("test", unseen, sizes.test_sft[UNSEEN_WORDING]),
        NEVER_ASKED: deal_hidden("test", sizes.test_sft[NEVER_ASKED]),
        UNSEEN_ENDING: sides.deal(
            "test", _in_turn(asked, unseen_ending_combos(), rng), sizes.test_sft[UNSEEN_ENDING]
        ),
    }
    parts = (sizes.validation_sft, sizes.validation_rm)
    wanted = {kind: max(part[kind] for part in parts) for kind in sizes.validation_sft}
    validation = {
        UNSEEN_WORDING: sides.deal(
            "validation", unseen, max(wanted[UNSEEN_WORDING], sizes.validation_prompts)
        ),
        NEVER_ASKED: deal_hidden("validation", wanted[NEVER_ASKED]),
    }
    open_ = _in_turn(asked, training_combos(), rng)
    judge_count = sample.judge_groups + sizes.judge_test
    judge = sides.deal("judge", open_, judge_count)
    training = sides.deal("training", open_, None)
    return Splits(training, judge, validation, test)
