"""The script for a GPU machine, its steps and what it writes, without a GPU."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.benchmarks.ppo_sides import SETTINGS
from tests.gpu import run


def python(code: str, limit: int = 60, read: Any = run.lines) -> run.Step:
    return run.Step([sys.executable, "-c", code], limit, read)


def test_a_step_tells_what_it_came_to() -> None:
    found = run.run(python("print('1.5 times')"))
    assert (found["status"], found["said"]) == (0, ["1.5 times"])
    found = run.run(python("raise ValueError('no card')"))
    assert found["status"] == 1
    assert found["error"][-1] == "ValueError: no card"


def test_a_step_that_takes_too_long_is_cut_off_with_what_it_said() -> None:
    found = run.run(python("import time; print('half', flush=True); time.sleep(60)", limit=3))
    assert (found["status"], found["said"]) == ("cut off", ["half"])
    assert found["seconds"] < 20


def test_pytests_last_line_is_counted() -> None:
    said = "....\n3 failed, 120 passed, 2 skipped in 9.87s\n"
    assert run.tested(said) == {"failed": 3, "passed": 120, "skipped": 2}


def test_what_was_done_before_a_cut_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(base: Path, setting: str) -> dict[str, run.Step]:
        assert (base / "model.safetensors").is_file()
        assert (base / "tokenizer.json").is_file()
        seen = f"import os; print(os.path.exists({str(tmp_path / 'gpu.json')!r}))"
        return {"first": python(seen), "second": python(seen), "third": python(seen)}

    monkeypatch.setattr(run, "steps", steps)
    words = [str(tmp_path), "--setting", "eos_off_32", "--steps", "first", "--steps", "third"]
    done = CliRunner().invoke(run.main, words)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert "second" not in found
    assert [found[name]["said"] for name in ("first", "third")] == [["False"], ["True"]]
    assert found["planned_gib"]["sft"] > 2
    done = CliRunner().invoke(run.main, [str(tmp_path), "--setting", "wide", "--steps", "fourth"])
    assert done.exit_code == 1
    assert "fourth" in done.output


def test_all_steps_fit_ten_minutes() -> None:
    found = run.steps(Path("base"), "llama-1b")
    assert list(found) == ["tests", "decode", "sft", "rm", "ppo"]
    assert sum(step.limit for step in found.values()) <= 600
    assert SETTINGS["llama-1b"].vocab == 128_256
    for step in found.values():
        assert step.command[:2] == [sys.executable, "-m"]


def test_the_share_of_a_cards_flops() -> None:
    setting = SETTINGS["llama-1b"]
    said = "  {'side': 'TRL patched', 'update_s': 1.0}\n  {'side': 'ours', 'update_s': 4.0}"
    found = run.used(said, setting, "NVIDIA H100 80GB HBM3")
    tokens = setting.epochs * setting.batch * 384
    decoder = 16 * (2048 * 2048 * 2 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    least = tokens * 2 * 4 * decoder / 989e12 / 4.0  # of policy and value; no head, no attention
    assert least < found["update_mfu"] < 1.4 * least
    assert found["mfu_of"] == "rows of 384 tokens, h100 bfloat16"
    assert run.used(said, setting, "CPU") == {}
    assert run.used("nothing", setting, "NVIDIA H100") == {}
