"""Assign each question to one split, the same in every part.

1. A row names its side by its `split` key, or by a file or folder named for a split (in AI-Hub's
   two-part download, Validation is the test split). Rows that name no side are free.
2. A question is fixed if all its rows carry a `split` key: of several sides the highest wins (test,
   validation, judge, train), by exact key only. Near-duplicates do not move it, because pinned rows
   may hold out one wording of a template and train on another.
3. Every other question follows its group: all questions linked as near-duplicates, fixed ones
   included. The highest side named in the group wins; free groups are for training.
4. A split that the source names nowhere is taken from the training groups, rows named for training
   included: test and validation by a seeded hash of the group's smallest key and `test_share` and
   `validation_share`. A part without a row there gives that share of its own questions, and a part
   with fewer than a later stage needs as many as are missing.
5. If the source names no judge split, a seeded `judge_share` of the RM training groups goes to the
   judge, or as many as make `judge_groups_min`, but never more than the reward model keeps: first
   those whose question no SFT or PPO row asks; if those are too few, others, which then leave SFT
   and PPO (counted as judge_question). 1/5 of them are its test, but of few groups up to 1/3,
   until there are 100. The rest is its training.
A row whose own side differs from the split of its question is a leak.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from stages.rlhf.config.preprocess import PreprocessConfig
from stages.rlhf.ingest.needs import least
from stages.rlhf.ingest.sources.items import Part
from stages.rlhf.ingest.splitting.near_duplicates import Crowd, group_near_duplicates

# Sides by ascending priority; a question gets the index of the highest one named.
SIDES: Final = (None, "train", "judge_train", "judge_test", "validation", "test")
TRAIN, JUDGE_TRAIN, JUDGE_TEST, VALIDATION, TEST = range(1, 6)
_JUDGE_TEST_SHARE = 0.2
# A judge right in 64 % of pairs is shown to beat length on 20 test groups in one case of three, on
# 100 in nine of ten.
_JUDGE_TESTS, _MOST_TESTS = 100, 1 / 3

Bools = npt.NDArray[np.bool_]
Sides = npt.NDArray[np.uint8]
Roots = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Keys:
    """All distinct question keys (K), sorted. `named`: the highest side that any row names.

    `fixed`: every row of the key carries a `split` key. `sft`, `rm`, `ppo`: 1 + the highest side
    that a row of the part names; 0 if the part has no row of the key.
    """

    texts: list[str]
    named: Sides  # (K,)
    fixed: Bools  # (K,)
    sft: Sides  # (K,)
    rm: Sides  # (K,)
    ppo: Sides  # (K,)


@dataclass(frozen=True)
class Assignment:
    """The side of each key (K). `assigned`: chosen here, not named by the source.

    `crowds`: groups of near-duplicates so large that they should be known.
    """

    sides: Sides
    assigned: Bools
    crowds: tuple[Crowd, ...] = ()


def assign(keys: Keys, settings: PreprocessConfig) -> Assignment:
    """The split of each question, by the rules in the module docstring."""
    shares = {TEST: settings.test_share, VALIDATION: settings.validation_share}
    unnamed = {side: s for side, s in shares.items() if not (keys.named == side).any()}
    judged = np.isin(keys.named, (JUDGE_TRAIN, JUDGE_TEST)).any()
    free = ~keys.fixed
    if unnamed or not judged:  # pinned training questions may move, near-duplicates together
        free |= keys.named == TRAIN
    groups, crowds = group_near_duplicates(keys.texts, settings.near_duplicate, free)
    roots = np.fromiter(map(groups.find, range(len(keys.texts))), np.int64, len(keys.texts))
    named = np.zeros(len(roots), dtype=np.uint8)  # per group, at its root
    np.maximum.at(named, roots, keys.named)
    sides = np.where(keys.fixed, keys.named, np.maximum(named[roots], TRAIN)).astype(np.uint8)
    draw = _Draw(keys, roots, sides, settings.seed)
    draw.by_hash(unnamed)
    parts: dict[Part, Sides] = {"sft": keys.sft, "rm": keys.rm, "ppo": keys.ppo}
    for part, own in parts.items():
        for side, share in shares.items():
            draw.fill(side, own, share, least(part, str(SIDES[side])))
    if not judged:
        draw.judge(settings.judge_share, settings.judge_groups_min)
    return Assignment(sides, draw.moved, tuple(crowds))


class _Draw:
    """Moves training groups to other splits. `sides`: (K,), changed in place; `moved`: (K,)."""

    def __init__(self, keys: Keys, roots: Roots, sides: Sides, seed: int) -> None:
        self._keys, self._roots, self._sides, self._seed = keys, roots, sides, seed
        self.moved = np.zeros(len(roots), dtype=bool)

    def by_hash(self, shares: dict[int, float]) -> None:
        """Move each training group to a split with that probability, by the hash of its key."""
        found: dict[int, list[int]] = {side: [] for side in shares}
        for root in self._training().tolist() if shares else ():
            number = self._uniform("split", root)
            for side, share in shares.items():
                if number < share:
                    found[side].append(root)
                    break
                number -= share
        for side, roots in found.items():
            self._move(roots, side)

    def fill(self, side: int, own: Sides, share: float, needed: int) -> None:
        """Move what a part's questions lack to be as many as needed; a share if it has none.

        `own`: of the part, as in Keys. A question whose rows all leak is none.
        """
        fits = (own > 0) & (self.moved | (own == side + 1))
        present = int((fits & (self._sides == side)).sum())
        missing = max(needed, 1) - present
        if missing <= 0:
            return
        found = self._training(own > 0).tolist()
        found.sort(key=lambda root: self._uniform("fill", root))
        self._move(found[: _bounded(0 if present else share, len(found), missing)], side)

    def judge(self, share: float, at_least: int) -> None:
        """Move a share of the RM training groups, those that no other part asks first.

        A share of fewer than `at_least` groups grows to as many, or to half of all.
        """
        groups = self._training(self._keys.rm > 0)
        shared = np.isin(groups, self._roots[self._keys.ppo > 0]) * 1
        shared += np.isin(groups, self._roots[self._keys.sft > 0]) * 2
        order = {
            root: (often, self._uniform("judge", root))
            for root, often in zip(groups.tolist(), shared.tolist(), strict=True)
        }
        least_train, least_test = least("rm", "judge_train"), least("rm", "judge_test")
        fewest = max(least_train + least_test, min(at_least, len(groups) // 2))
        wanted = _bounded(share, len(groups), fewest)
        found = sorted(order, key=lambda root: order[root])[:wanted]
        found.sort(key=lambda root: self._uniform("judge test", root))
        fewest = max(least_test, min(_JUDGE_TESTS, int(_MOST_TESTS * len(found))))
        tests = _bounded(_JUDGE_TEST_SHARE, len(found), fewest)
        self._move(found[:tests], JUDGE_TEST)
        self._move(found[tests:], JUDGE_TRAIN)

    def _training(self, part: Bools | None = None) -> Roots:
        """Roots of the groups, with a row of the part, all of which is for training."""
        roots = np.unique(self._roots if part is None else self._roots[part])
        return np.setdiff1d(roots, self._roots[self._sides != TRAIN])

    def _uniform(self, use: str, root: int) -> float:
        """A number in [0, 1) determined by seed, use and the group's smallest key."""
        text = f"{self._seed}:{use}:{self._keys.texts[root]}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64

    def _move(self, roots: list[int], side: int) -> None:
        members = np.isin(self._roots, roots)
        self._sides[members] = side
        self.moved |= members


def _bounded(share: float, count: int, least: int) -> int:
    """A share of so many groups: at least `least`, but never the last one."""
    return max(0, min(max(least, round(share * count)), count - 1))
