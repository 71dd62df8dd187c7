"""A kill in every stage that goes on, and two workers at once. More in runs/chaos.py."""

import subprocess
import time
from pathlib import Path

import pytest

from stages.rlhf.runs.checkpoints import log_of
from tests.conftest import write_params
from tests.runs.chaos import DRIVERS, DVC, PATIENCE, SMALL, STAGES, chaos, ours, repository, run


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_anywhere_the_pipeline_comes_to_the_same_lock(tmp_path: Path) -> None:
    report = chaos(tmp_path, kills=len(STAGES), seed=0)
    assert [kill["stage"] for kill in report.kills] == list(STAGES)
    assert {kill["under"] for kill in report.kills} == set(DRIVERS)
    assert report.from_zero == []
    assert report.went_on > 0
    assert report.same_lock


def git(folder: Path, *words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True).stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_workers_on_a_grid_share_its_sft(tmp_path: Path) -> None:
    """Both come to what each alone comes to, and what they share was computed once."""
    grid, alone = repository(tmp_path / "grid"), repository(tmp_path / "alone")
    given = "ppo.kl_coef=0.05,0.4"
    assert run(grid, *DVC, "exp", "run", "--queue", "-n", "grid", "-S", given, seconds="30") == 0
    assert run(grid, *DVC, "queue", "start", "-j", "2", seconds="30") == 0
    end = time.monotonic() + PATIENCE
    while any(True for _ in ours(grid)):
        assert time.monotonic() < end, "the queue did not run empty"
        time.sleep(1)
    for stage in STAGES[: STAGES.index("ppo")]:
        (folder,) = (grid / ".work" / stage).glob("*/done")
        begun = [told for told in log_of(folder.parent) if "from" in told]
        assert all(told["from"] == 0 for told in begun)
        assert len({told["checkpointer"] for told in begun}) == len(begun), (
            f"{stage} was begun twice"
        )
    assert len(list((grid / ".work" / "ppo").glob("*/done"))) == 2
    for name, kl_coef in (("grid-1", 0.05), ("grid-2", 0.4)):
        write_params(alone, **SMALL, **{"ppo.kl_coef": kl_coef})
        assert run(alone, *DVC, "repro", seconds="30") == 0
        (ref,) = (ref for ref in git(grid, "for-each-ref", "--format=%(refname)", "refs/exps")
                  .decode().split() if ref.endswith(f"/{name}"))  # fmt: skip
        assert git(grid, "show", f"{ref}:dvc.lock") == (alone / "dvc.lock").read_bytes(), name
