"""Estimates before a run: memory of every stage that loads a model, by purpose, and a rough time.

For the model in params.yaml.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.rlhf.config.whole import Params
from stages.rlhf.plan.calibration import measure
from stages.rlhf.plan.duration import durations
from stages.rlhf.plan.experiments import all_metrics
from stages.rlhf.plan.fits import PROCESS, available_memory, shape_of, too_much
from stages.rlhf.plan.footprint import GIB, Bytes, Shape, Work, memory
from stages.rlhf.sizes import TEMPLATE_TOKENS


def work_of(root: Path = Path()) -> Work:
    """From the metrics of preprocess below `root`. Raises ValueError if they are missing."""
    found = all_metrics("preprocess", root=root)
    if found is None:
        raise ValueError("metrics/preprocess.json: no such file; run `dvc repro preprocess` first")
    rows, tokens = {part: found[part]["rows"] for part in ("sft", "rm", "ppo")}, found["tokens"]
    return Work(
        rows["sft"]["train"],
        rows["rm"]["train"],
        rows["rm"].get("judge_train", 0),
        rows["ppo"]["validation"],
        rows["sft"]["test"],
        rows["sft"]["validation"],
        rows["rm"]["validation"],
        5,
        tokens["question"]["p50"] + TEMPLATE_TOKENS / 2,
        tokens["sft_answer"]["p50"],
        tokens["sft_answer"]["p99"],
    )


@dataclass(frozen=True)
class Plan:
    """What every stage needs on this machine."""

    params: Params
    shape: Shape
    needs: Mapping[str, Bytes]
    seconds: Mapping[str, float]
    process: float  # GiB without any model
    limit: float  # GiB available

    @property
    def problems(self) -> list[str]:
        """A message per stage that does not fit."""
        return too_much(self.needs, self.process, self.limit, self.params)


def make_plan(params: Params, limit: float | None = None) -> Plan:
    """Measure this machine for some seconds, and estimate. `limit` in GiB; None: what is available.

    Raises ValueError if preprocess has not run, or a hub model's config.json is unavailable.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape, work = shape_of(params), work_of()
    torch.set_num_threads(params.threads)
    return Plan(
        params,
        shape,
        memory(shape, params, device),
        durations(shape, params, work, measure(shape, params.base_model)),
        PROCESS[device],
        available_memory() if limit is None else limit,
    )


def report(plan: Plan) -> str:
    """The model's size, a table with one line per stage, and whether it fits."""
    shape = plan.shape
    lines = [
        f"{plan.params.model}: {shape.parameters / 1e6:,.1f} M parameters,"
        f" {shape.lora(plan.params.base_model.lora.r) / 1e6:,.2f} M per adapter"
    ]
    kinds = list(dict.fromkeys(kind for parts in plan.needs.values() for kind in parts))
    header = [*kinds, "all", "minutes"]
    lines.append(f"{'GiB':10}" + "".join(f"{kind:>13}" for kind in header))
    for stage, parts in plan.needs.items():
        cells = [f"{parts[k] / GIB:.2f}" if k in parts else "–" for k in kinds]
        cells.append(f"{plan.process + sum(parts.values()) / GIB:.2f}")
        cells.append(f"{plan.seconds[stage] / 60:.1f}")
        lines.append(f"{stage:10}" + "".join(f"{cell:>13}" for cell in cells))
    fits = "Does not fit" if plan.problems else "Fits"
    lines.append(
        f"{fits} {plan.limit:.1f} GiB. Minutes are of this machine as busy as it is now: two layers"
        " of these widths were timed."
    )
    return "\n".join(lines)
