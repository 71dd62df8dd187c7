"""Which malloc? Training and decoding on a CPU under glibc's, tcmalloc and jemalloc.

    apt-get install libtcmalloc-minimal4 libjemalloc2
    python -m tests.benchmarks.allocator MODEL --steps 40 --out metrics/tables/allocator.csv

MODEL is a folder with a base model, such as `python -m tests.real_base` makes. PyTorch asks malloc
for every tensor, aligned to 64 bytes; glibc cuts what it finds to that, and the left-over pieces
grow in number. So a process trains with rows of varied lengths first, then decodes: what a stage
does. Each allocator has its own processes, in turn; the fastest of each counts. The losses of all
steps must be the same to the bit.
"""

import json
import os
import random
import subprocess
import sys
import time
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch

from stages.rlhf import runtime
from stages.rlhf.chat import Codec
from stages.rlhf.config.models import GenerationScale, Lora
from stages.rlhf.decoding.generation import generate_all
from stages.rlhf.model.roles import Roles
from stages.rlhf.model.sequences import decoder_of
from stages.rlhf.model.store import load_causal_lm, load_tokenizer
from tests.benchmarks.process_memory import memory

ALLOCATORS = {"glibc": None, "tcmalloc": "tcmalloc_minimal", "jemalloc": "jemalloc"}
TOKENS, SHORTEST, LONGEST = 2048, 64, 400  # of a step, and of its rows
ROWS, NEW = 64, 32  # decoded
ADAPTER = "measured"


def measured(model: Path, steps: int) -> dict[str, Any]:
    """Figures of this process: seconds of a step, early and late, and of decoding; MiB."""
    runtime.start(2, 0, "allocator")
    codec = Codec(load_tokenizer(model))
    roles = Roles(load_causal_lm(model, "bfloat16"), Lora(r=16, alpha=32), False)
    roles.add(ADAPTER)
    rng, times, losses = random.Random(0), [], []
    words = len(codec.tokenizer)
    with roles.use(ADAPTER, train=True) as used:
        for _ in range(steps):
            start = time.perf_counter()
            length = rng.randint(SHORTEST, LONGEST)
            ids = torch.randint(words, (TOKENS // length, length))
            states = decoder_of(used)(input_ids=ids, use_cache=False).last_hidden_state
            loss = states.float().pow(2).mean()
            loss.backward()
            losses.append(loss.item())
            times.append(time.perf_counter() - start)
    prompts = [[rng.randrange(words) for _ in range(rng.randint(16, 96))] for _ in range(ROWS)]
    start = time.perf_counter()
    with roles.use(ADAPTER) as used:
        generate_all(used, prompts, codec, NEW, GenerationScale(batch_size=ROWS, engine="koqa"))
    decode, part = time.perf_counter() - start, max(1, steps // 4)
    return {
        "first_steps_s": sum(times[:part]) / part,
        "last_steps_s": sum(times[-part:]) / part,
        "decode_s": decode,
        "peak_mib": memory("VmHWM"),
        "losses": losses,
    }


def run(name: str, library: str | None, model: Path, steps: int) -> dict[str, Any]:
    """The same of a process under an allocator. Raises ValueError where it is not installed."""
    environment = dict(os.environ)
    if library:
        found = find_library(library)
        if not found:
            raise ValueError(f"{name}: lib{library} is not installed")
        environment["LD_PRELOAD"] = found
    command = [sys.executable, "-m", "tests.benchmarks.allocator", str(model)]
    done = subprocess.run(
        [*command, "--steps", str(steps), "--here"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


@click.command(help=__doc__)
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--steps", default=40, show_default=True)
@click.option("--rounds", default=2, show_default=True)
@click.option("--here", is_flag=True, hidden=True)
@click.option("--out", type=click.Path(path_type=Path), help="A CSV of the table.")
def main(model: Path, steps: int, rounds: int, here: bool, out: Path | None) -> None:
    """Measure every allocator."""
    if here:
        click.echo(json.dumps(measured(model, steps)))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ALLOCATORS}
    for _ in range(rounds):
        for name, library in ALLOCATORS.items():
            found[name].append(run(name, library, model, steps))
            shown = {k: round(v, 3) for k, v in found[name][-1].items() if k != "losses"}
            click.echo(f"{name}: {shown}")
    losses = [own.pop("losses") for each in found.values() for own in each]
    if any(own != losses[0] for own in losses):
        raise click.ClickException("losses differ between allocators")
    table = pd.DataFrame({name: pd.DataFrame(each).min() for name, each in found.items()}).T
    for key in ("last_steps_s", "decode_s", "peak_mib"):
        table[f"{key} of glibc's"] = table[key] / table[key]["glibc"]
    click.echo(table.to_string(float_format="{:.3f}".format))
    if out:
        table.to_csv(out, index_label="allocator", float_format="%.4g")


if __name__ == "__main__":
    main()
