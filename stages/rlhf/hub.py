"""Models from elsewhere are pointers on disk; their weights stay where they are.

{hub, revision, files} for the hub cache, {files} for a folder of this machine, which params name;
the pointer knows its files by their sha256, so that a moved folder is the same model.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import snapshot_download

from stages.rlhf.files import file_hash, files_of

POINTER = "pointer.json"
FILES = ("*.safetensors", "*.json", "*.txt", "*.model")  # no pickles, no code
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
OTHER_RUNTIMES = ("onnx/*", "openvino/*", "original/*")
NEEDED = {
    "config": ("config.json",),
    "weights": ("*.safetensors",),
    "tokenizer": ("tokenizer.json",),
}


def fetch(hub: str, revision: str | None, patterns: Sequence[str] = FILES) -> Path:
    """The folder of the hub cache that holds these files, downloaded if they are missing.

    Raises ValueError, in one sentence, if they are neither cached nor downloadable.
    """
    download = partial(
        snapshot_download,
        hub,
        revision=revision,
        allow_patterns=list(patterns),
        ignore_patterns=list(OTHER_RUNTIMES),
    )
    try:
        return Path(download())
    except (OSError, ValueError, httpx.HTTPError) as error:
        # listing a commit's files needs the hub, even if all of them are cached
        with suppress(OSError, ValueError):
            return Path(download(local_files_only=True))
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{hub} (revision {revision or 'latest'}) is not in the hub cache"
            f" and cannot be downloaded: {cause}"
        ) from error


def write_pointer(folder: Path, hub: str, revision: str | None) -> Path:
    """Write pointer.json; returns the cached folder it points to.

    Raises ValueError if the model is unavailable or has no safetensors.
    """
    cached = fetch(hub, revision)
    files = _model_files(cached)
    if not any(name.endswith(".safetensors") for name in files):
        raise ValueError(f"{hub}: no *.safetensors among its files {files_of(cached)}")
    _write(folder, {"hub": hub, "revision": cached.name, "files": files})
    return cached


def local_files(path: Path) -> dict[str, str]:
    """{name: sha256} of the files of a model in a folder of this machine.

    Raises ValueError if it is no folder, or lacks config, safetensors or tokenizer.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; expected a model's")
    refuse_pickles(path)
    files, found = _model_files(path), files_of(path)
    for kind, names in NEEDED.items():
        if not any(_matches(name, names) for name in files):
            shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
            raise ValueError(f"{path}: no {kind} ({' or '.join(names)}) among its files: {shown}")
    return files


def write_local_pointer(folder: Path, files: Mapping[str, str]) -> None:
    """Write pointer.json of a model whose folder is known to this machine's params alone."""
    _write(folder, {"files": dict(files)})


def _write(folder: Path, pointer: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / POINTER).write_text(json.dumps(pointer, indent=2) + "\n", encoding="utf-8")


def follow_pointer(folder: Path, path: Path | None = None) -> Path:
    """The folder that pointer.json stands for, after checking its files.

    `path`: where params say the model is, read if the pointer names no hub. Raises ValueError if
    that folder no longer has the files that the pointer was made from.
    """
    pointer = json.loads((folder / POINTER).read_text(encoding="utf-8"))
    if "hub" in pointer:
        where = fetch(pointer["hub"], pointer["revision"])
    elif path is not None:
        where = path
    else:
        raise ValueError(f"{folder / POINTER}: of a local model, but `model` in params has no path")
    for name, expected in pointer["files"].items():
        if not (where / name).is_file() or file_hash(where / name) != expected:
            raise ValueError(
                f"{where / name}: not the file that {folder / POINTER} names; if the model was"
                " changed on purpose, run `dvc repro --force check`"
            )
    return where


def _model_files(folder: Path) -> dict[str, str]:
    # there may be more files than a model needs; the pointer must not depend on them
    wanted = [n for n in files_of(folder) if _matches(n, FILES) and not _matches(n, OTHER_RUNTIMES)]
    return {name: file_hash(folder / name) for name in wanted}


def refuse_pickles(folder: Path) -> None:
    """Raise ValueError for pickled weights without safetensors next to them.

    With safetensors next to it a pickle is ignored: the hub cache often has both.
    """
    for name in files_of(folder):
        parent = (folder / name).parent
        if name.endswith(PICKLES) and not any(parent.glob("*.safetensors")):
            raise ValueError(f"{folder / name}: a pickle, never loaded; expected safetensors")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
