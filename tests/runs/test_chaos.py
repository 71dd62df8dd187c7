"""A kill in every training stage. Longer: runs/chaos.py."""

from pathlib import Path

import pytest

from tests.runs.chaos import DRIVERS, STAGES, chaos


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_anywhere_the_pipeline_comes_to_the_same_lock(uncut: Path, tmp_path: Path) -> None:
    report = chaos(tmp_path, uncut, kills=len(STAGES), seed=0)
    assert [kill["stage"] for kill in report.kills] == list(STAGES)
    assert {kill["under"] for kill in report.kills} == set(DRIVERS)
    assert report.from_zero == []
    assert report.went_on > 0
    assert report.same_lock
