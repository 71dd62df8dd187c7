"""Collating, slicing, and what a model says of a response whatever stands around it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stages.rlhf.model.roles import VALUE
from stages.rlhf.model.sequences import (
    Sequences,
    collate,
    hidden_states,
    response_logprobs,
    response_states,
)
from stages.rlhf.ppo.actor_critic import token_values
from stages.rlhf.reward.model import Features
from tests.conftest import naming
from tests.model_fixtures import PpoTrainer, ppo_trainer, random_ids, tiny_llama

VOCAB = 40
PAD = 0


def test_collate_by_hand() -> None:
    rows = collate([[5, 6], [7]], [[8, 2], [9, 9, 2]], PAD)
    assert rows.ids.tolist() == [[5, 6, 8, 2], [7, 9, 9, 2]]
    assert rows.mask.tolist() == [[True] * 4, [True] * 4]
    assert rows.response.tolist() == [[8, 2, 0], [9, 9, 2]]
    assert rows.response_mask.tolist() == [[True, True, False], [True] * 3]
    assert rows.predicts.tolist() == [[1, 2, 3], [0, 1, 2]]  # [0, 2]: padding, never read
    assert rows.last.tolist() == [3, 3]


def test_a_slice_is_the_collation_of_its_rows() -> None:
    prompts, responses = random_ids(6, 1, 9, VOCAB, 0), random_ids(6, 1, 7, VOCAB, 1)
    whole = collate(prompts, responses, PAD)
    for rows in ([0], [4, 1], [3, 2, 5]):
        alone = collate([prompts[i] for i in rows], [responses[i] for i in rows], PAD)
        for name in ("ids", "mask", "response", "response_mask", "last", "sizes"):
            assert getattr(whole[rows], name).equal(getattr(alone, name)), name
        mask = alone.response_mask
        assert whole[rows].predicts[mask].equal(alone.predicts[mask])
    assert len(whole[[2, 3, 4]]) == 3


@pytest.mark.parametrize(("prompt", "response"), [([], [2]), ([5], [])])
def test_a_row_without_tokens_is_refused(prompt: list[int], response: list[int]) -> None:
    with pytest.raises(ValueError, match=naming("row 1", len(prompt), len(response))):
        collate([[5], prompt], [[2], response], PAD)


def logprobs_of(model: Any, rows: Sequences, temperature: float = 1.0) -> Tensor:
    with torch.no_grad():
        return response_logprobs(model, hidden_states(model, rows), rows, temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_response_logprobs_are_those_of_the_models_logits(temperature: float) -> None:
    model = tiny_llama(VOCAB)
    prompts, responses = random_ids(5, 1, 9, VOCAB, 2), random_ids(5, 1, 6, VOCAB, 3)
    found = logprobs_of(model, collate(prompts, responses, PAD), temperature)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        chances = torch.log_softmax(logits / temperature, -1)
        expected = chances.gather(-1, torch.tensor(response)[:, None]).squeeze(-1)
        torch.testing.assert_close(found[i, : len(response)], expected, rtol=0, atol=1e-5)
        assert found[i, len(response) :].eq(0).all()


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> PpoTrainer:
    return ppo_trainer(tmp_path_factory.mktemp("sequences"))


def say(trainer: PpoTrainer, rows: Sequences) -> dict[str, Tensor]:
    """Log-probabilities, values and scores of rows."""
    roles = trainer.roles
    with torch.no_grad():
        with roles.use(VALUE):
            values = token_values(roles, trainer.model.value_head, rows)
        with roles.use("reward0") as model:
            hidden = hidden_states(model, rows)
            logprobs = response_logprobs(model, hidden, rows)
            last = hidden[torch.arange(len(hidden)), rows.last]
            states = response_states(hidden, rows)
            features = Features(last, logprobs, states, rows.response_mask)
            scores = trainer.reward_model.members[0].head(features)
    return {"logprobs": logprobs, "values": values, "scores": scores}


def compare(found: Tensor, expected: Tensor, name: str) -> None:
    wide = max(found.shape[-1], expected.shape[-1]) if found.ndim == 2 else None
    if wide:  # the wider of two batches has more padding
        found, expected = (
            torch.nn.functional.pad(t, (0, wide - t.shape[1])) for t in (found, expected)
        )
    off = (found - expected).abs().max().item()
    assert off < 1e-5, f"{name} differ by {off}"


def test_padding_changes_nothing(trainer: PpoTrainer) -> None:
    prompts, responses = random_ids(4, 2, 9, VOCAB, 4), random_ids(4, 2, 6, VOCAB, 5)
    together = say(trainer, collate(prompts, responses, PAD))
    wider = say(trainer, collate([*prompts, [7] * 30], [*responses, [8] * 20], PAD))
    for name, expected in together.items():
        compare(wider[name][:4], expected, name)
    for i in range(4):
        alone = say(trainer, collate(prompts[i : i + 1], responses[i : i + 1], PAD))
        for name, expected in together.items():
            compare(alone[name], expected[i : i + 1], f"{name} of row {i} alone")


def test_row_order_changes_nothing(trainer: PpoTrainer) -> None:
    prompts, responses = random_ids(6, 2, 9, VOCAB, 6), random_ids(6, 2, 6, VOCAB, 7)
    expected = say(trainer, collate(prompts, responses, PAD))
    order = [3, 0, 5, 1, 4, 2]
    found = say(trainer, collate([prompts[i] for i in order], [responses[i] for i in order], PAD))
    for name in found:
        compare(found[name], expected[name][order], name)


def test_junk_after_the_end_changes_nothing(trainer: PpoTrainer) -> None:
    rows = collate(random_ids(4, 2, 9, VOCAB, 8), random_ids(4, 2, 6, VOCAB, 9), PAD)
    expected = say(trainer, rows)
    junk = torch.randint(3, VOCAB, rows.ids.shape, generator=torch.Generator().manual_seed(0))
    others = torch.randint(
        3, VOCAB, rows.response.shape, generator=torch.Generator().manual_seed(1)
    )
    dirty = Sequences(
        torch.where(rows.mask, rows.ids, junk),
        rows.mask,
        torch.where(rows.response_mask, rows.response, others),
        rows.response_mask,
        rows.predicts,
        rows.last,
        rows.sizes,
    )
    assert not dirty.ids.equal(rows.ids)
    found = say(trainer, dirty)
    for name in found:
        compare(found[name], expected[name], name)


def test_pad_tokens_that_were_said_count(trainer: PpoTrainer) -> None:
    said = collate([[5, 6]], [[PAD, 9, PAD, 2]], PAD)
    assert said.response_mask.sum() == 4
    assert say(trainer, said)["logprobs"].ne(0).all()
