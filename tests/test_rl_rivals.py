"""RAFT, DPO and best-of-n beside PPO: they run on a run's folder, and gains are PPO's, paired."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stages.rlhf.config.whole import load_params
from tests.benchmarks import rl_rivals

Chain = tuple[Path, dict[str, set[str]]]  # conftest's micro_chain


def test_every_side_answers_every_test_question(
    micro_chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = micro_chain[0]
    monkeypatch.setattr(rl_rivals, "DATA", folder / "data")
    for name, value in {"BEST_OF": 2, "RAFT_RATES": (1e-3,), "DPO_RATES": (1e-3, 1e-4)}.items():
        monkeypatch.setattr(rl_rivals, name, value)
    world = rl_rivals.World(load_params(folder / "params.yaml"))
    prompts = world.prompts[:3]
    with world.roles.use(world.roles.reference) as sft:
        sampled = world.sampled(sft, prompts, 4, "test")
    best = world.best(prompts, sampled)
    for prompt, chosen, (_, own) in zip(prompts, best, sampled, strict=True):
        rewards = world.rewards([prompt] * 4, own).tolist()
        assert chosen == own[rewards.index(max(rewards))]
    before = {name: p.clone() for name, p in world.roles.model.named_parameters()}
    said = rl_rivals.answers(world)
    assert [name.split(",")[0] for name in said] == ["SFT", "best of 2", "RAFT", "DPO", "PPO"]
    assert all(len(own) == len(world.test) for own in said.values())
    now = dict(world.roles.model.named_parameters())
    assert all(now[name].equal(weight) for name, weight in before.items()), "rivals share weights"
    sft_model = rl_rivals.load_causal_lm(folder / "data" / "sft", world.model.dtype)
    for train in (rl_rivals.raft, rl_rivals.dpo):
        weights = zip(train(world, 1e-3).parameters(), sft_model.parameters(), strict=True)
        assert not all(torch.equal(one, other) for one, other in weights), train.__name__


def test_gains_are_paired_and_by_kind() -> None:
    def frame(*exact: float) -> pd.DataFrame:
        return pd.DataFrame(dict.fromkeys(rl_rivals.SHOWN, exact), dtype=float)

    values = {"SFT": frame(1, 0, 0, 0), "PPO": frame(1, 1, 0, 1)}
    found = rl_rivals.table(values, np.array(["a", "a", "b", "b"]), 50, 0).set_index(
        ["side", "kind"]
    )
    assert found.loc[("SFT", "a"), "exact"] == 0.5
    assert found.loc[("SFT", "a"), "exact_ppo_gain"] == 0.5
    assert found.loc[("SFT", "b"), "exact_ppo_gain"] == 0.5
    assert found.loc[("PPO", "b"), "exact_ppo_gain"] == 0
    assert found.loc[("SFT", "b"), "questions"] == 2
