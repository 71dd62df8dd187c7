"""Assign each question to one split, the same in every part.

1. A row names its side by its `split` key, or by being in the source's own Validation part, which
   is the test split. Rows that name no side are free.
2. A question is fixed if all its rows carry a `split` key: of several sides the highest wins (test,
   validation, judge, train), by exact key only. Near-duplicates do not move it, because pinned rows
   may hold out one wording of a template and train on another.
3. Every other question follows its group: all questions linked as near-duplicates, fixed ones
   included. The highest side named in the group wins; if none is named, a seeded hash of the
   group's smallest key decides by `test_share` and `validation_share`, each applied only if the
   source names no such split anywhere.
4. If the source names no judge split, a seeded `judge_share` of the RM training groups goes to the
   judge, among those whose question no SFT or PPO row asks: 4/5 to train, 1/5 to test.
A row whose own side differs from the split of its question is a leak.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from stages.rlhf.config.preprocess import PreprocessConfig
from stages.rlhf.ingest.near_duplicates import group_near_duplicates

# Sides by ascending priority; a question gets the index of the highest one named.
SIDES: Final = (None, "train", "judge_train", "judge_test", "validation", "test")
TRAIN, JUDGE_TRAIN, JUDGE_TEST, VALIDATION, TEST = range(1, 6)
_JUDGE_TEST_SHARE = 0.2

Bools = npt.NDArray[np.bool_]
Sides = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Keys:
    """All distinct question keys (K), sorted. `named`: the highest side that any row names.

    `fixed`: every row of the key carries a `split` key. `sft`, `rm`, `ppo`: the part contains it.
    """

    texts: list[str]
    named: Sides  # (K,)
    fixed: Bools  # (K,)
    sft: Bools  # (K,)
    rm: Bools  # (K,)
    ppo: Bools  # (K,)


@dataclass(frozen=True)
class Assignment:
    """The side of each key (K). `assigned`: chosen here, not named by the source."""

    sides: Sides
    assigned: Bools


def assign(keys: Keys, settings: PreprocessConfig) -> Assignment:
    """The split of each question, by the rules in the module docstring."""
    groups = group_near_duplicates(keys.texts, settings.near_duplicate, ~keys.fixed)
    roots = np.fromiter(map(groups.find, range(len(keys.texts))), np.int64, len(keys.texts))
    named = np.zeros(len(roots), dtype=np.uint8)  # per group, at its root
    np.maximum.at(named, roots, keys.named)
    sides = named[roots]
    assigned = sides == 0
    shares = {
        TEST: settings.test_share * (not (keys.named == TEST).any()),
        VALIDATION: settings.validation_share * (not (keys.named == VALIDATION).any()),
    }
    for root in map(int, np.unique(roots[assigned])):
        named[root] = _side_by_hash(keys.texts[root], settings.seed, shares)
    sides[assigned] = named[roots[assigned]]
    sides[keys.fixed] = keys.named[keys.fixed]
    moved = np.zeros(len(roots), dtype=bool)
    if not np.isin(keys.named, (JUDGE_TRAIN, JUDGE_TEST)).any():
        for root, side in _judge(keys, roots, sides, settings).items():
            named[root] = side
            moved[root] = True
        sides[moved[roots]] = named[roots[moved[roots]]]
        assigned |= moved[roots]
    return Assignment(sides, assigned)


def _uniform(*words: str | int) -> float:
    """A number in [0, 1) determined by the words."""
    digest = hashlib.sha256(":".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _side_by_hash(key: str, seed: int, shares: dict[int, float]) -> int:
    number = _uniform(seed, "split", key)
    for side, share in shares.items():
        if number < share:
            return side
        number -= share
    return TRAIN


def _judge(
    keys: Keys, roots: npt.NDArray[np.int64], sides: Sides, settings: PreprocessConfig
) -> dict[int, int]:
    """Groups assigned to the judge, by root: a share of the RM training groups."""
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
