"""Whether a stage fits a card: with all weights on it, with a share of them, or not at all.

A hub model's config.json comes from the hub cache, or is downloaded once. Nothing is measured, and
nothing of DVC is imported: stages ask this on machines that have none.
"""

import json
import os
from collections.abc import Mapping
from typing import NamedTuple

import torch

from stages.rlhf.config.whole import Params
from stages.rlhf.hub import fetch
from stages.rlhf.plan.footprint import GIB, Bytes, Shape, memory, shardable, spread, weight_size

PROCESS = {"cpu": 0.6, "cuda": 0.8}  # GiB of Python, torch and CUDA without any model
REDUCED_BY = {
    "weights": "dtype: bfloat16 or nf4, or another `model`",
    "adapters": "models.{model}.lora.r, rm.members",
    "training": "models.{model}.lora.r, or sft.method: lora",
    "activations": "models.{model}.{stage}.{micro}",
    "tile": "nothing: it is small",
    "decoding": "models.{model}.{batch}, max_answer_tokens",
}
WHOLE, SHARD = "whole", "shard"


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


def available_memory() -> float:
    """GiB of memory of the first GPU, or of a machine without one."""
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory / GIB)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def needed(parts: Bytes, process: float) -> float:
    """GiB of a process with a stage's bytes."""
    return process + sum(parts.values()) / GIB


def too_much(needs: Mapping[str, Bytes], process: float, limit: float, params: Params) -> list[str]:
    """A message per stage that exceeds `limit` GiB: its largest item, and what to change."""
    found = []
    for stage, parts in needs.items():
        need = needed(parts, process)
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


class Fit(NamedTuple):
    """WHOLE, or SHARD; or neither, and then why."""

    how: str = ""
    problem: str = ""


def fit(
    stage: str,
    shape: Shape,
    params: Params,
    limit: float,
    processes: int = 1,
    cards: int | None = None,
) -> Fit:
    """How a stage fits by so many processes, with a card of `limit` GiB each.

    `cards` of one machine may share the weights; None: one for each process. Of a sharded stage
    that does not fit, the message counts a share of the weights; of one that is whole, it says how
    many cards would do, up to eight.
    """
    parts, process = memory(shape, params, "cuda", processes)[stage], PROCESS["cuda"]
    if needed(parts, process) <= limit:
        return Fit(WHOLE)
    cards = processes if cards is None else cards
    shared = {
        count: spread(parts, shape, weight_size(params.base_model), count)
        for count in ({cards} if cards > 1 else (2, 4, 8))
        if shardable(params)
    }
    enough = [count for count, share in shared.items() if needed(share, process) <= limit]
    if cards > 1 and enough:
        return Fit(SHARD)
    problem = too_much({stage: shared.get(cards, parts)}, process, limit, params)[0]
    return Fit(problem=problem + (f", or KOQA_PROCESSES={enough[0]}" if enough else ""))
