"""What a GPU shows of this code, within ten minutes: tests, rivals in turn, memory beside the plan.

    bash tests/gpu/run.sh OUT                 # on the machine with the GPU
    python -m tests.gpu.run OUT --steps decode sft

Needs no network. Beside the rest of pyproject.toml, `trl==1.12.0` in build/trl112 (its wheel,
unpacked: `pip install --no-deps --target build/trl112 trl==1.12.0`); without it the step `ppo` says
so. Models have Llama-3.2-1B's architecture and random weights in bfloat16. Each step is a process
with a limit of its own; OUT/gpu.json is written after each, so that a cut leaves what was done.
"""

import ast
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import click
import torch
from transformers import LlamaForCausalLM

from stages.rlhf.config.whole import load_params
from stages.rlhf.plan.cluster import CARDS, REACHED, Cluster, Passes
from stages.rlhf.plan.footprint import GIB, Shape, memory
from stages.rlhf.precision import WEIGHTS, device
from tests.benchmarks.ppo_sides import SETTINGS, Setting, llama_config, plain_tokenizer
from tests.conftest import ROOT

SUITES = ("tests/gpu", "tests/model/test_quantized.py")
MODEL = "llama32-1b"


class Step(NamedTuple):
    """A command, its limit in seconds, and what is read from the lines that it prints."""

    command: list[str]
    limit: int
    read: Callable[[str], dict[str, Any]]


def tested(said: str) -> dict[str, Any]:
    """Pytest's last line: how many passed, failed, were skipped."""
    found = re.findall(r"(\d+) (passed|failed|skipped|errors?)", said.splitlines()[-1])
    return {word: int(count) for count, word in found}


def lines(said: str) -> dict[str, Any]:
    """The benchmark's own lines."""
    return {"said": [line for line in said.splitlines() if line.strip()]}


def shape_of(setting: Setting) -> Shape:
    """The setting's model, as the plan counts it."""
    return Shape(
        setting.hidden,
        setting.intermediate,
        setting.layers,
        setting.heads,
        setting.kv_heads or setting.heads,
        setting.head,
        setting.vocab,
        tied=True,
    )


def used(said: str, setting: Setting, device_name: str) -> dict[str, float | str]:
    """The share of a card's FLOPs that our update of PPO used, LoRA counted as such.

    Policy and value model, each epoch: a forward and a backward over prompt and answer, all of the
    cap. Nothing where the card is not in the plan's table, or no such line was printed.
    """
    card = next((card for card in CARDS if card in device_name.lower()), None)
    own = [line.strip() for line in said.splitlines() if "'side': 'ours'" in line]
    if card is None or not own:
        return {}
    passes = Passes(shape_of(setting), Cluster(CARDS[card], 1), 2, r=16)
    row, answers = setting.prompt[1] + setting.response, setting.batch * setting.response
    train = passes.train(setting.batch * row, answers, row).arithmetic * REACHED["arithmetic"]
    value = passes.train(setting.batch * row, 0, row).arithmetic * REACHED["arithmetic"]
    share = setting.epochs * (train + value) / ast.literal_eval(own[-1])["update_s"]
    return {"update_mfu": round(share, 3), "mfu_of": f"rows of {row} tokens, {card} bfloat16"}


def write_base(folder: Path, setting: Setting) -> Path:
    """A random Llama of the setting's shape with a tokenizer, as stage base would write it."""
    torch.manual_seed(0)
    with torch.device(device()):
        model = LlamaForCausalLM(llama_config(setting))
    model.to(WEIGHTS["bfloat16"]).save_pretrained(folder)
    plain_tokenizer(setting.vocab).save_pretrained(folder)
    return folder


def steps(base: Path, setting: str) -> dict[str, Step]:
    """By name, in the order in which they are worth having."""
    python = [sys.executable, "-m"]
    vocab = str(SETTINGS[setting].vocab)
    model = "llama-1b" if setting == "llama-1b" else "small"
    rm = ["tests.benchmarks.rm_vs_trl", "--lora", "--model", model, "--vocab", vocab]
    ppo = ["tests.benchmarks.ppo_vs_trl", "--setting", setting, "--quick"]
    sft = ["tests.benchmarks.sft_vs_trl", str(base), "--rounds", "1"]
    return {
        "tests": Step([*python, "pytest", "-q", "-m", "gpu", *SUITES], 150, tested),
        "decode": Step([*python, "tests.benchmarks.decode_vs_generate", str(base)], 60, lines),
        "sft": Step([*python, *sft], 80, lines),
        "rm": Step([*python, *rm, "--micro-batches", "40", "--steps", "3"], 100, lines),
        "ppo": Step([*python, *ppo], 200, lines),
    }


def planned() -> dict[str, float]:
    """GiB that `koqa plan` counts for the benchmarks' model, by stage, without the process."""
    params = load_params().model_copy(update={"model": MODEL})
    needs = memory(shape_of(SETTINGS["llama-1b"]), params, device())
    return {stage: round(sum(parts.values()) / GIB, 2) for stage, parts in needs.items()}


def run(step: Step) -> dict[str, Any]:
    """A step to its end, or to its limit: exit status, seconds, and what it said."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            step.command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=step.limit,
        )
        found = {"status": done.returncode, **step.read(done.stdout or "nothing")}
        if done.returncode:
            found["error"] = done.stderr.strip().splitlines()[-3:]
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode(errors="replace") if error.stdout else ""
        found = {"status": "cut off", **lines(said)}
    return {"seconds": round(time.monotonic() - started, 1), **found}


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--steps", "names", multiple=True, help="Only these; may be given several times.")
@click.option("--setting", default="llama-1b", type=click.Choice([*SETTINGS]), show_default=True)
def main(out: Path, names: tuple[str, ...], setting: str) -> None:
    """Run the steps, and write OUT/gpu.json after each."""
    out.mkdir(parents=True, exist_ok=True)
    cuda = torch.cuda.is_available()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
        "setting": setting,
        "planned_gib": planned(),
    }
    with TemporaryDirectory() as folder:
        todo = steps(write_base(Path(folder), SETTINGS[setting]), setting)
        unknown = [name for name in names if name not in todo]
        if unknown:
            raise click.ClickException(f"--steps {unknown[0]}: expected one of {', '.join(todo)}")
        for name, step in todo.items():
            if names and name not in names:
                continue
            found[name] = run(step)
            if name == "ppo":
                said = "\n".join(found[name].get("said", ()))
                found[name] |= used(said, SETTINGS[setting], found["device"])
            click.echo(f"{name}: {found[name]['seconds']} s, status {found[name]['status']}")
            text = json.dumps(found, indent=2, ensure_ascii=False)
            (out / "gpu.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
