"""Assignment of questions to training, judge, validation and test, without overlap.

Three kinds of question are held out of training:
    unseen_wording   training asks for the pair, but never with this noun phrase and ending
    never_asked      nothing else asks for the (entity, attribute) pair
    unseen_ending    the ending occurs nowhere else
Validation has the first two, the second with its own pairs, so that model selection can target
them; unseen endings are only in test.

Other pairs are held back from labels (`sample.held_back`): PPO's prompts alone ask for them. No
demonstration and no group does; the corpus states them, as it does those of all kinds.
No question is a near-duplicate of one on another side.
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
NEVER_ASKED_SHARES = {"test": 0.10, "validation": 0.10}  # of each attribute's pairs
NOBODY_ANSWERED = 2 / 3  # of PPO's training prompts, where pairs are held back
NEAR = 0.85  # similarity at which two questions must share a side; preprocess uses 0.9


@dataclass(frozen=True)
class Sizes:
    """Numbers of held-out questions: those of the default run, or fewer for smaller training."""

    test_sft: dict[str, int]
    test_rm: dict[str, int]
    validation_sft: dict[str, int]
    validation_rm: dict[str, int]
    judge_test: int
    test_prompts: int
    validation_prompts: int

    @classmethod
    def of(cls, sample: SampleConfig) -> "Sizes":
        """In proportion to the training parts, at most those of the default run."""

        def part(most: int, trained: int, default: int) -> int:
            return max(4, min(most, round(most * trained / default)))

        def kinds(trained: int, default: int, *most: int) -> dict[str, int]:
            names = (UNSEEN_WORDING, NEVER_ASKED, UNSEEN_ENDING)
            return {k: part(n, trained, default) for k, n in zip(names, most, strict=False)}

        demos, groups = (sample.demonstrations, 3200), (sample.groups, 2400)
        return cls(
            kinds(*demos, 400, 1000, 500),
            kinds(*groups, 250, 120, 80),
            kinds(*demos, 200, 200),
            kinds(*groups, 300, 120),
            part(240, sample.judge_groups, 1200),
            part(100, sample.prompts, 3000),
            part(100, sample.prompts, 3000),
        )


@dataclass(frozen=True)
class Splits:
    """Questions by side; validation and test by kind."""

    training: list[Question]
    unlabelled: list[Question]  # for PPO's prompts alone
    judge: list[Question]
    validation: dict[str, list[Question]]
    test: dict[str, list[Question]]


class _Sides:
    """Tracks the questions of each side and rejects near-duplicates across sides."""

    def __init__(self) -> None:
        self._questions: dict[tuple[str, ...], list[tuple[str, Question]]] = defaultdict(list)

    def deal(self, side: str, questions: Iterable[Question], count: int | None) -> list[Question]:
        """The first `count` questions (None: all) that no other side has."""
        dealt: list[Question] = []
        for question in questions:
            if len(dealt) == count:
                break
            keys = self._keys(question)
            if any(
                other != side and similarity(question, known) >= NEAR
                for key in keys
                for other, known in self._questions[key]
            ):
                continue
            for key in keys:
                self._questions[key].append((side, question))
            dealt.append(question)
        if count is not None and len(dealt) < count:
            raise ValueError(
                f"sample: {side} needs {count} questions, but the tables yield {len(dealt)}"
            )
        return dealt

    @staticmethod
    def _keys(question: Question) -> tuple[tuple[str, ...], ...]:
        """Candidate near-duplicates share the wording or the fact."""
        fact = question.fact
        wording = (fact.table, fact.attribute, str(question.ask), str(question.ending))
        return wording, fact.pair


def never_asked(rng: Random) -> dict[str, set[Fact]]:
    """Side -> pairs exclusive to it: a share of each attribute's, with distinct entities."""
    held: dict[str, set[Fact]] = {}
    for side, share in NEVER_ASKED_SHARES.items():
        held[side] = _held(share, set().union(*held.values()), rng)
    return held


def held_back(share: float, hidden: set[Fact], rng: Random) -> set[Fact]:
    """Pairs for PPO's prompts alone: a share of each attribute's, none of those hidden already."""
    return _held(share, hidden, rng, apart=False) if share else set()


def _held(share: float, before: set[Fact], rng: Random, apart: bool = True) -> set[Fact]:
    """At most one pair of an entity; `apart`: of no entity that has one in `before`."""
    entities = {(fact.table, fact.entity) for fact in before} if apart else set()
    held: set[Fact] = set()
    for table, attribute in dict.fromkeys((fact.table, fact.attribute) for fact in all_facts()):
        facts = list(column(table, attribute))
        rng.shuffle(facts)
        free = [f for f in facts if f not in before and (table, f.entity) not in entities]
        for fact in free[: max(1, round(len(facts) * share))]:
            held.add(fact)
            entities.add((table, fact.entity))
    return held


def _in_turn(facts: Iterable[Fact], combos: list[tuple[int, int]], rng: Random) -> list[Question]:
    """All wordings of the facts, shuffled, in rounds that contain every fact once."""
    piles = [wordings(fact, rng.sample(combos, len(combos))) for fact in facts]
    rounds: list[Question] = []
    for turn in range(len(combos)):
        layer = [pile[turn] for pile in piles]
        rng.shuffle(layer)
        rounds += layer
    return rounds


def deal_questions(sample: SampleConfig) -> Splits:
    """Assign every question needed to one side.

    Raises ValueError, with both numbers, if the tables yield too few.
    """
    rng = Random(f"{sample.seed}/splits")
    sizes = Sizes.of(sample)
    held = never_asked(rng)
    hidden = {side: [f for f in all_facts() if f in pairs] for side, pairs in held.items()}
    unlabelled = held_back(sample.held_back, set().union(*held.values()), rng)
    taken = unlabelled.union(*held.values())
    public = [fact for fact in all_facts() if fact not in taken]
    sides = _Sides()
    unseen = _in_turn(public, list(HELD_OUT_COMBOS), rng)

    def deal_hidden(side: str, count: int) -> list[Question]:
        return sides.deal(side, _in_turn(hidden[side], training_combos(), rng), count)

    test = {
        UNSEEN_WORDING: sides.deal("test", unseen, sizes.test_sft[UNSEEN_WORDING]),
        NEVER_ASKED: deal_hidden("test", sizes.test_sft[NEVER_ASKED]),
        UNSEEN_ENDING: sides.deal(
            "test", _in_turn(public, unseen_ending_combos(), rng), sizes.test_sft[UNSEEN_ENDING]
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
    back = [fact for fact in all_facts() if fact in unlabelled]
    prompts = sides.deal("training", _in_turn(back, training_combos(), rng), None)
    open_ = _in_turn(public, training_combos(), rng)
    judge_count = sample.judge_groups + sizes.judge_test
    judge = sides.deal("judge", open_, judge_count)
    training = sides.deal("training", open_, None)
    return Splits(training, prompts, judge, validation, test)
