"""Finished experiments and all their metrics; `dvc.api.exp_show` has only the headlines."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dvc.api
from dvc.exceptions import DvcException, PathMissingError

from stages.rlhf.records import details_file

WORKSPACE = "workspace"  # exp_show's name for the working tree


def finished(root: Path = Path()) -> list[dict[str, Any]]:
    """Rows of exp_show: the workspace, HEAD and all finished experiments on it.

    Raises ValueError outside a repository of git and DVC.
    """
    try:
        shown = dvc.api.exp_show(str(root))
    except DvcException as error:
        raise ValueError(
            f"{root.resolve()}: no experiments can be read ({error}); run this at the root of a"
            " git repository that has DVC set up"
        ) from error
    return [row for row in shown if row["State"] in (None, "Success")]


def all_metrics(stage: str, rev: str = WORKSPACE, root: Path = Path()) -> dict[str, Any] | None:
    """metrics/details/<stage>.json at a revision, else metrics/<stage>.json, else None."""
    headline = Path("metrics") / f"{stage}.json"
    for path in (details_file(headline), headline):
        text = _read(path, rev, root)
        if text is not None:
            found: dict[str, Any] = json.loads(text)
            return found
    return None


def _read(path: Path, rev: str, root: Path) -> str | None:
    try:
        if rev == WORKSPACE:
            return (root / path).read_text(encoding="utf-8")
        text: str = dvc.api.read(path.as_posix(), str(root), rev)
    except (FileNotFoundError, PathMissingError):
        return None
    return text


def value(metrics: Mapping[str, Any] | None, address: str) -> Any:
    """The metric at a dotted address; None if there is none."""
    found: Any = metrics
    for key in address.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
