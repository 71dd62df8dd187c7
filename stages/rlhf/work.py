"""Where a stage keeps what it must not lose: outside its outs, which DVC removes before a run.

    $KOQA_WORK/<stage>/<fingerprint>, or .work/ beside the repository, also for the copies of it in
    which DVC runs queued experiments

The fingerprint is of params, inputs and code, so that only the very same work is gone on with.
Nothing here is removed by itself: `rm -r .work` when no run is going on.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from stages.rlhf.hub import file_hash

CODE = Path(__file__).parents[1]
EXPERIMENTS = Path(".dvc") / "tmp" / "exps"  # DVC's copies of the repository lie below it


def root() -> Path:
    """The folder of all work folders."""
    if os.environ.get("KOQA_WORK"):
        return Path(os.environ["KOQA_WORK"])
    here = Path.cwd()
    for parent in here.parents:
        if here.is_relative_to(parent / EXPERIMENTS):
            return parent / ".work"
    return here / ".work"


def folder(stage: str, params: Iterable[Any], inputs: Iterable[Path]) -> Path:
    """The work folder of a stage's run with these params (plain values) and input files."""
    digest = hashlib.sha256()
    digest.update(json.dumps([torch.__version__, *params], sort_keys=True, default=str).encode())
    for path in inputs:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(f"{file.name}:{file_hash(file)}\n".encode())
    for file in sorted([*CODE.rglob("*.py"), *CODE.rglob("*.jinja")]):
        digest.update(f"{file.relative_to(CODE).as_posix()}:{file_hash(file)}\n".encode())
    return root() / stage / digest.hexdigest()[:16]
