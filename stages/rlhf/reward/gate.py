"""What metrics/gate.json says: should PPO be tried with this reward model?"""

import json
from pathlib import Path

from stages.rlhf.sizes import GATE_OF

GATE = f"best_of_{GATE_OF}"  # its key in metrics/gate.json


def gate_failure(file: Path) -> str | None:
    """Why PPO should not be tried; None where the gate is open.

    Raises ValueError where the file holds no gate.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))[GATE]
        gain, low, high = (found[key] for key in ("gain", "gain_ci_low", "gain_ci_high"))
        passed: bool = found["passed"]
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: expected {GATE} of stage gate: {error!r}") from error
    if passed:
        return None
    return (
        f"by the judge, best-of-{GATE_OF} under the reward model gains {gain:+.3f} sd"
        f" [{low:+.3f}, {high:+.3f}] over SFT; expected an interval above 0 (ppo.require_gate)"
    )
