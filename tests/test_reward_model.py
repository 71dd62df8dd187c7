"""The reward model: its formula, its neighbours, and its way to disk and back."""

from pathlib import Path

import pytest
import torch

from stages.rlhf.chat import Codec
from stages.rlhf.generation import draw_uniforms, generate_all
from stages.rlhf.models import check_card, load_sft, save_card
from stages.rlhf.ppo_trainer import new_value_head
from stages.rlhf.reward_model import (
    ROLE,
    Head,
    RewardModel,
    load_reward_model,
    new_reward_model,
)
from stages.rlhf.sequences import collate, hidden_states
from tests.model_fixtures import (
    LORA,
    QUESTIONS,
    SENTENCES,
    ids_codec,
    random_ids,
    random_reward_model,
    save_sft,
    sft_roles,
    shake,
    tiny_tokenizer,
)

PROMPTS, ANSWERS = random_ids(7, 2, 9, 300, 0), random_ids(7, 1, 6, 300, 1)


def test_head_by_hand() -> None:
    head = Head(2, hybrid=True)
    with torch.no_grad():
        head.value.weight.copy_(torch.tensor([[1.0, -2.0]]))
        assert head.fluency is not None
        head.fluency.copy_(torch.tensor([10.0, 100.0]))
    mask = torch.tensor([[True, True, True], [True, False, False]])
    last = torch.tensor([[3.0, 1.0], [0.0, 1.0]])
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, torch.nan, -9.0]])
    # 3 - 2 + 10 * -2 + 100 * -3;  0 - 2 + 10 * -.5 + 100 * -.5
    assert head(last, logprobs, mask).tolist() == [-319.0, -57.0]
    head.fluency = None
    assert head(last, logprobs, mask).tolist() == [1.0, -2.0]


def test_a_score_is_read_at_the_last_attended_token(tmp_path: Path) -> None:
    roles = sft_roles(tmp_path, "full")
    model = random_reward_model(roles, "scalar")
    scores = model.score(PROMPTS, ANSWERS, ids_codec(), 7)
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        with torch.no_grad(), roles.use(ROLE):
            hidden = hidden_states(roles.model, collate([prompt], [answer], 0))
        expected = float(hidden[0, -1] @ model.head.value.weight[0])
        assert scores[i].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("head", ["hybrid", "scalar"])
def test_scores_do_not_depend_on_their_batch(tmp_path: Path, head: str) -> None:
    model = random_reward_model(sft_roles(tmp_path, "lora"), head)
    expected = model.score(PROMPTS, ANSWERS, ids_codec(), 7)
    assert expected.unique().numel() == 7
    for batch_size in (1, 2, 3):
        found = model.score(PROMPTS, ANSWERS, ids_codec(), batch_size)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    order = [3, 1, 6, 0, 5, 2, 4]
    found = model.score([PROMPTS[i] for i in order], [ANSWERS[i] for i in order], ids_codec(), 3)
    torch.testing.assert_close(found, expected[order], rtol=0, atol=1e-5)


def test_a_score_that_is_not_finite_is_named(tmp_path: Path) -> None:
    model = random_reward_model(sft_roles(tmp_path, "full"), "scalar")
    with torch.no_grad():
        model.head.value.weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"score of answer 0 is (-inf|inf|nan): \[\d+"):
        model.score(PROMPTS, ANSWERS, ids_codec(), 7)


def test_a_new_reward_model_starts_as_the_reference(tmp_path: Path) -> None:
    for method in ("full", "lora"):
        roles = sft_roles(tmp_path / method, method)
        new_reward_model(roles, "hybrid")
        ids = torch.tensor(random_ids(2, 6, 6, 300, 0))
        with torch.no_grad():
            with roles.use(ROLE) as model:
                mine = model(ids).logits
            with roles.use(roles.reference) as model:
                assert mine.equal(model(ids).logits), method


def test_normalised_scores() -> None:
    model = RewardModel(roles=None, head=None, mean=-3.0, sd=2.0)  # type: ignore[arg-type]
    assert model.normalise(torch.tensor([-3.0, 1.0])).tolist() == [0.0, 2.0]


def test_the_value_head_starts_on_the_normalised_scale(tmp_path: Path) -> None:
    model = random_reward_model(sft_roles(tmp_path, "full"))
    head = new_value_head(model)
    last = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(last), model.head.value(last) / model.sd)
    assert head.weight.requires_grad
    assert head.weight.data_ptr() != model.head.value.weight.data_ptr()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("head", ["hybrid", "scalar"])
def test_saved_and_loaded_it_gives_the_same_scores(
    tmp_path: Path, head: str, method: str, dtype: str
) -> None:
    base, sft, rm = (tmp_path / name for name in ("base", "sft", "rm"))
    model = random_reward_model(sft_roles(tmp_path, method, dtype), head)
    expected = model.score(PROMPTS, ANSWERS, ids_codec(), 4)
    model.save(rm)
    save_card(rm, "reward", {"base": base, "sft": sft})

    torch.manual_seed(99)  # what loading would draw, were something not loaded
    check_card(rm, {"base": base, "sft": sft})
    again = load_reward_model(load_sft(base, sft, dtype, LORA), rm)
    assert again.score(PROMPTS, ANSWERS, ids_codec(), 4).equal(expected)
    assert (again.mean, again.sd) == (model.mean, model.sd)
    assert not any(p.requires_grad for p in again.head.parameters())
    assert {file.name for file in rm.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
        "model.json",
        "reward.json",
    }


def test_a_reward_model_of_another_backbone_is_refused(tmp_path: Path) -> None:
    base, sft, rm = (tmp_path / name for name in ("base", "sft", "rm"))
    random_reward_model(sft_roles(tmp_path, "full")).save(rm)
    save_card(rm, "reward", {"base": base, "sft": sft})
    other = save_sft(base, tmp_path / "other", "lora")
    with pytest.raises(ValueError, match=r"model.json: sft_sha256 is \w{64}, but \w{64} lies here"):
        check_card(rm, {"base": base, "sft": other})


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_policy_saved_and_loaded_gives_the_same_answers(tmp_path: Path, method: str) -> None:
    roles = sft_roles(tmp_path, method)
    codec = Codec(tiny_tokenizer())
    prompts = [codec.prompt_ids(text) for text in QUESTIONS + SENTENCES]
    draws = draw_uniforms(len(prompts), 8, "reload")
    roles.add("policy", like=roles.reference)
    with roles.use("policy") as model:
        before = generate_all(model, prompts, codec, 8, 4, 1.0, draws)
    shake(roles, "policy", seed=7)
    with roles.use("policy") as model:
        expected = generate_all(model, prompts, codec, 8, 4, 1.0, draws)
    assert expected != before
    roles.save("policy", tmp_path / "ppo")
    again = load_sft(tmp_path / "base", tmp_path / "sft", "float32", LORA)
    again.load("policy", tmp_path / "ppo")
    with again.use("policy") as model:
        assert generate_all(model, prompts, codec, 8, 4, 1.0, draws) == expected


def test_heads_keep_their_digits_under_autocast(tmp_path: Path) -> None:
    head = Head(32, hybrid=False)
    last = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    logprobs, mask = torch.zeros(50, 2), torch.ones(50, 2, dtype=torch.bool)
    expected = head(last, logprobs, mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(last, logprobs, mask)
    assert found.dtype == torch.float32
    assert found.equal(expected)
