"""The gate's verdict: what it is made of, and what metrics/gate.json says of PPO.

A judge that ranks no better than chance, or than length alone, cannot vouch for a reward model nor
speak against it: the gate is then unknown.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stages.rlhf.sizes import GATE_OF

GATE = f"best_of_{GATE_OF}"  # its key in metrics/gate.json
CHANCE = 0.5


class Verdict(NamedTuple):
    """What metrics/gate.json says."""

    passed: bool | None  # None: unknown, because nothing is known of the judge
    reason: str | None  # why it did not pass, or is unknown


def judge_doubt(judge: Mapping[str, Any]) -> str | None:
    """metrics/details/judge.json -> why the judge's word counts for nothing; None if it counts.

    It counts if it is more accurate on its own test questions than the rule that the longer answer
    is better, than the opposite rule, and than chance, each by its interval.
    """
    accuracy, longer, above = (
        judge[key] for key in ("accuracy", "length_only_accuracy", "accuracy_above_length")
    )
    lowest, above_low = judge["accuracy_ci_low"], judge["accuracy_above_length_ci_low"]
    if accuracy is None or lowest is None or above_low is None:
        return (
            f"the judge's accuracy has no interval ({judge['questions']} test groups); expected"
            " enough ranked answers to tell it from chance"
        )
    if above_low > 0 and lowest > max(CHANCE, 1 - longer):
        return None
    return (
        f"the judge is not shown to be better than chance and length alone: accuracy {accuracy:.3f}"
        f" [{lowest:.3f}, {judge['accuracy_ci_high']:.3f}] on {judge['questions']} test groups,"
        f" {above:+.3f} [{above_low:+.3f}, {judge['accuracy_above_length_ci_high']:+.3f}] over"
        f" preferring the longer answer ({longer:.3f}); expected intervals above"
        f" {max(CHANCE, 1 - longer):.3f} and 0"
    )


def vouched(found: Mapping[str, Any], judge_metrics: Path) -> dict[str, Any]:
    """The gate's figures, `passed` null with a reason where the judge's word counts for nothing.

    Raises ValueError where the file is not metrics/details/judge.json.
    """
    try:
        doubt = judge_doubt(json.loads(judge_metrics.read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{judge_metrics}: expected the accuracies of stage judge: {error!r}"
        ) from error
    return {**found} if doubt is None else {**found, "passed": None, "passed_reason": doubt}


def read_gate(file: Path) -> Verdict:
    """The verdict in metrics/gate.json. Raises ValueError where the file holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))[GATE]
        gain, low, high = (found[key] for key in ("gain", "gain_ci_low", "gain_ci_high"))
        passed: bool | None = found["passed"]
        doubt: str | None = None if passed is not None else found["passed_reason"]
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: expected {GATE} of stage gate: {error!r}") from error
    if passed:
        return Verdict(True, None)
    if passed is None:
        return Verdict(None, doubt)
    return Verdict(
        False,
        f"by the judge, best-of-{GATE_OF} under the reward model gains {gain:+.3f} sd"
        f" [{low:+.3f}, {high:+.3f}] over SFT; expected an interval above 0 (ppo.require_gate)",
    )


def gate_failure(file: Path) -> str | None:
    """Why PPO should not be tried; None where the gate is open, or unknown.

    An unknown gate says nothing against the reward model. PPO is tried then: its update is chosen
    by the references on validation, and SFT's weights stay where none is better.
    """
    verdict = read_gate(file)
    return verdict.reason if verdict.passed is False else None
