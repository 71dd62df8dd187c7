"""The plan's minutes, by hand at round speeds."""

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest

from stages.rlhf.model.quantized import quantised_layers
from stages.rlhf.plan.calibration import Speeds, layers_of, measure
from stages.rlhf.plan.duration import START, Costs, durations
from stages.rlhf.plan.footprint import Shape, Work
from tests.model_fixtures import shipped, tiny_llama

SHAPE = Shape(8, 16, 3, 2, 2, 4, 100, tied=True)
# each speed a power of ten of its own, so that a digit tells what was counted
SPEEDS = Speeds(1e-3, 1e-1, 0.0, 1e-6, 1e-4, 1.0, 1e-2, 0.0, 0.0)
WORK = Work(3200, 16000, 3000, 100, 750, 300, 420, 5, 16, 15, 32)


def test_passes_by_hand() -> None:
    costs = Costs(SHAPE, SPEEDS)
    assert costs.read(10) == pytest.approx(10 * 3 * 1e-3)
    assert costs.read(10, 4) == pytest.approx(10 * 3 * 1e-3 + 4 * 100 * 1e-6)
    assert costs.train(10, 4) == pytest.approx(10 * 3 * 1e-1 + 4 * 100 * 1e-4)
    again = costs.train(10, 4, recomputed=True) - costs.train(10, 4)
    assert again == pytest.approx(costs.read(10))
    full = Costs(SHAPE, replace(SPEEDS, train_full=7.0))
    assert full.train(10, 0, full=True) == pytest.approx(10 * 3 * 7)


def test_decoding_by_hand() -> None:
    # 5 rows in batches of 2: three batches of 20 steps through 3 layers; 5 x 8 tokens of rows
    found = Costs(SHAPE, SPEEDS).decode(5, 2, prompt=6, mean=8, longest=20)
    assert found == pytest.approx(5 * 6 * 3 * 1e-3 + 60 * 3 * 1.0 + 40 * 3 * 1e-2)
    words = Costs(SHAPE, replace(SPEEDS, head_step=1e-3, head_row=1e-5))
    more = words.decode(5, 2, prompt=6, mean=8, longest=20) - found
    assert more == pytest.approx(60 * 100 * 1e-3 + 40 * 100 * 1e-5)


def model_with(**sections: dict[str, Any]) -> Any:
    params = shipped()
    model = params.base_model.model_copy(
        update={name: getattr(params.base_model, name).model_copy(update=knobs)
                for name, knobs in sections.items()}
    )  # fmt: skip
    return params.model_copy(update={"models": {**params.models, params.model: model}})


@pytest.mark.parametrize(
    ("section", "knob", "stage"), [("sft", "epochs", "sft"), ("ppo", "updates", "ppo")]
)
def test_twice_the_work_of_a_stage_takes_twice_its_time(
    section: str, knob: str, stage: str
) -> None:
    speeds = replace(SPEEDS, train_full=1e-1)
    number = getattr(getattr(shipped().base_model, section), knob)
    one, two, three = (
        durations(SHAPE, model_with(**{section: {knob: n * number}}), WORK, speeds)
        for n in (1, 2, 3)
    )
    assert two[stage] - one[stage] == pytest.approx(three[stage] - two[stage])
    assert two[stage] > 1.3 * one[stage]  # SFT's rank-1 phase stays as it is
    assert {k: v for k, v in one.items() if k != stage} == {
        k: v for k, v in two.items() if k != stage
    }


def test_the_phase_on_best_answers_reads_every_group() -> None:
    speeds, params = replace(SPEEDS, train_full=1.0, forward=0.0), shipped()
    plain = params.model_copy(
        update={"sft": params.sft.model_copy(update={"data": "demonstrations"})}
    )
    both, alone = (durations(SHAPE, p, WORK, speeds)["sft"] for p in (params, plain))
    rows = params.sft.rank1_epochs * WORK.groups
    head = rows * WORK.answer * SHAPE.vocab * speeds.head_train
    held = WORK.validation * WORK.answer * SHAPE.vocab * speeds.head * params.sft.rank1_epochs
    tokens = rows * (WORK.prompt + WORK.answer)
    assert both - alone == pytest.approx(tokens * SHAPE.layers * 1.0 + head + held)


def test_the_limit_on_validation_rows_is_counted() -> None:
    few = shipped().model_copy(update={"validation_rows": 100})
    many = replace(WORK, validation=20_000, prompts=20_000, judge_groups=0)
    limited, all_of = (durations(SHAPE, p, many, SPEEDS) for p in (few, shipped()))
    for stage in ("sft", "gate", "ppo"):
        assert limited[stage] < all_of[stage]
    same = durations(SHAPE, few, replace(many, validation=100, prompts=100), SPEEDS)
    assert limited == same
    assert limited["judge"] == START


def test_large_decoders_recompute_and_small_ones_do_not() -> None:
    small = Shape(640, 2048, 18, 4, 1, 256, 262144, tied=True)  # 100 million besides the embedding
    large = replace(small, hidden=1920, intermediate=6144)
    assert small.decoder < 5e8 < large.decoder
    assert small.parameters == small.decoder + 640 * 262144
    speeds = replace(SPEEDS, train_full=1.0)
    for shape, again in ((small, 0.0), (large, SPEEDS.forward)):
        found, plain = (
            durations(shape, shipped(), WORK, replace(speeds, forward=forward))["sft"]
            for forward in (SPEEDS.forward, 0.0)
        )
        both, epochs = WORK.prompt + WORK.answer, shipped().base_model.sft.epochs
        best = shipped().sft.rank1_epochs
        held = (epochs + best) * WORK.validation * both + WORK.validation * WORK.prompt
        trained = (epochs * WORK.sft + best * WORK.groups) * both
        expected = shape.layers * (held * SPEEDS.forward + trained * again)
        assert found - plain == pytest.approx(expected)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs the extra qlora")
def test_4_bit_layers_are_timed_as_such() -> None:
    entry = shipped().models["micro"].model_copy(update={"dtype": "nf4", "base": None})
    entry = entry.model_copy(update={"sft": entry.sft.model_copy(update={"method": "lora"})})
    shape = Shape.of(tiny_llama(64, width=64).config.to_dict())
    assert len(quantised_layers(layers_of(shape, "nf4"))) == 2 * 7
    assert not quantised_layers(layers_of(shape, "bfloat16"))
    speeds = measure(shape, entry, tokens=64, least=0.0)
    assert min(speeds.forward, speeds.train, speeds.step) > 0
