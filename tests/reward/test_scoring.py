"""The scale of the reward, and its accuracy on hard negatives."""

from pathlib import Path

import pytest

from stages.rlhf.chat import Codec
from stages.rlhf.decoding.generation import draw_uniforms, generate_all
from stages.rlhf.records import RmRow
from stages.rlhf.reward.hard_negatives import MAKERS
from stages.rlhf.reward.scoring import hard_negative_accuracy, measure_scale
from tests.conftest import naming
from tests.model_fixtures import at_once, micro_params, random_reward_model, sft_roles, shipped
from tests.tokenizer_fixtures import QUESTIONS, SENTENCES, tiny_tokenizer

MICRO = micro_params(max_answer_tokens=8)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_scale_is_that_of_answers_which_sft_samples(tmp_path: Path, method: str) -> None:
    roles, codec = sft_roles(tmp_path, method), Codec(tiny_tokenizer())
    model = random_reward_model(roles)
    scales = measure_scale(model, QUESTIONS, codec, MICRO)
    prompts = [codec.prompt_ids(question) for question in QUESTIONS]
    draws = draw_uniforms(len(prompts), 8, shipped().seed, "rm", "scale")
    with roles.use(roles.reference) as sft:  # not the reward model's own adapters
        temperature = shipped().ppo.temperature
        answers = generate_all(sft, prompts, codec, 8, at_once(3), temperature, draws)
    read = [(p, [a]) for p, a in zip(prompts, answers, strict=True)]
    raw = model.raw_scores(read, codec)
    for member, scores, (mean, sd) in zip(model.members, raw, scales, strict=True):
        assert mean == pytest.approx(scores.mean().item(), abs=1e-5)
        assert sd == pytest.approx(scores.std().item(), abs=1e-5)
        member.mean, member.sd = mean, sd
    assert scales[0] != scales[1]
    scores = model.score(read, codec)
    assert abs(scores.mean.mean()) < 1e-5
    # each member has variance 1, so that of their mean and the mean of their variances make 1
    n = len(prompts)
    parts = scores.mean.var() + scores.variance.mean() * n / (n - 1)
    assert parts.item() == pytest.approx(1.0, abs=1e-4)


def test_one_question_has_no_sd(tmp_path: Path) -> None:
    model = random_reward_model(sft_roles(tmp_path, "full"))
    with pytest.raises(ValueError, match=naming(1, 2)):
        measure_scale(model, QUESTIONS[:1], Codec(tiny_tokenizer()), MICRO)


def test_accuracy_on_hard_negatives_is_counted_by_kind(tmp_path: Path) -> None:
    codec = Codec(tiny_tokenizer())
    model = random_reward_model(sft_roles(tmp_path, "full"))
    rows = [
        RmRow(id=str(i), question=q, answers=(SENTENCES[i % 4], "네"), ranks=(1.0, 2.0))
        for i, q in enumerate(QUESTIONS)
    ]
    found = hard_negative_accuracy(model, rows, codec, lambda text: 0 < len(text) < 60, "held out")
    assert set(found) == {*MAKERS, "empty_reason"}
    assert found["empty"] is None
    above = 0.0
    for row in rows:
        said = [codec.response_ids(text) for text in (row.answers[0], row.question)]
        best, echo = model.score([(codec.prompt_ids(row.question), said)], codec).mean.tolist()
        above += best > echo
    assert found["echo"] == above / len(rows)


def test_rows_that_share_an_id_are_told_apart(tmp_path: Path) -> None:
    codec = Codec(tiny_tokenizer())
    model = random_reward_model(sft_roles(tmp_path, "full"))
    rows = [
        RmRow(id="x", question=q, answers=(SENTENCES[i % 4], "네"), ranks=(1.0, 2.0))
        for i, q in enumerate(QUESTIONS)
    ]
    found = hard_negative_accuracy(model, rows, codec, lambda text: 0 < len(text) < 60, "held out")
    above = 0.0
    for row in rows:
        texts = [codec.response_ids(text) for text in (row.answers[0], row.question)]
        best, echo = model.score([(codec.prompt_ids(row.question), texts)], codec).mean.tolist()
        above += best > echo
    assert 0 < above < len(rows)
    assert found["echo"] == above / len(rows)
