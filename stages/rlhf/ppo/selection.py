"""Which model is PPO's result: decided here and nowhere else.

SFT behind a closed gate; else the update with the best `chrf_valid` on validation within the
limits; SFT where none beats it. Whoever chooses does not grade: on test, of any data, cosine and
the judge do.
"""

from collections.abc import Callable
from typing import NamedTuple

from stages.rlhf.config.limits import Limits

Row = dict[str, float]  # of validation.csv


class Kept(NamedTuple):
    """The update whose policy is the result so far, and why."""

    update: int  # 0: SFT itself
    reason: str
    stop: str | None = None  # why training should end with it; None: a later one may be better


SFT = Kept(0, "no update beats SFT")
Decide = Callable[[list[Row]], Kept]  # by the rows of all evaluations so far


def decide(
    validation: list[Row],
    reference_length: float,
    limits: Limits,
    patience: int,
    gate_failure: str | None = None,
) -> Kept:
    """Rows of all evaluations so far, SFT's own first -> the update to keep.

    reference_length: mean characters of the references. gate_failure: why the reward model is not
    to be followed at all.
    """
    if gate_failure:
        return Kept(0, gate_failure, gate_failure)
    sft = best = validation[0]
    kept = SFT
    for row in validation[1:]:
        better = row["chrf_valid"] > best["chrf_valid"]
        if better and not broken_limits(row, sft, reference_length, limits):
            best = row
            kept = Kept(int(row["update"]), "the best chrf_valid within the limits")
    stale = sum(row["update"] > kept.update for row in validation)
    if stale < patience:
        return kept
    return kept._replace(stop=f"no better update in ppo.patience ({stale}) evaluations")


def broken_limits(row: Row, sft: Row, reference_length: float, limits: Limits) -> list[str]:
    """The metrics by which a row breaks a limit.

    Where SFT itself is out of the band of lengths, an update may be between the two.
    """
    shortest, longest = (reference_length * (1 + sign * limits.length_band) for sign in (-1, 1))
    broken = {
        "eos_rate": row["eos_rate"] < sft["eos_rate"] - limits.eos_slack,
        "repetition": row["repetition"] > sft["repetition"] + limits.repetition_slack,
        "copy_rate": row["copy_rate"] > sft["copy_rate"] + limits.repetition_slack,
        "length": not min(shortest, sft["length"]) <= row["length"] <= max(longest, sft["length"]),
    }
    return [name for name, is_broken in broken.items() if is_broken]
