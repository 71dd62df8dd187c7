"""A packed row gives the numbers of the answers' own rows, and their gradients."""

from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.rlhf.model import packing
from stages.rlhf.model.packing import (
    PackedGroups,
    by_length,
    can_pack,
    last_states,
    pack,
    packed_response_logprobs,
    packed_response_states,
    packed_states,
    visible,
    worth_packing,
)
from stages.rlhf.model.roles import Roles
from stages.rlhf.model.sequences import collate, hidden_states, response_logprobs, response_states
from stages.rlhf.precision import SDPA_FLOAT32
from tests.conftest import naming
from tests.model_fixtures import LORA, random_ids, shake, tiny_gemma2, tiny_llama

VOCAB, PAD = 40, 0
COUNTS = (2, 5, 9, 3)  # answers of each question
PROMPTS = random_ids(len(COUNTS), 1, 9, VOCAB, 0)
FLAT = random_ids(sum(COUNTS), 1, 12, VOCAB, 1)
ANSWERS = [FLAT[sum(COUNTS[:g]) : sum(COUNTS[: g + 1])] for g in range(len(COUNTS))]
MODELS = {
    "llama sdpa": (tiny_llama, "sdpa"),
    "llama sdpa_float32": (tiny_llama, SDPA_FLOAT32),
    "llama eager": (tiny_llama, "eager"),
    "gemma2 eager": (tiny_gemma2, "eager"),
}


def roles_of(name: str, dtype: torch.dtype = torch.float32) -> Roles:
    make, attention = MODELS[name]
    model = make(VOCAB).to(dtype)
    model.set_attn_implementation(attention)
    torch.manual_seed(0)
    roles = Roles(model, LORA)
    roles.add("reward")
    shake(roles, "reward", seed=3, size=0.2)
    return roles


def packed(model: Any, prompts: Any = PROMPTS, answers: Any = ANSWERS) -> tuple[Tensor, Tensor]:
    groups = pack(prompts, answers, PAD)
    hidden = packed_states(model, groups)
    return last_states(hidden, groups), packed_response_logprobs(model, hidden, groups)


def apart(model: Any, prompts: Any = PROMPTS, answers: Any = ANSWERS) -> tuple[Tensor, Tensor]:
    copies = [p for p, given in zip(prompts, answers, strict=True) for _ in given]
    rows = collate(copies, [answer for given in answers for answer in given], PAD)
    hidden = hidden_states(model, rows)
    last = hidden[torch.arange(len(hidden)), rows.last]
    return last, response_logprobs(model, hidden, rows)


def gradients(roles: Roles, path: Any) -> list[Tensor]:
    with roles.use("reward", train=True) as model:
        last, logprobs = path(model)
        weights = torch.randn(last.shape, generator=torch.Generator().manual_seed(5))
        ((last * weights).sum() / 10 + logprobs.sum()).backward()
    found = [p.grad.clone() for p in roles.parameters("reward")]
    for p in roles.parameters("reward"):
        p.grad = None
    return found


def test_pack_by_hand() -> None:
    groups = pack([[5, 6], [7]], [[[8, 2], [9, 9, 2]], [[4]]], PAD)
    expected = PackedGroups(
        ids=torch.tensor([[5, 6, 8, 2, 9, 9, 2], [7, 4, 0, 0, 0, 0, 0]]),
        positions=torch.tensor([[0, 1, 2, 3, 2, 3, 4], [0, 1, 0, 0, 0, 0, 0]]),
        owner=torch.tensor([[0, 0, 1, 1, 2, 2, 2], [0, 1, -1, -1, -1, -1, -1]]),
        response=torch.tensor([[8, 2, 0], [9, 9, 2], [4, 0, 0]]),
        response_mask=torch.tensor([[True, True, False], [True] * 3, [True, False, False]]),
        predicts=torch.tensor([[1, 2, 0], [1, 4, 5], [7, 0, 0]]),  # 0: padding, never read
        last=torch.tensor([3, 6, 8]),
    )
    for field in fields(PackedGroups):
        assert getattr(groups, field.name).equal(getattr(expected, field.name)), field.name


def test_what_is_visible_by_hand() -> None:
    groups = pack([[5, 6]], [[[8, 2], [9, 9, 2]]], PAD)
    seen = ["1000000", "1100000", "1110000", "1111000", "1100100", "1100110", "1100111"]
    near = ["1000000", "1100000", "0110000", "0011000", "0100100", "0000110", "0000011"]
    for window, expected in ((None, seen), (2, near)):
        rows = ["".join(map(str, row)) for row in visible(groups, window)[0].int().tolist()]
        assert rows == expected, f"window {window}"


@pytest.mark.parametrize("name", MODELS)
def test_packed_equals_apart(name: str) -> None:
    roles = roles_of(name)
    with torch.no_grad(), roles.use("reward") as model:
        assert can_pack(model)
        for mine, expected in zip(packed(model), apart(model), strict=True):
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)
    with torch.no_grad(), roles.use(None) as model:  # the bare backbone
        for mine, expected in zip(packed(model), apart(model), strict=True):
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)


def test_states_of_the_answers_tokens_are_their_own_rows() -> None:
    roles = roles_of("llama sdpa")
    copies = [p for p, given in zip(PROMPTS, ANSWERS, strict=True) for _ in given]
    rows = collate(copies, FLAT, PAD)
    groups = pack(PROMPTS, ANSWERS, PAD)
    with torch.no_grad(), roles.use("reward") as model:
        hidden = hidden_states(model, rows)
        mine = packed_response_states(packed_states(model, groups), groups)
        apart_ = response_states(hidden, rows)
    expected = torch.cat(
        [
            hidden[i, len(p) : len(p) + len(a)]
            for i, (p, a) in enumerate(zip(copies, FLAT, strict=True))
        ]
    )
    assert apart_.equal(expected)
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_packed_gradients_equal_those_apart(name: str) -> None:
    roles = roles_of(name)
    for mine, expected in zip(gradients(roles, packed), gradients(roles, apart), strict=True):
        off = (mine - expected).abs().max() / expected.abs().max()
        assert off < 1e-5, f"gradient off by {off}"


@pytest.mark.parametrize(
    ("kind", "name"),
    [("autocast", name) for name in MODELS]
    # sdpa_float32 is chosen for autocast alone
    + [("bfloat16 weights", name) for name in MODELS if name != "llama sdpa_float32"],
)
def test_packed_equals_apart_to_the_digits_of_bfloat16(kind: str, name: str) -> None:
    roles = roles_of(name, torch.bfloat16 if kind == "bfloat16 weights" else torch.float32)
    whole = roles_of(name)
    with torch.no_grad(), whole.use("reward") as model:
        exact = apart(model)
    with (
        torch.no_grad(),
        roles.use("reward") as model,
        torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"),
    ):
        for mine, other, goal in zip(packed(model), apart(model), exact, strict=True):
            noise = (other.float() - goal).abs().mean()
            assert (mine.float() - goal).abs().mean() < 1.3 * noise
            assert (mine.float() - goal).abs().mean() < 0.05 * goal.abs().mean()


@pytest.mark.parametrize("name", MODELS)
def test_an_answer_does_not_see_the_others(name: str) -> None:
    roles = roles_of(name)
    prompt, answers = PROMPTS[2], ANSWERS[2]
    with torch.no_grad(), roles.use("reward") as model:
        before = packed(model, [prompt], [answers])
        for j in (0, 4, 8):
            others = [i for i in range(9) if i != j]
            changed = [*answers[:j], [7, 7, 7, 9], *answers[j + 1 :]]
            for mine, expected in zip(packed(model, [prompt], [changed]), before, strict=True):
                width = min(mine.shape[1], expected.shape[1])
                torch.testing.assert_close(
                    mine[others, :width], expected[others, :width], rtol=0, atol=1e-5
                )
                assert (mine[j, :2] - expected[j, :2]).abs().max() > 1e-2


@pytest.mark.parametrize("name", MODELS)
def test_the_order_of_answers_does_not_matter(name: str) -> None:
    roles = roles_of(name)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    shuffled = [ANSWERS[2][i] for i in order]
    with torch.no_grad(), roles.use("reward") as model:
        before = packed(model, PROMPTS[2:3], ANSWERS[2:3])
        for mine, given in zip(packed(model, PROMPTS[2:3], [shuffled]), before, strict=True):
            torch.testing.assert_close(mine, given[order], rtol=0, atol=1e-5)


def test_logprobs_of_some_answers() -> None:
    roles = roles_of("llama sdpa")
    groups, wanted = pack(PROMPTS, ANSWERS, PAD), torch.tensor([7, 0, 11])
    with torch.no_grad(), roles.use("reward") as model:
        hidden = packed_states(model, groups)
        found = packed_response_logprobs(model, hidden, groups, wanted)
        assert found.equal(packed_response_logprobs(model, hidden, groups)[wanted])


@pytest.mark.parametrize(
    ("prompts", "answers", "message"),
    [
        ([[5], []], [[[2]], [[2]]], naming("prompt 1", 0, "token")),
        ([[5], [6]], [[[2]], [[2], [3], []]], naming("prompt 1", 2, 0, "token")),
        ([[5], [6]], [[[2]], []], naming("prompt 1", 0)),
    ],
)
def test_what_is_empty_is_refused(prompts: Any, answers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(prompts, answers, PAD)


def test_other_models_are_not_packed() -> None:
    def like(model_type: str, attention: str) -> Any:
        config = SimpleNamespace(model_type=model_type, _attn_implementation=attention)
        return SimpleNamespace(config=config)

    assert can_pack(like("llama", "sdpa"))
    assert not can_pack(like("llama", "flash_attention_2"))
    assert not can_pack(like("mamba", "eager"))


def test_long_answers_to_a_short_prompt_are_left_apart() -> None:
    prompt = [5] * 12
    assert worth_packing(prompt, [[6] * 20] * 5, hidden_size=192)
    assert not worth_packing(prompt, [[6] * 100] * 5, hidden_size=192)
    assert worth_packing([5] * 200, [[6] * 100] * 5, hidden_size=192)
    assert worth_packing(prompt, [[6] * 100] * 5, hidden_size=2048)
    assert not worth_packing([5] * packing.MAX_ROW, [[6]] * 5, hidden_size=2048)


def test_rows_of_like_length_lie_together() -> None:
    assert by_length([3, 9, 2, 8, 4, 30], 18) == [[5], [1, 3], [4, 0, 2]]
    assert by_length([], 18) == []


def test_padding_to_a_wider_row_changes_nothing() -> None:
    roles = roles_of("gemma2 eager")
    groups = pack(PROMPTS[:1], ANSWERS[:1], PAD)
    extra = torch.zeros(1, 5, dtype=torch.long)
    wider = replace(
        groups,
        ids=torch.cat([groups.ids, extra + 9], 1),
        positions=torch.cat([groups.positions, extra], 1),
        owner=torch.cat([groups.owner, extra - 1], 1),
    )
    with torch.no_grad(), roles.use("reward") as model:
        before = last_states(packed_states(model, groups), groups)
        after = last_states(packed_states(model, wider), wider)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
