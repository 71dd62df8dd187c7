"""Stage rm: the scale of the reward."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stages import rm
from stages.rlhf.chat import Codec
from stages.rlhf.generation import draw_uniforms, generate_all
from tests.model_fixtures import (
    QUESTIONS,
    random_reward_model,
    sft_roles,
    shipped,
    tiny_tokenizer,
)


def micro(**changed: Any) -> Any:
    entry = shipped().models["micro"].model_copy(update={"max_answer_tokens": 8})
    return shipped().model_copy(update={"model": "micro", "models": {"micro": entry}, **changed})


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_scale_is_that_of_answers_which_sft_samples(tmp_path: Path, method: str) -> None:
    roles, codec = sft_roles(tmp_path, method), Codec(tiny_tokenizer())
    model = random_reward_model(roles)
    mean, sd = rm.measure_scale(model, QUESTIONS, codec, micro())
    prompts = [codec.prompt_ids(question) for question in QUESTIONS]
    draws = draw_uniforms(len(prompts), 8, shipped().seed, "rm", "scale")
    with roles.use(roles.reference) as sft:  # not the reward model's own adapter
        temperature = shipped().ppo.temperature
        answers = generate_all(sft, prompts, codec, 8, 3, temperature, draws)
    scores = model.score(prompts, answers, codec, 3)
    assert mean == pytest.approx(scores.mean().item(), abs=1e-5)
    assert sd == pytest.approx(scores.std().item(), abs=1e-5)
    model.mean, model.sd = mean, sd
    scaled = model.normalise(scores)
    torch.testing.assert_close(scaled.std(), torch.tensor(1.0))
    assert abs(scaled.mean()) < 1e-5


def test_one_question_has_no_sd(tmp_path: Path) -> None:
    model = random_reward_model(sft_roles(tmp_path, "full"))
    with pytest.raises(ValueError, match=r"1 validation prompts: the reward's sd needs 2 or more"):
        rm.measure_scale(model, QUESTIONS[:1], Codec(tiny_tokenizer()), micro())
