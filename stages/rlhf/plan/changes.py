"""What changed between a git revision and the workspace, as DVC reads both: `koqa report`.

Headlines (`metrics/<stage>.json`), their 95% intervals (`metrics/details/<stage>.json`), the gates
of `evaluate`, and params. DVC leaves out a metric that is null.
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import NoSCM, RevError, resolve_rev

from stages.rlhf.records import details_file

WORKSPACE = "workspace"  # DVC's name of the working tree
MAIN = ("main", "origin/main")
# in the order of interest; stages that are not named follow
STAGES = ("evaluate", "ppo", "gate", "rm", "judge", "sft", "base", "preprocess", "eda")
LOW, HIGH = "_ci_low", "_ci_high"
GATES = "gates."
EMBEDDER = "embedder_sha256"
REASON = "_reason"

Scalar = bool | int | float | str
Files = Mapping[str, Mapping[str, Mapping[str, Any]]]  # file -> key -> "old", "new"


class Value(NamedTuple):
    """A metric or param, with its 95% interval where it has one."""

    value: Scalar
    interval: tuple[float, float] | None = None


class Change(NamedTuple):
    """`key` of a stage, or of a file of params, before and after; None where it is absent."""

    source: str
    key: str
    old: Value | None
    new: Value | None

    @property
    def same(self) -> bool:
        """Whether the value is the same; its interval may be another."""
        return (self.old and self.old.value) == (self.new and self.new.value)


class Changes(NamedTuple):
    """All that is compared. `headlines` and `gates` hold the unchanged, too; `params` does not."""

    base: str  # as the user names it
    commit: str  # the full hash of base
    headlines: list[Change]
    gates: list[Change]
    unknown_gates: dict[str, str]  # gate of the workspace -> reason
    params: list[Change]
    same_embedder: bool  # else cosines cannot be compared
    missing: list[str]  # metrics files that dvc.yaml declares and the workspace lacks
    root: Path  # of the repository


def changes(base: str | None = None, root: Path = Path()) -> Changes:
    """Read `base` (default: the merge base with `main`, else HEAD) and the workspace of `root`.

    Raises ValueError outside a repository of git and DVC, for an unknown revision, for files that
    cannot be read, and where the workspace has no metrics.
    """
    try:
        repo = Repo(str(root))
    except DvcException as error:
        raise ValueError(f"{root.resolve()}: {error}; run this at the root of koqa") from error
    with repo:
        if isinstance(repo.scm, NoSCM) or repo.scm.no_commits:
            raise ValueError(f"{root.resolve()}: no commit of git to compare with")
        name, rev = (base, base) if base else _merge_base(root)
        try:
            commit = resolve_rev(repo.scm, rev)
        except RevError as error:
            raise ValueError(
                f"unknown revision {rev!r}; expected a commit, branch or tag of this clone, or an"
                " experiment of DVC (git fetch brings those of the remote)"
            ) from error
        top = Path(repo.root_dir)
        shown, missing = _diff(repo.metrics, commit, all=True)
        targets = [str(top / details_file(Path(file))) for file in shown]
        details, _ = _diff(repo.metrics, commit, all=True, targets=targets) if targets else ({}, [])
        params, _ = _diff(repo.params, commit)
    headlines = _headlines(shown, details)
    if not any(change.new for change in headlines):
        raise ValueError(f"{root.resolve()}: no metrics in metrics/*.json; run dvc repro first")
    evaluate = {
        **shown.get("metrics/evaluate.json", {}),
        **details.get("metrics/details/evaluate.json", {}),
    }
    embedder = evaluate.get(EMBEDDER, {})
    return Changes(
        name,
        commit,
        headlines,
        _changes("evaluate", {k: v for k, v in evaluate.items() if _is_gate(k)}),
        {
            key.removeprefix(GATES).removesuffix(REASON): str(pair["new"])
            for key, pair in evaluate.items()
            if key.startswith(GATES) and key.endswith(REASON) and pair["new"] is not None
        },
        [change for file in sorted(params) for change in _changes(file, params[file])],
        None in embedder.values() or embedder.get("old") == embedder.get("new"),
        missing,
        top,
    )


def _merge_base(root: Path) -> tuple[str, str]:
    """Name and commit where this branch left `main`; HEAD where there is no such branch."""
    for branch in MAIN:
        found = subprocess.run(
            ["git", "merge-base", "HEAD", branch], cwd=root, capture_output=True, text=True
        )
        if found.returncode == 0:
            return f"merge base with {branch}", found.stdout.strip()
    return "HEAD", "HEAD"


def _diff(reader: Any, commit: str, **options: Any) -> tuple[Files, list[str]]:
    """What DVC's metrics or params differ in, and the files that the workspace lacks."""
    found = reader.diff(commit, WORKSPACE, **options)
    missing = []
    for rev, errors in found.get("errors", {}).items():
        where = "the workspace" if rev == WORKSPACE else rev
        if isinstance(errors, Exception):
            raise ValueError(f"{where}: DVC cannot read it ({errors})") from errors
        for file, error in errors.items():
            if not isinstance(error, FileNotFoundError):
                raise ValueError(f"{file} of {where}: {error}") from error
            if rev == WORKSPACE:
                missing.append(file)
    return found.get("diff", {}), missing


def _headlines(shown: Files, details: Files) -> list[Change]:
    """Every headline of every stage, with the interval that the headline or the details hold."""
    found = []
    for file in sorted(shown, key=_rank):
        stage = Path(file).stem
        more = {**details.get(str(details_file(Path(file))), {}), **shown[file]}
        inner = {
            key: pair
            for key, pair in sorted(shown[file].items())
            if not (key.startswith(GATES) or key.endswith((LOW, HIGH)))
        }
        for change in _changes(stage, inner):
            old, new = (_interval(more, change.key, side) for side in ("old", "new"))
            found.append(
                change._replace(
                    old=change.old and change.old._replace(interval=old),
                    new=change.new and change.new._replace(interval=new),
                )
            )
    return found


def _rank(file: str) -> tuple[int, str]:
    stage = Path(file).stem
    return (STAGES.index(stage) if stage in STAGES else len(STAGES)), stage


def _is_gate(key: str) -> bool:
    return key.startswith(GATES) and not key.endswith(REASON)


def _interval(pairs: Mapping[str, Any], key: str, side: str) -> tuple[float, float] | None:
    low, high = (pairs.get(f"{key}{end}", {}).get(side) for end in (LOW, HIGH))
    return None if low is None or high is None else (low, high)


def _changes(source: str, pairs: Mapping[str, Mapping[str, Any]]) -> list[Change]:
    def value(found: Any) -> Value | None:
        return None if found is None else Value(found)

    return [
        Change(source, key, value(pair["old"]), value(pair["new"]))
        for key, pair in sorted(pairs.items())
    ]
