"""Stage rm: its knobs, and what it asks of SFT."""

from pathlib import Path
from typing import Any

import pytest

from stages import rm
from stages.rlhf.chat import Codec
from stages.rlhf.config.whole import Params, load_params
from stages.rlhf.decoding.generation import greedy_responses
from stages.rlhf.model.roles import Roles
from stages.rlhf.records import RmRow
from tests.conftest import naming, write_params
from tests.model_fixtures import LORA, QUESTIONS, at_once, sft_roles, shipped
from tests.tokenizer_fixtures import tiny_tokenizer


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({"rm.margin": 0.1}, ["margin", 0.1, "plackett_luce", "bradley_terry"]),
        ({"rm.label_smoothing": 0.1}, ["label_smoothing", 0.1, "plackett_luce"]),
        ({"rm.label_smoothing": 0.5, "rm.loss": "bradley_terry"}, ["rm.label_smoothing", 0.5]),
        ({"rm.members": 0}, ["rm.members", 0, 1]),
        ({"ppo.uncertainty_coef": 0.1}, ["ppo.uncertainty_coef", 0.1, "rm.members", 1]),
        ({"rm.slips": 1.5}, ["rm.slips", 1.5, 1]),
        ({"rm.hard_negatives": 1.5}, ["rm.hard_negatives", 1.5, 1]),
        ({"rm.odin_coef": -0.1}, ["rm.odin_coef", -0.1, 0]),
        ({"ppo.uncertainty_coef": -1}, ["ppo.uncertainty_coef", -1, 0]),
    ],
)
def test_knobs_out_of_bounds_or_without_effect_are_refused(
    tmp_path: Path, changed: dict[str, Any], facts: list[object]
) -> None:
    params = write_params(tmp_path, **changed)
    with pytest.raises(ValueError, match=naming(params, *facts)):
        load_params(params)


def test_knobs_of_pairs_go_with_their_loss(tmp_path: Path) -> None:
    changed = {"rm.loss": "bradley_terry", "rm.margin": 0.2, "rm.label_smoothing": 0.1}
    alone = {"rm.members": 1, "ppo.uncertainty_coef": 0}
    assert load_params(write_params(tmp_path, **changed, **alone)).rm.margin == 0.2


def asking(share: float) -> Params:
    micro = shipped().models["micro"].model_copy(update={"lora": LORA, "max_answer_tokens": 8})
    losses = shipped().rm.model_copy(update={"slips": share})
    return shipped().model_copy(update={"model": "micro", "models": {"micro": micro}, "rm": losses})


def groups(roles: Roles, codec: Codec) -> list[RmRow]:
    """Every second one has SFT's own greedy answer as its best."""
    with roles.use(roles.reference) as sft:
        likely = greedy_responses(sft, codec, QUESTIONS, 8, at_once(4))
    return [
        RmRow(
            id=str(i),
            question=question,
            answers=("네.", "아니요." if i % 2 else answer.text),
            ranks=(2.0, 1.0),
        )
        for i, (question, answer) in enumerate(zip(QUESTIONS, likely, strict=True))
    ]


def test_sft_slips_where_it_knows_the_best_answer(tmp_path: Path) -> None:
    roles, codec = sft_roles(tmp_path, "full"), Codec(tiny_tokenizer())
    rows = groups(roles, codec)
    found = rm.own_slips(asking(1.0), roles, codec, rows, tmp_path / "one")
    slipped = [i for i, one in enumerate(found) if one]
    assert len(slipped) >= 3  # else both samples are the best answer, too
    assert all(i % 2 == 0 for i in slipped)
    for row, one in zip(rows, found, strict=True):
        if one:
            assert (one.kind, one.original) == ("slip", 1)
            assert codec.text(one.response_ids(codec)) == one.text != row.answers[1]
    assert rm.own_slips(asking(1.0), roles, codec, rows, tmp_path / "two") == found
    assert rm.own_slips(asking(0.0), roles, codec, rows, tmp_path / "three") == [None] * len(rows)


def test_where_sft_never_says_the_best_answer_nothing_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles, codec = sft_roles(tmp_path, "full"), Codec(tiny_tokenizer())
    rows = groups(roles, codec)[1::2] * 3
    monkeypatch.setattr(rm, "PROBED", 2)
    monkeypatch.setattr(rm, "sample", None)
    asked: list[int] = []

    def generated(model: Any, prompts: list[Any], *given: Any, **named: Any) -> list[list[int]]:
        asked.append(len(prompts))
        return [[codec.eos_id] for _ in prompts]

    monkeypatch.setattr(rm, "generate_all", generated)
    assert rm.own_slips(asking(1.0), roles, codec, rows, tmp_path) == [None] * len(rows)
    assert asked == [2]
