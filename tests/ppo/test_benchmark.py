"""The benchmark's own side: it trains what the stage trains, and a difference from TRL is seen.

TRL 1.12 itself is not installed where tests run; `python -m tests.benchmarks.ppo_vs_trl` compares
both sides' log-probabilities, values and scores of one rollout before it times anything.
"""

from typing import Any

import pytest
import torch

from stages.rlhf.model.roles import POLICY
from stages.rlhf.model.sequences import collate, hidden_states, response_logprobs
from tests.benchmarks import ppo_sides
from tests.benchmarks.ppo_sides import EOS_PENALTY, TEMPERATURE, Ours, Probe, Setting

SETTING = Setting(batch=4, response=6, epochs=2, vocab=64, hidden=32)


@pytest.fixture(scope="module")
def made() -> ppo_sides.Material:
    return ppo_sides.material(SETTING)


def seen_by(made: ppo_sides.Material) -> dict[str, Any]:
    """What TRL's trainer holds after a rollout, made by plain forward passes."""
    prompts = [made.codec.prompt_ids(question) for question in made.questions[:4]]
    answers = [[5, 6, 7, 8, 9, 10], [3, 4, 5, 6, 7, 8], [9, 9, 8, 8, 7, 7], [2, 3, 2, 3, 4, 5]]
    rows = collate(prompts, answers, made.codec.pad_id)
    model = made.backbone
    with torch.no_grad():
        hidden = hidden_states(model, rows)
        logprobs = response_logprobs(model, hidden, rows, TEMPERATURE)
        states = hidden @ made.reward_weight.T
    each = torch.arange(4)
    longest = max(map(len, prompts))
    padded = [[made.codec.pad_id] * (longest - len(p)) + p for p in prompts]
    return {
        "queries": torch.tensor(padded),
        "responses": torch.tensor(answers),
        "ref_logprobs": logprobs,
        "values": states[each[:, None], rows.predicts].squeeze(-1),
        "scores": states[each, rows.last].squeeze(-1) - EOS_PENALTY,
        "padding_mask": torch.zeros(4, 6, dtype=torch.bool),
        "contain_eos_token": torch.zeros(4, dtype=torch.bool),
    }


def test_our_side_says_what_plain_forward_passes_say(made: ppo_sides.Material) -> None:
    found = Ours(made, SETTING, 64).against(seen_by(made))
    assert max(found.values()) < 1e-5


@pytest.mark.parametrize("name", ["ref_logprobs", "values", "scores"])
def test_a_difference_is_seen(made: ppo_sides.Material, name: str) -> None:
    seen = seen_by(made)
    seen[name] = seen[name] + 0.01
    with pytest.raises(ValueError, match="do not train the same thing"):
        Ours(made, SETTING, 64).against(seen)


def test_an_update_is_timed_and_trains(made: ppo_sides.Material) -> None:
    ours = Ours(made, SETTING, 64)
    before = ours.trainer.roles.state(POLICY)
    prompts = [made.codec.prompt_ids(question) for question in made.questions[:4]]
    row = ours.update(prompts)
    phases = row["generate_s"] + row["score_s"] + row["update_s"]
    assert 0 < phases <= row["seconds"]
    assert row["tokens"] == 4 * 6, "an answer ended, though no token ends one"
    assert row["kl"] == 0
    after = ours.trainer.roles.state(POLICY)
    assert not all(after[key].equal(weight) for key, weight in before.items())


def test_phases_of_the_rivals_update_add_up() -> None:
    probe = Probe(since=0.0)
    probe._now = {"generate_s": 0.2, "scored": 0.5, "tokens": 24.0, "score": 1.0, "kl": 0.1}
    row = probe.ends()
    assert row["generate_s"] + row["score_s"] + row["update_s"] == pytest.approx(row["seconds"])
    assert row["score_s"] == pytest.approx(0.3)


def test_without_the_rival_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppo_sides, "PEER", ppo_sides.ROOT / "build" / "nothing")
    with pytest.raises(SystemExit, match=r"pip install --no-deps --target .* trl==1\.12\.0"):
        ppo_sides.peer()
