"""Hub models are pointers on disk: repository, commit sha, file hashes; weights stay cached."""

import json
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import httpx
from huggingface_hub import snapshot_download

from stages.rlhf.files import file_hash, files_of

POINTER = "pointer.json"
FILES = ("*.safetensors", "*.json", "*.txt", "*.model")  # no pickles, no code
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
OTHER_RUNTIMES = ("onnx/*", "openvino/*", "original/*")


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
    # the cache may hold more files than we requested; the pointer must not depend on that
    wanted = [n for n in files_of(cached) if _matches(n, FILES) and not _matches(n, OTHER_RUNTIMES)]
    files = {name: file_hash(cached / name) for name in wanted}
    if not any(name.endswith(".safetensors") for name in files):
        raise ValueError(f"{hub}: no *.safetensors among its files {files_of(cached)}")
    pointer = {"hub": hub, "revision": cached.name, "files": files}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / POINTER).write_text(json.dumps(pointer, indent=2) + "\n", encoding="utf-8")
    return cached


def follow_pointer(folder: Path) -> Path:
    """The cached folder that pointer.json names, after checking its files.

    Raises ValueError if the cache no longer has the files the pointer was made from.
    """
    pointer = json.loads((folder / POINTER).read_text(encoding="utf-8"))
    cached = fetch(pointer["hub"], pointer["revision"])
    for name, expected in pointer["files"].items():
        if not (cached / name).is_file() or file_hash(cached / name) != expected:
            raise ValueError(f"{cached / name}: not the file that {folder / POINTER} names")
    return cached


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
