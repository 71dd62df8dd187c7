"""The real run on one GPU: a model brought in parts, every stage, the figures in one JSON.

    python -m tests.gpu.real_run parts MODEL PARTS        # where the model is
    python -m tests.gpu.real_run run PARTS DATA OUT       # where the GPU is

Neither needs a network, nor DVC: what must be installed is the rest of pyproject.toml. Parts are of
at most 48 MiB, for machines that take no larger files. real.yaml has the settings, GPU what differs
from two CPU cores; stages run as dvc.yaml says.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from ruamel.yaml import YAML

from stages.rlhf.files import file_hash
from stages.rlhf.hub import local_files
from tests.benchmarks import real
from tests.conftest import ROOT, write_params

PART = 48 * 2**20  # bytes
MANIFEST = "parts.json"
ENTRY = "models.gemma3-270m"
GPU = {  # more passes and larger batches than two cores could take in an hour
    f"{ENTRY}.sft.epochs": 2,
    f"{ENTRY}.rm.epochs": 3,
    f"{ENTRY}.judge.epochs": 3,
    f"{ENTRY}.ppo.updates": 60,
    f"{ENTRY}.ppo.batch_size": 64,
    f"{ENTRY}.generate.batch_size": 256,
}


def split(model: Path, parts: Path) -> None:
    """Write a model's files in parts, and MANIFEST: {file: {sha256, parts: [names]}}."""
    parts.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {}
    for name, digest in local_files(model).items():
        manifest[name] = {"sha256": digest, "parts": []}
        with (model / name).open("rb") as file:
            while chunk := file.read(PART):
                part = f"{hashlib.sha256(chunk).hexdigest()[:16]}.part"
                (parts / part).write_bytes(chunk)
                manifest[name]["parts"].append(part)
    (parts / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def join(parts: Path, model: Path) -> None:
    """The inverse. Raises ValueError where a part lacks, a name is none, or a hash is another."""
    manifest = json.loads((parts / MANIFEST).read_text(encoding="utf-8"))
    model.mkdir(parents=True, exist_ok=True)
    for name, whole in manifest.items():
        for own in (name, *whole["parts"]):
            if Path(own).name != own or own in {"", ".", ".."}:
                raise ValueError(f"{parts / MANIFEST}: {own!r}; expected a file's name, no path")
        with (model / name).open("wb") as file:
            for part in whole["parts"]:
                if not (parts / part).is_file():
                    raise ValueError(f"{parts / part}: no such part of {name}")
                file.write((parts / part).read_bytes())
        if file_hash(model / name) != whole["sha256"]:
            raise ValueError(f"{parts}: {name} has not the sha256 in {MANIFEST}")


def run_stages(folder: Path, params: Mapping[str, Any]) -> dict[str, float]:
    """Run every stage of dvc.yaml below `folder` by its own command; seconds of each.

    Raises ValueError with a stage's last line where it fails.
    """
    write_params(folder, **params)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KOQA_WORK": str(folder / ".work")}
    stages, seconds = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"], {}
    for name, stage in stages.items():
        if name == "sample":  # the data are given
            continue
        started = time.monotonic()
        command = [sys.executable, *stage["cmd"].split()[1:]]
        done = subprocess.run(
            command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
        )
        seconds[name] = round(time.monotonic() - started, 1)
        click.echo(f"{name}: {seconds[name]} s")
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"stage {name} ended with {done.returncode}: {last}")
    return seconds


def figures(folder: Path, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Card, versions, seconds and peaks by stage, and all metrics of the run."""
    cuda = torch.cuda.is_available()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
    }
    for kind in ("runtime", "details"):
        files = sorted((folder / "metrics" / kind).glob("*.json"))
        found[kind] = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    found["gate"] = json.loads((folder / "metrics" / "gate.json").read_text(encoding="utf-8"))
    return found


@click.group(help=__doc__)
def main() -> None:
    """Split a model, or run with one."""


@main.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("parts", type=click.Path(path_type=Path))
def parts(model: Path, parts: Path) -> None:
    """Write MODEL's files to PARTS."""
    split(model, parts)


@main.command()
@click.argument("parts", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True)
def run(parts: Path, data: Path, out: Path, seed: int) -> None:
    """Join PARTS, run all stages on DATA, write OUT/real_run.json and OUT/samples.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"koqa-real-{seed}"
    join(parts, folder / "model")
    plain = real.settings(data, folder / "model", seed)
    params = {key.removeprefix("stages/models.yaml:"): value for key, value in plain.items()}
    seconds = run_stages(folder, params | GPU)
    text = json.dumps(figures(folder, seconds), indent=2, ensure_ascii=False)
    (out / "real_run.json").write_text(text + "\n", encoding="utf-8")
    (out / "samples.jsonl").write_bytes((folder / real.SAMPLES).read_bytes())


if __name__ == "__main__":
    main()
