"""A stage on a card: with all weights, with a share of them, or the sentence that says why not."""

from typing import Any

import pytest

from stages.rlhf.plan.fits import SHARD, WHOLE, fit, too_much
from stages.rlhf.plan.footprint import Shape, memory, shardable
from tests.model_fixtures import shipped
from tests.plan.test_cluster import KO7, PARAMS


def seven_b(method: str = "lora", dtype: str = "bfloat16") -> Any:
    """LLaMA-2-ko-7B with rows and answers of which a card of 24 GiB holds a few."""
    entry = PARAMS.base_model
    changed = {
        "dtype": dtype,
        "sft": entry.sft.model_copy(update={"method": method}),
        "ppo": entry.ppo.model_copy(update={"micro_batch_tokens": 1024}),
        "generate": entry.generate.model_copy(update={"batch_size": 16}),
    }
    models = {**PARAMS.models, PARAMS.model: entry.model_copy(update=changed)}
    return PARAMS.model_copy(update={"models": models})


@pytest.mark.parametrize(
    ("limit", "cards", "method", "how"),
    [
        (80, 1, "lora", WHOLE),
        (80, 4, "lora", WHOLE),
        (24, 1, "lora", ""),
        (24, 4, "lora", SHARD),
        (36, 4, "full", ""),
        (1, 1, "lora", ""),
        (1, 4, "lora", ""),
    ],
)
def test_seven_billion_parameters_in_ppo(limit: int, cards: int, method: str, how: str) -> None:
    found = fit("ppo", KO7, seven_b(method), limit, cards)
    assert found.how == how
    assert (found.problem == "") is (how != "")


def test_cards_that_may_not_share_are_so_many_whole_ones() -> None:
    assert fit("ppo", KO7, seven_b(), 24, 4).how == SHARD
    found = fit("ppo", KO7, seven_b(), 24, 4, cards=1)
    assert found.how == ""
    assert found.problem.endswith(", or KOQA_PROCESSES=4"), "so many cards would share"


def test_ddps_copy_of_gradients_counts_whoever_shares_the_weights() -> None:
    one, four = (fit("sft", KO7, seven_b("full"), 1, n, cards=1).problem for n in (1, 4))
    assert one.split(" GiB")[0] != four.split(" GiB")[0]


def test_sft_answers_validation_questions() -> None:
    parts = memory(KO7, seven_b(), "cuda")
    assert parts["sft"]["decoding"] == parts["gate"]["decoding"] > 0


@pytest.mark.parametrize(
    ("method", "dtype", "expected"),
    [("lora", "bfloat16", True), ("full", "mixed", False), ("lora", "nf4", False)],
)
def test_what_is_trained_and_four_bits_stay_whole(method: str, dtype: str, expected: bool) -> None:
    assert shardable(seven_b(method, dtype)) is expected


def test_the_sentence_counts_what_a_card_would_hold() -> None:
    whole, sharded = (fit("ppo", KO7, seven_b(), 12, cards).problem for cards in (1, 4))
    assert whole.startswith("ppo needs 29.7 GiB, but 12.0 are available; most of it is weights")
    assert sharded.startswith("ppo needs 21.4 GiB, but 12.0 are available; most of it is activ")
    assert sharded.endswith(": change models.llama2-ko-7b.ppo.micro_batch_tokens")


def test_what_does_not_fit_is_named_with_what_to_change() -> None:
    params = shipped()
    assert params.base_model.architecture is not None
    needs = memory(Shape.made(params.base_model.architecture), params, "cuda")
    assert too_much(needs, 0.8, 1000, params) == []
    problems = too_much(needs, 0.8, 0.9, params)
    assert len(problems) == len(needs)
    (found,) = (problem for problem in problems if problem.startswith("sft needs "))
    assert "0.9 are available" in found
    assert found.endswith(": change models.tiny.sft.micro_batch_size")
