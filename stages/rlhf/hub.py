"""A hub model is a pointer on disk: repository, commit sha and file hashes; weights stay cached."""

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
    """The folder of the hub's cache that holds these files; downloaded where they are not there.

    Raises ValueError in one sentence where they cannot be had.
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
        # a commit's list of files is asked of the hub, even where the cache holds them all
        with suppress(OSError, ValueError):
            return Path(download(local_files_only=True))
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{hub} (revision {revision or 'latest'}) is not in the hub's cache"
            f" and cannot be downloaded: {cause}"
        ) from error


def write_pointer(folder: Path, hub: str, revision: str | None) -> Path:
    """Write pointer.json and return the cached folder that it points to.

    Raises ValueError where the model cannot be had, or holds no safetensors.
    """
    cached = fetch(hub, revision)
    # the cache may hold more of the repository than we asked for: two machines, one pointer
    wanted = [n for n in files_of(cached) if _matches(n, FILES) and not _matches(n, OTHER_RUNTIMES)]
    files = {name: file_hash(cached / name) for name in wanted}
    if not any(name.endswith(".safetensors") for name in files):
        raise ValueError(f"{hub}: no *.safetensors among its files {files_of(cached)}")
    pointer = {"hub": hub, "revision": cached.name, "files": files}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / POINTER).write_text(json.dumps(pointer, indent=2) + "\n", encoding="utf-8")
    return cached


def follow_pointer(folder: Path) -> Path:
    """The cached folder that pointer.json names, its files checked.

    Raises ValueError where the cache no longer holds what the pointer was made from.
    """
    pointer = json.loads((folder / POINTER).read_text(encoding="utf-8"))
    cached = fetch(pointer["hub"], pointer["revision"])
    for name, expected in pointer["files"].items():
        if not (cached / name).is_file() or file_hash(cached / name) != expected:
            raise ValueError(f"{cached / name}: not the file that {folder / POINTER} names")
    return cached


def refuse_pickles(folder: Path) -> None:
    """Raise ValueError where a pickle lies in the place of weights, with no safetensors beside it.

    Beside them it is passed over: the hub's cache often holds both.
    """
    for name in files_of(folder):
        place = (folder / name).parent
        if name.endswith(PICKLES) and not any(place.glob("*.safetensors")):
            raise ValueError(f"{folder / name}: a pickle, which is not read; safetensors expected")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
