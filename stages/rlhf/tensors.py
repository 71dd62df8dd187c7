"""Tensors from a file: safetensors alone, which hold no code."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name. Raises ValueError where it is missing or something else."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; safetensors were expected")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not safetensors: {error}") from error
