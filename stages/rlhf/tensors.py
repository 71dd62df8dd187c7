"""Tensors from a file: safetensors only, which cannot contain code."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, by name. Raises ValueError if it is missing or not safetensors."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected safetensors")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not safetensors: {error}") from error
