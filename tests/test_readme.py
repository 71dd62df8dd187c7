"""The README says what the committed metrics say, and its commands are the ones CI runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import readme as written
from tests.benchmarks import experiments, rivals
from tests.conftest import naming, staged_json
from tests.readme import ROOT, TABLES, due


@pytest.mark.parametrize("name", TABLES)
def test_figures_are_those_of_the_metrics_in_git(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the next commit's: README.md as it lies here, metrics as they are staged.

    Not metrics as they lie here: `dvc repro` on another processor moves their last digits.
    """
    monkeypatch.setattr(written, "metrics", lambda stage: staged_json(f"metrics/{stage}.json"))
    readme = (ROOT / "README.md").read_text("utf-8")
    if not due(name):
        assert f"<!-- {name} -->" not in readme, f"block {name} stands on a table that is not there"
        return
    block = f"<!-- {name} -->\n{TABLES[name]()}\n<!-- /{name} -->"
    assert block in readme, f"run `python -m tests.readme`: block {name} is out of date"


def test_the_two_commands_stand_in_readme_and_in_ci() -> None:
    readme, ci = ((ROOT / name).read_text("utf-8") for name in ("README.md", ".ci/run"))
    assert 'pip install -e ".[test]" && dvc repro' in readme
    assert 'pip install -q -e ".[test]" && dvc repro' in ci
    assert "\npytest\n" in readme
    assert "\npytest\n" in ci


FIGURES = {  # of every run made up below, by key; 0.5 where none is named
    "questions": 100,
    "ppo.kl": 0.25,
    "ppo.best_update": 30.0,
    "ppo.skipped": "False",
    "gate.passed": "True",
    **{f"gates.{gate}": "True" for gate in ("ppo_beats_sft", "no_repetition", "ends", "rm_ok")},
    "gates.length_in_band": "True",
    "sft.unseen_wording.exact": 0.8,
    "ppo.unseen_wording.exact": 0.9,
    "sft.unseen_wording.chrf": 91.26,
}


def made_up(folder: Path, name: str, **changed: Mapping[str, Any]) -> None:
    """A table of experiments whose rows hold FIGURES, with changes by row."""
    columns = experiments.TABLES[name].read({"row": {}}, {})["row"]
    cells = {
        row: {key: {**FIGURES, **changed.get(row, {})}.get(key, 0.5) for key in columns}
        for row in experiments.TABLES[name].rows
    }
    write(folder, name, cells)


def write(folder: Path, name: str, cells: dict[str, rivals.Cells]) -> None:
    file = folder / "metrics" / "tables" / f"{name}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    experiments.write(file, experiments.TABLES[name], "abc", cells)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the repository's root."""
    monkeypatch.setattr(written, "ROOT", tmp_path)
    return tmp_path


def test_seeds_are_shown_and_pooled(made: Path) -> None:
    shut = {"gates.ends": "False", "ppo.unseen_wording.exact": 0.7, "ppo.never_asked.contains": 0.6}
    decided = {"ppo_vs_sft.all.ties": 90, "ppo_vs_sft.all.win_rate_decided": 1.0}
    alike = {"ppo_vs_sft.all.ties": 70, "ppo_vs_sft.all.win_rate_decided": 0.6}
    same = {"ppo_vs_sft.all.ties": 100, "ppo_vs_sft.all.win_rate_decided": None}
    rows = {f"seed {seed}": alike for seed in (0, 1, 2)}
    made_up(made, "seeds", **rows | {"seed 3": same, "seed 4": shut | decided})
    lines = TABLES["seeds"]().splitlines()
    assert lines[3] == "| seed 0: sft | 0.500 | 91.3 | 0.800 | 0.500 | 0.500 | 0.500 | – | – | – |"
    assert lines[4].endswith("| 0.900 | 0.500 | 0.500 | 0.500 | 0.600 | 0.250 | 30 |")
    assert len(lines) == 2 + 5 * 3 + 2
    line = lines[-1]
    # SFT leaves .2 inexact; PPO .1 with four seeds and .3 with the fifth: .14 on average
    assert "removes 30 % of SFT's inexact answers on unseen wordings (-50 to 50 %)" in line
    assert "+0.0 (unseen wordings), +2.0 (never-asked facts), +0.0 (unseen endings)" in line
    # 3 x 30 decided at .6, none, and 10 at 1
    assert "prefers PPO on 0.640 of 100 decided questions; chrF does on 0.500" in line
    assert "All gates pass with 4 of 5 seeds" in line


def test_rivals_stand_beside_the_same_seeds(made: Path) -> None:
    far = {"ppo.unseen_wording.exact": 0.0}
    made_up(made, "seeds", **{"seed 3": far, "seed 4": far})
    keys = [f"{place}.{key}" for place in (rivals.ALL, *rivals.KINDS) for key in rivals.ANSWERS]
    keys += [
        f"{kind}.{key}_ppo_gain{end}"
        for kind in rivals.KINDS
        for key in rivals.GAINS
        for end in rivals.ENDS
    ]
    cells = {row: dict.fromkeys(keys, 0.1) for row in rivals.rows()}
    cells |= {rival: dict.fromkeys(keys, 0.2 + i / 10) for i, rival in enumerate(rivals.RIVALS)}
    write(made, "rivals", cells)
    lines = TABLES["rivals"]().splitlines()
    assert [line.split(" | ")[0] for line in lines if "0." in line] == [
        *("| sft", "| best_of_n", "| clean demonstrations", "| rank-1 answers", "| ppo"),
        *("| clean demonstrations", "| rank-1 answers"),
    ]
    assert lines[4].startswith("| clean demonstrations | 0.2 | 0.200 | 0.200 | 0.2 |")
    assert lines[5].startswith("| rank-1 answers | 0.3 | 0.300 |")
    assert lines[6].startswith("| ppo | 0.5 | 0.900 |")  # seeds 3 and 4 have no rivals
    assert lines[-3].startswith("| rank-1 answers | +0.3 [+0.3, +0.3] | +0.300 [+0.300, +0.300] |")
    assert lines[-1] == "Means of 3 seeds. Made at commit abc."


def test_control_says_what_came_of_it(made: Path) -> None:
    closed = {"gate.passed": "False", "gates.rm_ok": "False", "gates.ppo_beats_sft": "False"}
    skipped = {"ppo.skipped": "True", "ppo.skipped_reason": "no gain", "ppo.best_update": 0}
    made_up(made, "control", confounded=closed | skipped | {"ppo.kl": None})
    lines = TABLES["control"]().splitlines()
    assert lines[3].startswith("| default: ppo | 0.500 [0.500, 0.500] | 30 | 0.5 | 0.900 |")
    assert lines[5].startswith("| confounded: ppo | 0.500 [0.500, 0.500] | 0 |")
    assert lines[-3:] == [
        "Default: the gate opens; update 30 is kept; gates that failed: none.",
        "Confounded: the gate stays shut; SFT's weights are the result (no gain);"
        " gates that failed: ppo_beats_sft, rm_ok.",
        "Made at commit abc.",
    ]


def test_a_block_stands_in_the_readme_if_and_only_if_its_table_is_made(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "TABLES", {"seeds": TABLES["seeds"]})
    empty = "<!-- seeds -->\n\n<!-- /seeds -->"
    assert written.rendered("nothing") == "nothing"
    with pytest.raises(AssertionError, match=naming("README.md", "seeds")):
        written.rendered(empty)
    made_up(made, "seeds")
    with pytest.raises(AssertionError, match=naming("README.md", "seeds", 0)):
        written.rendered("nothing")
    assert TABLES["seeds"]() in written.rendered(empty)
