"""The whole chain on the micro model, stage by stage, as dvc.yaml's commands run it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from stages.rlhf.files import RUN
from stages.rlhf.model import embedder, similarity
from stages.rlhf.records import read_jsonl
from stages.rlhf.reward.hard_negatives import MAKERS
from stages.rlhf.runs.provenance import declared_params
from tests.chain import STAGES, run_chain, run_stage
from tests.conftest import SMALL, write_params

LOCAL = "models.${model}.path"  # a place: stages depend on the files there, not on it
Chain = tuple[Path, dict[str, set[str]]]  # conftest's micro_chain


@pytest.mark.parametrize("stage", STAGES)
def test_stage_reads_no_param_it_does_not_declare(micro_chain: Chain, stage: str) -> None:
    declared = declared_params(STAGES[stage])
    undeclared = {
        key
        for key in micro_chain[1][stage]
        if not any(key == d or key.startswith(f"{d}.") for d in declared)
        and (key != LOCAL or "data/check/model.json" not in STAGES[stage]["deps"])
    }
    assert not undeclared, f"{stage} reads {undeclared}; dvc.yaml declares {declared}"


def test_files_are_exactly_these(micro_chain: Chain) -> None:
    files = {str(p.relative_to(micro_chain[0])) for p in micro_chain[0].rglob("*") if p.is_file()}
    model = {"config.json", "generation_config.json", "model.safetensors"}
    model |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    adapter = {"adapter_config.json", "adapter_model.safetensors", "model.json"}
    assert {f for f in files if f.startswith("data/base")} == {
        f"data/base/{f}" for f in {*model, RUN}
    }
    assert {f for f in files if f.startswith("data/sft")} == {
        f"data/sft/{f}" for f in {*model, "model.json", RUN}
    }
    assert {f for f in files if f.startswith("data/rm")} == {
        "data/rm/model.json",
        f"data/rm/{RUN}",
        "data/rm/reward.json",
        *(f"data/rm/reward0/{f}" for f in {*adapter - {"model.json"}, "head.safetensors"}),
    }
    assert {f for f in files if f.startswith("data/judge")} == {
        "data/judge/model.json",
        f"data/judge/{RUN}",
        "data/judge/reward.json",
        *(f"data/judge/judge0/{f}" for f in {*adapter - {"model.json"}, "head.safetensors"}),
    }
    figures = "9_score_length", "10_rank_correlation", "11_margins", "12_margins_corrected"
    assert {f for f in files if f.startswith("plots/rm")} == {
        f"plots/rm/{name}.{ending}"
        for name in (*figures, "reliability")
        for ending in ("png", "csv")
    }
    assert {f for f in files if f.startswith("data/ppo")} == {
        f"data/ppo/{RUN}",
        *(f"data/ppo/{which}/{f}" for which in ("best", "last") for f in adapter),
    }
    assert not {f for f in files if Path(f).suffix in {".bin", ".pt", ".pth", ".pkl"}}


def test_metrics_have_the_names_that_tools_rely_on(
    micro_chain: Chain,
) -> None:
    metrics = {
        p.stem: json.loads(p.read_text())
        for p in (micro_chain[0] / "metrics" / "details").glob("*.json")
    }
    stages = {"preprocess", "eda", "index", "base", "sft", "rm", "judge", "ppo", "evaluate"}
    assert set(metrics) == stages
    gate = json.loads((micro_chain[0] / "metrics" / "gate.json").read_text())["best_of_4"]
    assert {"loss", "eval_loss", "eos_rate"} <= set(metrics["sft"])
    ranking = {"accuracy", "accuracy_by_gap", "accuracy_by_kind", "margin_mean", "margin_std"}
    ranking |= {"p_margin_gt_0", "p_margin_gt_0_5", "kendall_tau", "spearman_rho", "top1"}
    ranking |= {"length_only_accuracy", "accuracy_length_matched", "length_correlation"}
    ranking |= {"length_correlation_given_rank", "ece"}
    intervals = {"accuracy_ci_low", "accuracy_ci_high", "kendall_tau_ci_low"}
    blocks = [metrics["rm"], *metrics["rm"]["by_kind"].values()]
    for block in blocks:
        assert ranking | intervals <= set(block)
        assert ranking | intervals <= set(block["length_corrected"])
    assert {"by_kind", "hard_negatives", "length_correction"} <= set(metrics["rm"])
    assert ranking | intervals <= set(metrics["judge"])
    intervals_of_gate = {"gain", "gain_ci_low", "gain_ci_high"}
    assert set(gate) - {"passed_reason"} == {
        *("questions", "sft", "best_of_4", "passed"),
        *intervals_of_gate,
    }
    judge = metrics["judge"]
    counts = judge["accuracy_above_length_ci_low"] > 0 and judge["accuracy_ci_low"] > max(
        0.5, 1 - judge["length_only_accuracy"]
    )
    assert gate["passed"] == (gate["gain_ci_low"] > 0 if counts else None)
    assert set(MAKERS) <= set(metrics["rm"]["hard_negatives"])
    assert set(metrics["rm"]["by_kind"]) == {"unseen_wording", "never_asked", "unseen_ending"}
    assert {"kl", "reward", "eos_rate", "best_update", "skipped"} <= set(metrics["ppo"])
    names = {"cosine", "euclidean_distance", "euclidean_similarity", "pearson", "chrf", "exact"}
    names |= {"chrf_plus_plus"}
    names |= {"contains", "wrong_fact_rate", "eos_rate", "repetition", "copy_rate", "length"}
    for model in ("base", "sft", "ppo", "best_of_n"):
        assert names | {"by_kind"} <= set(metrics["evaluate"][model])
    assert {"cosine", "percent"} <= set(metrics["evaluate"]["sft_gain"])
    assert {"embedder_sha256", "embedder"} <= set(metrics["evaluate"])
    assert set(metrics["evaluate"]["embedder"]) == {"klue_sts_spearman", "truncated_share"}
    rates = {"win_rate", "win_rate_decided", "win_rate_length_controlled"}
    assert rates <= set(metrics["evaluate"]["ppo_vs_sft"])
    gates = {"ppo_beats_sft", "no_repetition", "ends", "length_in_band", "rm_ok"}
    assert set(metrics["evaluate"]["gates"]) - {"rm_ok_reason"} == gates
    assert metrics["evaluate"]["gates"]["rm_ok"] == gate["passed"]
    assert (metrics["evaluate"]["ppo_vs_sft"]["win_rate"] is None) == (not counts)
    part = metrics["preprocess"]["sft"]
    assert part["read"] == part["kept"] + sum(part["rejected"].values())


def test_cosines_are_of_each_answer_and_its_reference(micro_chain: Chain) -> None:
    samples = [*read_jsonl(micro_chain[0] / "data" / "evaluate" / "samples.jsonl")]
    model = embedder.load(micro_chain[0] / "data" / "embedder")
    references = embedder.encode(model, [str(sample["reference"]) for sample in samples])
    for name in ("base", "sft", "ppo", "best_of_n"):
        answers = embedder.encode(model, [sample[name]["answer"] for sample in samples])
        found = [sample[name]["cosine"] for sample in samples]
        assert found == pytest.approx(similarity.cosine(answers, references), abs=1e-5), name


def test_headlines_are_few_and_details_hold_them(
    micro_chain: Chain,
) -> None:
    def leaves(found: Any, address: str = "") -> dict[str, Any]:
        if not isinstance(found, dict):
            return {address: found}
        parts = [leaves(value, f"{address}.{key}") for key, value in found.items()]
        return {key: value for part in parts for key, value in part.items()}

    folder, total = micro_chain[0] / "metrics", 0
    for file in sorted(folder.glob("*.json")):
        shown = leaves(json.loads(file.read_text()))
        assert 0 < len(shown) <= 12, f"{file.name}: {len(shown)} numbers"
        if file.name != "gate.json":
            details = leaves(json.loads((folder / "details" / file.name).read_text()))
            assert {key: details[key] for key in shown} == shown
        if file.stem not in {"preprocess", "eda", "index"}:  # what another seed does not move
            total += sum(not key.endswith("_reason") for key in shown)
    assert total <= 44, f"dvc metrics diff of two seeds would have {total} rows"


def test_what_dvc_hashes_holds_no_time_and_no_path(
    micro_chain: Chain,
) -> None:
    folder = micro_chain[0]
    hashed = [p for p in folder.rglob("*") if p.is_file() and "runtime" not in p.parts]
    for file in hashed:
        content = file.read_bytes()
        assert str(folder).encode() not in content, f"{file} holds the place it was made in"
        if file.suffix == ".json" and "metrics" in file.parts:
            assert not re.search(rb'"[a-z_]*(seconds|_s|memory\w*)":', content), file


def test_a_second_run_gives_the_same_bytes(micro_chain: Chain, tmp_path: Path) -> None:
    run_chain(tmp_path)
    first = {p.relative_to(micro_chain[0]): p for p in micro_chain[0].rglob("*") if p.is_file()}
    for name, file in first.items():
        if not {"runtime", ".work"} & set(name.parts):  # both hold seconds
            assert (tmp_path / name).read_bytes() == file.read_bytes(), f"{name} differs"


def test_another_seed_moves_the_model_but_not_the_embedder(
    micro_chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params(tmp_path, **SMALL, seed=1)
    monkeypatch.chdir(tmp_path)
    for name in ("check", "sample", "preprocess", "embedder", "index", "base"):
        run_stage(name, monkeypatch)
    for file in ("data/embedder/pointer.json", "data/preprocess/sft/train.jsonl"):
        assert (tmp_path / file).read_bytes() == (micro_chain[0] / file).read_bytes()
    base_file = Path("data/base/model.safetensors")
    assert (tmp_path / base_file).read_bytes() != (micro_chain[0] / base_file).read_bytes()
