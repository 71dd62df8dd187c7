"""Which split a question belongs to: one, in every part.

1. A row names its side by its `split` key, or by lying in the source's own Validation part, which
   is the test split. Rows that name none are free.
2. A question all of whose rows carry a `split` key is fixed: of several sides the highest wins
   (test, validation, judge, train), by its exact key alone. Near-duplicates do not move it, for
   whoever pins rows may mean to hold out one wording of a template and to train on its sister.
3. Every other question goes with its group: all questions linked by near-identity, fixed ones
   included. The highest side named in the group wins; where none is named, a seeded hash of the
   group's smallest key decides, by `test_share` and `validation_share`, each only where the source
   names no such split anywhere.
4. Where the source names no judge split, a seeded `judge_share` of the RM training groups becomes
   the judge's, out of those whose question no SFT or PPO row asks: 4/5 to train, 1/5 to test.
A row whose own side is not the split of its question is a leak.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from stages.rlhf.config.preprocess import PreprocessConfig
from stages.rlhf.ingest.near_duplicates import group_near_duplicates

# Sides by priority: the index of the highest one named is a question's.
SIDES: Final = (None, "train", "judge_train", "judge_test", "validation", "test")
TRAIN, JUDGE_TRAIN, JUDGE_TEST, VALIDATION, TEST = range(1, 6)
_JUDGE_TEST_SHARE = 0.2

Bools = npt.NDArray[np.bool_]
Sides = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Keys:
    """All distinct question keys (K), in order. `named`: the highest side that a row names.

    `fixed`: every row of the key carries a `split` key. `sft`, `rm`, `ppo`: parts that ask it.
    """

    texts: list[str]
    named: Sides  # (K,)
    fixed: Bools  # (K,)
    sft: Bools  # (K,)
    rm: Bools  # (K,)
    ppo: Bools  # (K,)


@dataclass(frozen=True)
class Assignment:
    """The side of each key (K). `drawn`: chosen by us, not named by the source."""

    sides: Sides
    drawn: Bools


def assign(keys: Keys, settings: PreprocessConfig) -> Assignment:
    """The split of each question, by the rules at the top of this file."""
    groups = group_near_duplicates(keys.texts, settings.near_duplicate, ~keys.fixed)
    roots = np.fromiter(map(groups.find, range(len(keys.texts))), np.int64, len(keys.texts))
    named = np.zeros(len(roots), dtype=np.uint8)  # of a group, at its root
    np.maximum.at(named, roots, keys.named)
    sides = named[roots]
    drawn = sides == 0
    shares = {
        TEST: settings.test_share * (not (keys.named == TEST).any()),
        VALIDATION: settings.validation_share * (not (keys.named == VALIDATION).any()),
    }
    for root in map(int, np.unique(roots[drawn])):
        named[root] = _draw(keys.texts[root], settings.seed, shares)
    sides[drawn] = named[roots[drawn]]
    sides[keys.fixed] = keys.named[keys.fixed]
    moved = np.zeros(len(roots), dtype=bool)
    if not np.isin(keys.named, (JUDGE_TRAIN, JUDGE_TEST)).any():
        for root, side in _judge(keys, roots, sides, settings).items():
            named[root] = side
            moved[root] = True
        sides[moved[roots]] = named[roots[moved[roots]]]
        drawn |= moved[roots]
    return Assignment(sides, drawn)


def _uniform(*words: str | int) -> float:
    """A number in [0, 1) that depends on the words alone."""
    digest = hashlib.sha256(":".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _draw(key: str, seed: int, shares: dict[int, float]) -> int:
    number = _uniform(seed, "split", key)
    for side, share in shares.items():
        if number < share:
            return side
        number -= share
    return TRAIN


def _judge(
    keys: Keys, roots: npt.NDArray[np.int64], sides: Sides, settings: PreprocessConfig
) -> dict[int, int]:
    """Groups that become the judge's, by root: a share of the RM training groups."""
    training = np.unique(roots[keys.rm & (sides == TRAIN)])
    barred = np.unique(roots[keys.sft | keys.ppo | (sides != TRAIN)])
    eligible = np.setdiff1d(training, barred).tolist()
    wanted = round(settings.judge_share * len(training))
    eligible.sort(key=lambda root: _uniform(settings.seed, "judge", keys.texts[root]))
    return {
        root: JUDGE_TEST
        if _uniform(settings.seed, "judge test", keys.texts[root]) < _JUDGE_TEST_SHARE
        else JUDGE_TRAIN
        for root in eligible[:wanted]
    }
