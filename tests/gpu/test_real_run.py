"""The GPU run's script, without a GPU: what it brings is whole, what it runs are all stages."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from stages.rlhf.hub import local_files
from tests.benchmarks import real
from tests.conftest import naming
from tests.gpu import real_run
from tests.model_fixtures import save_base
from tests.test_preprocess import question, world, write_source


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model in parts of 4 KiB."""
    monkeypatch.setattr(real_run, "PART", 4096)
    save_base(tmp_path / "model")
    real_run.split(tmp_path / "model", tmp_path / "parts")
    return tmp_path / "parts"


def test_a_model_in_parts_is_the_same_model(tmp_path: Path, parts: Path) -> None:
    assert len([*parts.glob("*.part")]) > 10
    assert max(file.stat().st_size for file in parts.glob("*.part")) <= 4096
    real_run.join(parts, tmp_path / "joined")
    assert local_files(tmp_path / "joined") == local_files(tmp_path / "model")


def test_what_is_not_whole_is_refused(tmp_path: Path, parts: Path) -> None:
    manifest = json.loads((parts / real_run.MANIFEST).read_text())
    part = parts / manifest["model.safetensors"]["parts"][1]
    before = part.read_bytes()
    part.write_bytes(before[:-1] + b"?")
    with pytest.raises(ValueError, match=naming("model.safetensors", "sha256")):
        real_run.join(parts, tmp_path / "joined")
    part.unlink()
    with pytest.raises(ValueError, match=naming(part, "model.safetensors")):
        real_run.join(parts, tmp_path / "joined")
    manifest["sub/model.safetensors"] = manifest.pop("model.safetensors")
    (parts / real_run.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=naming("sub/model.safetensors", "no path")):
        real_run.join(parts, tmp_path / "joined")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_stage_runs_and_the_figures_are_its(
    tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = world(120)
    rows["ppo"] = [{"question": question(3000 + n)} for n in range(40)]
    write_source(tmp_path / "rows", rows)
    entry = real_run.ENTRY
    small = {
        **{f"{entry}.{stage}.epochs": 1 for stage in ("sft", "rm", "judge")},
        **{f"{entry}.max_{of}_tokens": 48 for of in ("prompt", "answer")},
        f"{entry}.dtype": "float32",
        f"{entry}.ppo.updates": 1,
        "data.source": "jsonl",
        "ppo.value_warmup": 1,
        "ppo.require_gate": False,
        "preprocess.judge_groups_min": 10,
    }
    monkeypatch.setattr(real_run, "GPU", small)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    words = ["run", str(parts), str(tmp_path / "rows"), str(tmp_path / "out")]
    result = CliRunner().invoke(real_run.main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "real_run.json").read_text())
    stages = {"check", "preprocess", "eda", "base", "embedder", "index", "sft", "rm", "judge"}
    stages |= {"gate", "ppo"}
    assert set(found["seconds"]) == {*stages, "evaluate", "total"}
    assert {"sft", "rm", "judge", "ppo", "evaluate"} <= set(found["details"])
    assert found["details"]["evaluate"]["questions"] > 0
    assert found["device"]
    samples = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    assert len(samples) == found["details"]["evaluate"]["questions"]
    assert set(json.loads(samples[0])) >= {*real.MODELS} - {real.DEMONSTRATIONS}


def test_a_stage_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=naming("check", "no such key")):
        real_run.run_stages(tmp_path, {"sft.warmup_shere": 0.1})
