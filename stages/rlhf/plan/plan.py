"""Estimates before a run: memory of every stage that loads a model, by purpose, and a rough time.

For the model in params.yaml; a hub model's config.json comes from the hub cache, or is downloaded
once.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.rlhf.config.whole import Params
from stages.rlhf.hub import fetch
from stages.rlhf.plan.calibration import measure
from stages.rlhf.plan.duration import durations
from stages.rlhf.plan.experiments import all_metrics
from stages.rlhf.plan.footprint import GIB, Bytes, Shape, Work, memory
from stages.rlhf.sizes import TEMPLATE_TOKENS

PROCESS = {"cpu": 0.6, "cuda": 0.8}  # GiB of Python, torch and CUDA without any model
REDUCED_BY = {
    "weights": "dtype: bfloat16, or another `model`",
    "adapters": "models.{model}.lora.r, rm.members",
    "training": "models.{model}.lora.r, or sft.method: lora",
    "activations": "models.{model}.{stage}.{micro}",
    "tile": "nothing: it is small",
    "decoding": "models.{model}.{batch}, max_answer_tokens",
}


def shape_of(params: Params) -> Shape:
    """The base model's shape. Raises ValueError if a hub model's config.json is unavailable."""
    base_model = params.base_model
    if base_model.architecture is not None:
        return Shape.made(base_model.architecture)
    folder = base_model.path or fetch(str(base_model.hub), base_model.revision, ("config.json",))
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{file}: no such file; expected the model's config")
    return Shape.of(json.loads(file.read_text(encoding="utf-8")))


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


def available_memory(device: str) -> float:
    """GiB of memory of the GPU, or of this machine."""
    if device == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory / GIB)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def too_much(needs: Mapping[str, Bytes], process: float, limit: float, params: Params) -> list[str]:
    """A message per stage that exceeds `limit` GiB: its largest item, and what to change."""
    found = []
    for stage, parts in needs.items():
        need = process + sum(parts.values()) / GIB
        if need <= limit:
            continue
        most = max(parts, key=parts.__getitem__)
        micro = "micro_batch_size" if stage == "sft" else "micro_batch_tokens"
        batch = "generate.batch_size"
        names = {"model": params.model, "stage": stage, "micro": micro, "batch": batch}
        found.append(
            f"{stage} needs {need:.1f} GiB, but {limit:.1f} are available; most of it is {most}"
            f" ({parts[most] / GIB:.1f} GiB): change {REDUCED_BY[most].format(**names)}"
        )
    return found


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
        available_memory(device) if limit is None else limit,
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
