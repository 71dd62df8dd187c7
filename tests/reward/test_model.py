"""The reward model: its formula, its neighbours, and its way to disk and back."""

import math
from pathlib import Path

import pytest
import torch

from stages.rlhf.chat import Codec
from stages.rlhf.decoding.generation import draw_uniforms, generate_all
from stages.rlhf.measure.length_curve import LengthCurve
from stages.rlhf.model.sequences import collate, hidden_states
from stages.rlhf.model.store import check_card, load_sft, model_hash, save_card
from stages.rlhf.ppo.actor_critic import new_value_head
from stages.rlhf.reward import model
from stages.rlhf.reward.model import (
    TOKEN_HEADS,
    Calibration,
    Features,
    Head,
    Member,
    RewardModel,
    TokenHeads,
    load_reward_model,
    member_name,
    new_reward_model,
)
from tests.conftest import naming
from tests.model_fixtures import (
    LORA,
    at_once,
    ids_codec,
    random_ids,
    random_reward_model,
    save_sft,
    sft_roles,
    shake,
)
from tests.tokenizer_fixtures import QUESTIONS, SENTENCES, tiny_tokenizer

PROMPTS, ANSWERS = random_ids(7, 2, 9, 300, 0), random_ids(7, 1, 6, 300, 1)
READ = [(prompt, [answer]) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]


def test_head_by_hand() -> None:
    head = Head(2, hybrid=True)
    assert head.fluency is not None
    assert head.tokens is not None
    with torch.no_grad():
        head.value.weight.copy_(torch.tensor([[1.0, -2.0]]))
        head.fluency.copy_(torch.tensor([10.0, 100.0]))
        for weight in head.tokens.parameters():
            weight.zero_()
    mask = torch.tensor([[True, True, True], [True, False, False]])
    last = torch.tensor([[3.0, 1.0], [0.0, 1.0]])
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, torch.nan, -9.0]])
    states = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 1.0], [0.0, 1.0]])
    features = Features(last, logprobs, states, mask)
    # 3 - 2 + 10 * -2 + 100 * -3;  0 - 2 + 10 * -.5 + 100 * -.5
    assert head(features).tolist() == [-319.0, -57.0]
    plain = Head(2, hybrid=False)
    with torch.no_grad():
        plain.value.weight.copy_(head.value.weight)
    assert plain(Features(last, None, None, mask)).tolist() == [1.0, -2.0]


def test_token_heads_are_a_weighted_mean_over_the_answers_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    heads = TokenHeads(5)
    with torch.no_grad():
        for weight in heads.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    lengths = [4, 1, 3]
    mask = torch.arange(4)[None] < torch.tensor(lengths)[:, None]
    logprobs = torch.randn(3, 4, generator=generator).masked_fill(~mask, torch.nan)
    states = torch.randn(sum(lengths), 5, generator=generator)
    with torch.no_grad():
        found = heads(logprobs, states, mask)
    rows = states.split(lengths)
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        expected = 0.0
        for k in range(TOKEN_HEADS):
            logits = [(heads.where.weight[k] @ row[t]).item() for t in range(n)]
            total = sum(math.exp(logit) for logit in logits)
            for t in range(n):
                value = heads.value.weight[k] @ row[t] + heads.fluency[k] * logprobs[i, t]
                expected += math.exp(logits[t]) / total * value.item()
        assert found[i].item() == pytest.approx(expected, abs=1e-5)


def test_a_score_is_read_at_the_last_attended_token(tmp_path: Path) -> None:
    roles = sft_roles(tmp_path, "full")
    model = random_reward_model(roles, "scalar")
    scores = model.raw_scores(READ, ids_codec())
    assert scores.shape == (2, 7)
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        for index, member in enumerate(model.members):
            with torch.no_grad(), roles.use(member_name(index)):
                hidden = hidden_states(roles.model, collate([prompt], [answer], 0))
            expected = float(hidden[0, -1] @ member.head.value.weight[0])
            assert scores[index, i].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("head", ["hybrid", "scalar"])
def test_scores_do_not_depend_on_their_batch(tmp_path: Path, head: str) -> None:
    model = random_reward_model(sft_roles(tmp_path, "lora"), head)
    expected = model.raw_scores(READ, ids_codec())
    assert expected.unique().numel() == 14
    for tokens in (1, 30, 60):
        found = model.raw_scores(READ, ids_codec(), tokens=tokens)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    order = [3, 1, 6, 0, 5, 2, 4]
    found = model.raw_scores([READ[i] for i in order], ids_codec(), tokens=40)
    torch.testing.assert_close(found, expected[:, order], rtol=0, atol=1e-5)
    one = model.raw_scores(READ, ids_codec(), members=[1])
    torch.testing.assert_close(one, expected[1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", ["hybrid", "scalar"])
def test_a_score_is_the_same_in_a_shared_row_and_in_its_own(tmp_path: Path, head: str) -> None:
    model = random_reward_model(sft_roles(tmp_path, "lora"), head)
    long = random_ids(3, 40, 60, 300, 2)  # prompts worth sharing
    mixed = [
        (long[0], ANSWERS[:3]),
        (PROMPTS[0], ANSWERS[3:4]),  # nothing to share
        (long[1], ANSWERS[4:6]),
        (long[2], ANSWERS[6:]),
    ]
    assert model.micro_batches(mixed, 10_000) == [[0, 2], [3, 1]]
    apart = [(prompt, [answer]) for prompt, answers in mixed for answer in answers]
    expected = model.raw_scores(apart, ids_codec())
    assert expected.unique().numel() == 14
    for tokens in (1, 150, 10_000):
        found = model.raw_scores(mixed, ids_codec(), tokens=tokens)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_a_part_holds_no_more_tokens_than_asked(tmp_path: Path, shared: bool) -> None:
    model = random_reward_model(sft_roles(tmp_path, "full"))
    prompts = random_ids(20, 30, 60, 300, 3)
    answers = random_ids(40, 1, 9, 300, 4)
    each = 2 if shared else 1
    asked = [(p, answers[i * each : (i + 1) * each]) for i, p in enumerate(prompts)]
    parts = model.micro_batches(asked, 200)
    assert sorted(i for part in parts for i in part) == list(range(20))
    assert 1 < len(parts) < 20
    for part in parts:
        widths = [len(asked[i][0]) + (sum if shared else max)(map(len, asked[i][1])) for i in part]
        assert len(part) * max(widths) <= 200


def test_only_the_hybrid_head_asks_for_log_probabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("response_logprobs", "packed_response_logprobs"):
        monkeypatch.setattr(model, name, lambda *args: 1 / 0)
    shared = [(random_ids(1, 40, 40, 300, 2)[0], ANSWERS)]
    for read in (READ, shared):
        roles = sft_roles(tmp_path, "full")
        random_reward_model(roles, "scalar").score(read, ids_codec())
        with pytest.raises(ZeroDivisionError):
            random_reward_model(sft_roles(tmp_path, "full"), "hybrid").score(read, ids_codec())


def test_a_score_that_is_not_finite_is_named(tmp_path: Path) -> None:
    model = random_reward_model(sft_roles(tmp_path, "full"), "scalar")
    with torch.no_grad():
        model.members[1].head.value.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=naming("reward1", 0, "nan", READ[0][1][0])):
        model.score(READ, ids_codec())


def test_padding_on_the_left_gives_the_same_scores(tmp_path: Path) -> None:
    roles = sft_roles(tmp_path, "lora")
    model = random_reward_model(roles)
    found = model.raw_scores(READ, ids_codec())
    rows = [prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    for index, member in enumerate(model.members):
        with torch.no_grad(), roles.use(member.name) as network:
            out = network(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                output_hidden_states=True,
            )
            hidden, chances = out.hidden_states[-1], out.logits.log_softmax(-1)
            for i, answer in enumerate(ANSWERS):
                n = len(answer)
                said = chances[i, -n - 1 : -1].gather(-1, torch.tensor(answer)[:, None])
                counts = torch.ones(1, n, dtype=torch.bool)
                features = Features(hidden[i : i + 1, -1], said.T, hidden[i, -n:], counts)
                torch.testing.assert_close(
                    member.head(features)[0], found[index, i], rtol=0, atol=1e-5
                )


def test_an_empty_answer_has_a_score(tmp_path: Path) -> None:
    codec = Codec(tiny_tokenizer())
    model = random_reward_model(sft_roles(tmp_path, "full"))
    ids = codec.response_ids("")
    assert ids == [codec.eos_id]
    scores = model.score([(codec.prompt_ids(q), [ids]) for q in QUESTIONS], codec)
    assert scores.mean.isfinite().all()
    assert scores.mean.unique().numel() > 1


def test_new_members_start_as_the_reference_with_heads_of_their_own(tmp_path: Path) -> None:
    for method in ("full", "lora"):
        roles = sft_roles(tmp_path / method, method)
        made = new_reward_model(roles, "hybrid", 3, "seed")
        ids = torch.tensor(random_ids(2, 6, 6, 300, 0))
        with torch.no_grad():
            with roles.use(roles.reference) as model:
                expected = model(ids).logits
            for member in made.members:
                with roles.use(member.name) as model:
                    assert model(ids).logits.equal(expected), (method, member.name)
        weights = [member.head.value.weight for member in made.members]
        assert not any(weights[i].equal(weights[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_a_members_start_depends_on_the_seed_alone(tmp_path: Path) -> None:
    starts = []
    for seed, drawn in (("one", 0), ("one", 5), ("two", 0)):
        roles = sft_roles(tmp_path, "full")
        torch.rand(drawn)  # global draws must not count, nor be moved
        before = torch.get_rng_state()
        made = new_reward_model(roles, "hybrid", 2, seed)
        assert torch.get_rng_state().equal(before)
        starts.append((roles.state("reward1"), made.members[1].head.value.weight))
    (state, head), (same_state, same_head), (_, other_head) = starts
    assert head.equal(same_head)
    assert all(state[key].equal(same_state[key]) for key in state)
    assert not head.equal(other_head)


def test_scores_are_mean_and_variance_over_members_each_on_its_scale() -> None:
    members = [
        Member("a", None, mean=-3.0, sd=2.0),  # type: ignore[arg-type]
        Member("b", None, mean=1.0, sd=0.5),  # type: ignore[arg-type]
    ]
    model = RewardModel(None, members)  # type: ignore[arg-type]
    found = model.combine(torch.tensor([[-3.0, 1.0], [1.0, 3.0]]))
    assert found.mean.tolist() == [0.0, 3.0]  # 0 and 0; 2 and 4
    assert found.variance.tolist() == [0.0, 1.0]
    alone = RewardModel(None, members[:1])  # type: ignore[arg-type]
    assert alone.combine(torch.tensor([[1.0]])).variance.tolist() == [0.0]


@pytest.mark.parametrize("kind", ["hybrid", "scalar"])
def test_the_value_head_starts_on_the_normalised_scale(tmp_path: Path, kind: str) -> None:
    member = random_reward_model(sft_roles(tmp_path, "full"), kind).members[0]
    member.mean = -3.0
    head = new_value_head(member)
    last = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    mean = member.mean if kind == "scalar" else 0.0  # hybrid: mostly of the other terms
    torch.testing.assert_close(head(last), (member.head.value(last) - mean) / member.sd)
    assert head.weight.requires_grad
    assert head.weight.data_ptr() != member.head.value.weight.data_ptr()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("head", ["hybrid", "scalar"])
def test_saved_and_loaded_it_gives_the_same_scores(
    tmp_path: Path, head: str, method: str, dtype: str
) -> None:
    base, sft, rm = (tmp_path / name for name in ("base", "sft", "rm"))
    model = random_reward_model(sft_roles(tmp_path, method, dtype), head, members=3)
    expected = model.score(READ, ids_codec())
    raw = model.raw_scores(READ, ids_codec())
    model.save(rm)
    save_card(rm, "reward", {"base": base, "sft": sft})

    torch.manual_seed(99)  # what loading would draw, were something not loaded
    check_card(rm, {"base": base, "sft": sft})
    again = load_reward_model(load_sft(base, sft, dtype, LORA), rm)
    assert again.raw_scores(READ, ids_codec()).equal(raw)
    found = again.score(READ, ids_codec())
    assert found.mean.equal(expected.mean)
    assert found.variance.equal(expected.variance)
    assert found.variance.gt(0).all()
    assert [(m.mean, m.sd) for m in again.members] == [(m.mean, m.sd) for m in model.members]
    assert not any(p.requires_grad for m in again.members for p in m.head.parameters())
    member = ("adapter_config.json", "adapter_model.safetensors", "head.safetensors")
    assert {str(file.relative_to(rm)) for file in rm.rglob("*") if file.is_file()} == {
        "model.json",
        "reward.json",
        *(f"reward{i}/{name}" for i in range(3) for name in member),
    }


CURVE = LengthCurve((2.0, 4.0), (-1.0, 0.5), "tokens")


@pytest.mark.parametrize("applied", [True, False])
def test_what_validation_said_travels_with_the_model(tmp_path: Path, applied: bool) -> None:
    model = random_reward_model(sft_roles(tmp_path, "full"))
    model.calibration = Calibration(CURVE, applied, 0.7, None, 1.5, 2.5)
    offsets = model.length_offsets([[5], [5, 6, 7], [5] * 9])
    assert offsets.tolist() == ([-1.0, -0.25, 0.5] if applied else [0.0, 0.0, 0.0])
    plain, lengths = model.score(READ, ids_codec()).mean, [len(answer) for answer in ANSWERS]
    taken = CURVE.at(lengths) if applied else [0.0] * 7
    found = model.corrected_scores(READ, ids_codec())
    torch.testing.assert_close(found, plain - torch.tensor(taken).float())
    model.save(tmp_path / "rm")
    again = load_reward_model(
        load_sft(tmp_path / "base", tmp_path / "sft", "float32", LORA), tmp_path / "rm"
    )
    assert again.calibration == model.calibration
    assert again.corrected_scores(READ, ids_codec()).equal(found)


def test_a_judge_has_adapters_of_its_own_name(tmp_path: Path) -> None:
    roles = sft_roles(tmp_path, "full")
    model = new_reward_model(roles, "hybrid", 1, "seed", kind="judge")
    assert [member.name for member in model.members] == ["judge0"]
    model.save(tmp_path / "judge")
    assert (tmp_path / "judge" / "judge0" / "head.safetensors").is_file()
    random_reward_model(roles)  # beside it, on the same backbone
    assert (
        load_reward_model(
            load_sft(tmp_path / "base", tmp_path / "sft", "float32", LORA), tmp_path / "judge"
        )
        .members[0]
        .name
        == "judge0"
    )


def test_every_member_counts_in_the_hash_of_the_model(tmp_path: Path) -> None:
    model = random_reward_model(sft_roles(tmp_path, "full"))
    model.save(tmp_path / "rm")
    before = model_hash(tmp_path / "rm")
    shake(model.roles, "reward1", seed=9)
    model.save(tmp_path / "rm")
    assert model_hash(tmp_path / "rm") != before


def test_a_reward_model_of_another_backbone_is_refused(tmp_path: Path) -> None:
    base, sft, rm = (tmp_path / name for name in ("base", "sft", "rm"))
    random_reward_model(sft_roles(tmp_path, "full")).save(rm)
    save_card(rm, "reward", {"base": base, "sft": sft})
    other = save_sft(base, tmp_path / "other", "lora")
    facts = rm / "model.json", "sft_sha256", model_hash(sft), model_hash(other)
    with pytest.raises(ValueError, match=naming(*facts)):
        check_card(rm, {"base": base, "sft": other})


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_policy_saved_and_loaded_gives_the_same_answers(tmp_path: Path, method: str) -> None:
    roles = sft_roles(tmp_path, method)
    codec = Codec(tiny_tokenizer())
    prompts = [codec.prompt_ids(text) for text in QUESTIONS + SENTENCES]
    draws = draw_uniforms(len(prompts), 8, "reload")
    roles.add("policy", like=roles.reference)
    with roles.use("policy") as model:
        before = generate_all(model, prompts, codec, 8, at_once(4), 1.0, draws)
    shake(roles, "policy", seed=7)
    with roles.use("policy") as model:
        expected = generate_all(model, prompts, codec, 8, at_once(4), 1.0, draws)
    assert expected != before
    roles.save("policy", tmp_path / "ppo")
    again = load_sft(tmp_path / "base", tmp_path / "sft", "float32", LORA)
    again.load("policy", tmp_path / "ppo")
    with again.use("policy") as model:
        assert generate_all(model, prompts, codec, 8, at_once(4), 1.0, draws) == expected


def test_heads_keep_their_digits_under_autocast(tmp_path: Path) -> None:
    head = Head(32, hybrid=True)
    generator = torch.Generator().manual_seed(0)
    last, states = (torch.randn(n, 32, generator=generator) for n in (50, 100))
    mask = torch.ones(50, 2, dtype=torch.bool)
    features = Features(last, -torch.rand(50, 2, generator=generator), states, mask)
    expected = head(features)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(features)
    assert found.dtype == torch.float32
    assert found.equal(expected)
