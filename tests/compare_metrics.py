"""Compare two folders of metrics, number by number: python -m tests.compare_metrics OLD NEW

All numbers of a stage are those of details/<stage>.json, else of <stage>.json: the gate's.
Processors differ in the last bit, training carries that on, so figures agree only within a
tolerance: what is committed may be this far from what this machine makes, and no further.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.rlhf.records import details_file

ABSOLUTE = {  # by the last part of a key's name; shares and correlations unless named
    "chrf": 8.0,
    "chrf_valid": 8.0,
    "chrf_plus_plus": 8.0,
    "length": 5.0,
    "loss": 0.3,
    "eval_loss": 0.3,
}
SHARE = 0.15
RELATIVE = 0.35  # for everything that is not a share
EXACT = {"preprocess", "eda"}  # no training in them: integers and shares are the same everywhere
WATCHED = {  # figures of training that the README speaks of
    "sft": ["loss", "eval_loss", "eos_rate", "exact"],
    "rm": ["accuracy", "kendall_tau", "spearman_rho", "length_only_accuracy"],
    "judge": ["accuracy"],
    "gate": ["best_of_4.passed"],
    "ppo": ["eos_rate", "skipped"],
    "evaluate": [
        # what base says to a question is an accident of rounding: bfloat16 matmuls, where a
        # processor has them, change its mean length from 15 characters to 24
        *(f"base.{key}" for key in ("chrf", "exact", "eos_rate")),
        *(
            f"{model}.{key}"
            for model in ("sft", "ppo")
            for key in ("cosine", "chrf", "exact", "contains", "eos_rate", "repetition", "length")
        ),
    ],
}


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a mapping."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def disagreement(stage: str, key: str, old: Any, new: Any) -> str | None:
    """One line where the two values do not agree, else None."""
    if old is None or new is None or isinstance(old, str | bool) or stage in EXACT:
        return None if old == new else f"{stage}: {key} was {old}, is {new}"
    last = key.rsplit(".", 1)[-1]
    room = ABSOLUTE.get(last, SHARE if abs(old) <= 1 else RELATIVE * abs(old))
    if abs(old - new) > room:
        return f"{stage}: {key} was {old}, is {new}: further apart than {room:g}"
    return None


def excused(key: str, after: dict[str, Any]) -> bool:
    """Whether a key may be missing: a reason, or the interval of a figure that says why it is None.

    An untrained model's answers decide whether there is anything to count: 0 of 1 or 0 of 0.
    """
    figure = key.removesuffix("_ci_low").removesuffix("_ci_high")
    return key.endswith("_reason") or (
        figure != key and after.get(figure, 0) is None and f"{figure}_reason" in after
    )


def compare(old: Path, new: Path) -> list[str]:
    """All disagreements between two folders of metrics; a key that is missing is one."""
    found = []
    for headline in sorted(old.glob("*.json")):
        details = details_file(headline)
        file = details if details.is_file() else headline
        made = new / file.relative_to(old)
        if not made.is_file():
            found.append(f"{file.stem}: {made} was not made")
            continue
        before = dict(leaves(json.loads(file.read_text(encoding="utf-8"))))
        after = dict(leaves(json.loads(made.read_text(encoding="utf-8"))))
        missing = sorted(key for key in before.keys() - after.keys() if not excused(key, after))
        found += [f"{file.stem}: {key} is gone" for key in missing]
        watched = WATCHED.get(file.stem, before.keys() if file.stem in EXACT else [])
        for key in watched:
            if key in before and key in after:
                line = disagreement(file.stem, key, before[key], after[key])
                found += [line] if line else []
    return found


if __name__ == "__main__":
    problems = compare(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\n".join(problems) or "metrics agree")
    sys.exit(1 if problems else 0)
