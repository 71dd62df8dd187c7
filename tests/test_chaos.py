"""Six kills, one in every stage that goes on; tests/chaos.py gives as many as one likes."""

from pathlib import Path

import pytest

from tests.chaos import DRIVERS, STAGES, chaos


@pytest.mark.slow
def test_killed_anywhere_the_pipeline_comes_to_the_same_lock(tmp_path: Path) -> None:
    report = chaos(tmp_path, kills=6, seed=0)
    assert [kill["stage"] for kill in report.kills] == list(STAGES)
    assert {kill["under"] for kill in report.kills} == set(DRIVERS)
    assert report.from_zero == []
    assert report.went_on > 0
    assert report.same_lock
