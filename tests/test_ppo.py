"""Stage ppo: what it writes of a run."""

from pathlib import Path

import pytest
import torch

from stages import ppo
from stages.rlhf.models import check_card, load_sft, save_card
from stages.rlhf.ppo_trainer import Outcome
from stages.rlhf.records import write_jsonl
from stages.rlhf.rollout import POLICY
from tests.model_fixtures import (
    LORA,
    ppo_trainer,
    save_base,
    save_sft,
    shake,
    shipped,
)

FIGURES = ("chrf", "exact", "eos_rate", "repetition", "copy_rate", "length")
UPDATE = ("kl", "kl_coef", "score", "uncertainty", "reward", "eos_rate", "entropy")


def outcome(best: int) -> Outcome:
    updates = [{"update": i, **dict.fromkeys(UPDATE, i + 0.5)} for i in (0, 1, 2)]
    validation = [{"update": i, **dict.fromkeys(FIGURES, i + 0.25)} for i in (0, 2)]
    return Outcome(updates, validation, best_update=best, stopped="why", bad_steps=1)


def test_best_and_last_are_both_saved_each_as_itself(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("base", "sft", "rm")}
    save_sft(save_base(paths["base"]), paths["sft"], "full")
    paths["rm"].mkdir()
    trainer = ppo_trainer(tmp_path)
    shake(trainer.roles, POLICY, seed=20)
    trainer.outcome.best_state = trainer.roles.state(POLICY)
    shake(trainer.roles, POLICY, seed=21)
    states = {"best": trainer.outcome.best_state, "last": trainer.roles.state(POLICY)}
    ppo.save(trainer, tmp_path / "out", paths)
    for name, state in states.items():
        roles = load_sft(paths["base"], paths["sft"], "float32", LORA)
        roles.load(POLICY, tmp_path / "out" / name)
        assert all(roles.state(POLICY)[key].equal(tensor) for key, tensor in state.items()), name
        assert check_card(tmp_path / "out" / name, paths)["kind"] == "ppo"
    assert not torch.equal(*(next(iter(state.values())) for state in states.values()))


def test_summary_tells_the_last_rollout_and_the_kept_update() -> None:
    found = ppo.summary(outcome(best=2))
    assert {key: found[key] for key in UPDATE} == dict.fromkeys(UPDATE, 2.5)
    assert (found["best_update"], found["updates"], found["skipped"]) == (2, 2, False)
    assert "skipped_reason" not in found
    assert found["validation"]["sft"] == dict.fromkeys(FIGURES, 0.25)
    assert found["validation"]["best"] == dict.fromkeys(FIGURES, 2.25)
    assert (found["stopped"], found["bad_steps"]) == ("why", 1)


def test_where_no_update_beats_sft_the_summary_says_so() -> None:
    found = ppo.summary(outcome(best=0))
    assert found["skipped"] is True
    assert found["skipped_reason"] == "no update beats SFT"
    assert found["validation"]["best"] == found["validation"]["sft"]


def test_no_validation_questions_are_refused(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("base", "sft", "rm", "validation", "prompts")}
    save_sft(save_base(paths["base"]), paths["sft"], "full")
    paths["rm"].mkdir()
    save_card(paths["rm"], "reward", {"base": paths["base"], "sft": paths["sft"]})
    write_jsonl(paths["validation"], [])
    params = shipped().model_copy(update={"model": "micro"})
    with pytest.raises(ValueError, match="validation is empty: no questions to choose an update"):
        ppo.trained(params, paths)
