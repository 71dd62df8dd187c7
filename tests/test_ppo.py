"""Stage ppo: what it writes of a run."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from stages import ppo
from stages.rlhf.model.roles import POLICY
from stages.rlhf.model.store import check_card, load_base, load_sft, save_card
from stages.rlhf.ppo.selection import SFT, Kept
from stages.rlhf.ppo.state import Progress
from stages.rlhf.ppo.stats import summary, write_curves
from stages.rlhf.records import PromptRow, SftRow, write_jsonl
from stages.rlhf.reward.model import new_reward_model
from tests.conftest import naming
from tests.model_fixtures import (
    LORA,
    QUESTIONS,
    ppo_trainer,
    random_reward_model,
    save_base,
    save_sft,
    sft_roles,
    shake,
    shipped,
)

FIGURES = (
    *("chrf_valid", "chrf", "chrf_plus_plus", "exact"),
    *("eos_rate", "repetition", "copy_rate", "length"),
)
UPDATE = ("kl", "kl_coef", "score", "uncertainty", "penalty", "reward", "eos_rate", "entropy")

SENTENCE = "한라산은 제주도에 있습니다."


def progress(kept: Kept) -> Progress:
    updates = [{"update": i, **dict.fromkeys(UPDATE, i + 0.5)} for i in (0, 1, 2)]
    validation = [{"update": i, **dict.fromkeys(FIGURES, i + 0.25)} for i in (0, 2)]
    return Progress(2, 0.1, updates, validation, kept=kept, stopped="why", bad_steps=1)


def test_best_and_last_are_both_saved_each_as_itself(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("base", "sft", "rm")}
    save_sft(save_base(paths["base"]), paths["sft"], "full")
    paths["rm"].mkdir()
    trainer = ppo_trainer(tmp_path)
    shake(trainer.roles, POLICY, seed=20)
    trainer.progress.kept_policy = trainer.roles.state(POLICY)
    shake(trainer.roles, POLICY, seed=21)
    states = {"best": trainer.progress.kept_policy, "last": trainer.roles.state(POLICY)}
    ppo.save(trainer, tmp_path / "out", paths)
    for name, state in states.items():
        roles = load_sft(paths["base"], paths["sft"], "float32", LORA)
        roles.load(POLICY, tmp_path / "out" / name)
        assert all(roles.state(POLICY)[key].equal(tensor) for key, tensor in state.items()), name
        assert check_card(tmp_path / "out" / name, paths)["kind"] == "ppo"
    assert not torch.equal(*(next(iter(state.values())) for state in states.values()))


def test_summary_tells_the_last_rollout_and_the_kept_update() -> None:
    found = summary(progress(Kept(2, "best")))
    assert {key: found[key] for key in UPDATE} == dict.fromkeys(UPDATE, 2.5)
    assert (found["best_update"], found["updates"], found["skipped"]) == (2, 2, False)
    assert "skipped_reason" not in found
    assert found["validation"]["sft"] == dict.fromkeys(FIGURES, 0.25)
    assert found["validation"]["best"] == dict.fromkeys(FIGURES, 2.25)
    assert (found["stopped"], found["bad_steps"]) == ("why", 1)


def test_where_no_update_beats_sft_the_summary_says_so() -> None:
    found = summary(progress(SFT))
    assert found["skipped"] is True
    assert found["skipped_reason"] == "no update beats SFT"
    assert found["validation"]["best"] == found["validation"]["sft"]


def write_gate(folder: Path, **gate: Any) -> Path:
    file = folder / "gate.json"
    file.write_text(json.dumps({"best_of_4": gate}))
    return file


@pytest.mark.parametrize(("required", "updates"), [(True, 0), (False, 2)])
def test_behind_a_closed_gate_sft_is_the_result(
    tmp_path: Path, required: bool, updates: int
) -> None:
    paths = {name: tmp_path / name for name in ("base", "sft", "rm", "validation", "prompts")}
    paths["judge"], paths["corpus"] = tmp_path / "judge", tmp_path / "corpus"
    write_jsonl(paths["corpus"], [{"text": SENTENCE}])
    paths["gate"] = write_gate(tmp_path, passed=False, gain=0.0, gain_ci_low=-0.1, gain_ci_high=0.1)
    model = random_reward_model(sft_roles(tmp_path, "full"))
    model.save(paths["rm"])
    save_card(paths["rm"], "reward", {"base": paths["base"], "sft": paths["sft"]})
    bare = load_base(paths["base"], "float32", LORA)
    new_reward_model(bare, "hybrid", 1, "judge", kind="judge").save(paths["judge"])
    save_card(paths["judge"], "judge", {"base": paths["base"]})
    rows = [SftRow(id=str(i), question=q, answer="네.") for i, q in enumerate(QUESTIONS)]
    write_jsonl(paths["validation"], rows)
    write_jsonl(paths["prompts"], [PromptRow(id=r.id, question=r.question) for r in rows])
    micro = shipped().models["micro"].model_copy(update={"lora": LORA, "max_answer_tokens": 8})
    knobs = shipped().ppo.model_copy(update={"require_gate": required, "value_warmup": 1})
    changed = {"model": "micro", "models": {"micro": micro}, "ppo": knobs, "validation_rows": 5}
    params = shipped().model_copy(update=changed)
    trainer, validator = ppo.trained(params, paths, tmp_path / "work")
    found = trainer.progress
    assert len(found.updates) == updates
    ppo.save(trainer, tmp_path / "out", paths)
    answers = validator.table([int(row["update"]) for row in found.validation], found.shown)
    write_curves(found, answers, tmp_path / "plots")
    samples = pd.read_csv(tmp_path / "plots" / "samples.csv")
    answers = ["update 0", *(["update 2"] if updates else [])]
    assert list(samples) == ["question", "reference", *answers]
    assert len(samples) == len(validator.rows) == 5
    told = summary(found)
    header = (tmp_path / "plots" / "updates.csv").read_text().splitlines()[0].split(",")
    assert {"update", "score", "kl", "length"} <= set(header)
    if not required:
        return
    assert told["skipped"] is True
    assert told["skipped_reason"].startswith("by the judge, best-of-4 under the reward model")
    assert {key: told[key] for key in UPDATE} == dict.fromkeys(UPDATE)
    assert all(told[f"{key}_reason"] for key in UPDATE)
    roles = load_sft(paths["base"], paths["sft"], "float32", LORA)
    roles.load(POLICY, tmp_path / "out" / "best")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        with roles.use(None) as plain:
            expected = plain(ids).logits
        with roles.use(POLICY) as policy:
            assert policy(ids).logits.equal(expected)


def test_a_corpus_check_needs_a_corpus(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": "물."}])
    with pytest.raises(
        ValueError, match=naming("corpus.jsonl", "no sentence", "corpus_check", 1.5)
    ):
        ppo.corpus_check(1.5, tmp_path / "corpus.jsonl")
    assert ppo.corpus_check(0.0, tmp_path / "none.jsonl") is None
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": SENTENCE}])
    check = ppo.corpus_check(1.5, tmp_path / "corpus.jsonl")
    assert check is not None
    assert check(SENTENCE, SENTENCE) == 1.0


def test_no_validation_questions_are_refused(tmp_path: Path) -> None:
    paths = {
        name: tmp_path / name for name in ("base", "sft", "rm", "judge", "validation", "prompts")
    }
    save_sft(save_base(paths["base"]), paths["sft"], "full")
    paths["rm"].mkdir()
    paths["judge"].mkdir()
    save_card(paths["rm"], "reward", {"base": paths["base"], "sft": paths["sft"]})
    save_card(paths["judge"], "judge", {"base": paths["base"]})
    write_jsonl(paths["validation"], [])
    params = shipped().model_copy(update={"model": "micro"})
    with pytest.raises(ValueError, match=naming("validation", "empty")):
        ppo.trained(params, paths, tmp_path / "work")
