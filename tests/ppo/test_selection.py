"""Which update is kept: limits one by one, and the best chrF among what keeps them."""

from pathlib import Path

import pytest

from stages.rlhf.chat import Codec
from stages.rlhf.model.generation import generate_all
from stages.rlhf.ppo.selection import SHOWN, CheckpointSelector, Validator, reference_metrics
from stages.rlhf.records import Response, SftRow
from tests.model_fixtures import QUESTIONS, random_reward_model, sft_roles, shake, tiny_tokenizer

SFT = {
    "chrf": 70.0,
    "eos_rate": 0.99,
    "repetition": 0.01,
    "copy_rate": 0.02,
    "length": 20.0,
}


def chooser(reference_length: float = 20.0) -> CheckpointSelector:
    made = CheckpointSelector(reference_length)
    assert made(SFT)
    return made


def test_the_first_row_is_sft_and_is_kept_whatever_it_says() -> None:
    assert CheckpointSelector(20.0)({**SFT, "chrf": 0.0, "eos_rate": 0.0, "length": 900.0})


def test_the_best_chrf_is_kept() -> None:
    choose = chooser()
    said = [choose({**SFT, "chrf": chrf}) for chrf in (69.0, 70.0, 71.0, 70.5, 71.0, 72.0)]
    assert said == [False, False, True, False, False, True]


@pytest.mark.parametrize(
    ("key", "kept", "broken"),
    [
        ("eos_rate", 0.9851, 0.9849),
        ("repetition", 0.0149, 0.0151),
        ("copy_rate", 0.0249, 0.0251),
        ("length", 22.9, 23.1),
        ("length", 17.1, 16.9),
    ],
)
def test_each_limit(key: str, kept: float, broken: float) -> None:
    choose = chooser()
    assert choose.broken_limits({**SFT, key: kept}) == []
    assert choose.broken_limits({**SFT, key: broken}) == [key]
    assert not choose({**SFT, "chrf": 99.0, key: broken})
    assert choose({**SFT, "chrf": 71.0, key: kept}), "a refused row must not become the best"


def test_where_sft_itself_is_off_in_length_an_update_may_be_as_far_off() -> None:
    choose = chooser(reference_length=10.0)  # SFT is 100 % off
    assert choose.broken_limits({**SFT, "length": 19.9}) == []
    assert choose.broken_limits({**SFT, "length": 20.1}) == ["length"]


def test_reference_metrics_by_hand() -> None:
    rows = [
        SftRow(id="0", question="한라산의 높이는?", answer="1947m입니다."),
        SftRow(id="1", question="일본의 수도는?", answer="도쿄입니다."),
    ]
    answers = [
        Response("1947m입니다.", 5, True),
        Response("일본의 수도는? 일본의 수도는?", 9, False),
    ]
    found = reference_metrics(answers, rows)
    assert found["exact"] == 0.5
    assert found["eos_rate"] == 0.5
    assert found["copy_rate"] == 0.5
    assert found["length"] == (9 + 17) / 2
    assert 50 <= found["chrf"] < 60


def test_a_validator_measures_the_role_in_use_and_keeps_answers_to_be_read(tmp_path: Path) -> None:
    model = random_reward_model(sft_roles(tmp_path, "full"))
    judge = random_reward_model(sft_roles(tmp_path, "full"))
    shake(judge.roles, "reward0", seed=11)
    codec, roles = Codec(tiny_tokenizer()), model.roles
    rows = [SftRow(id=str(i), question=q, answer="네.") for i, q in enumerate(QUESTIONS * 2)]
    validate = Validator(roles, model, judge, codec, rows, 8, 5, [])
    found = []
    for role in ("reward0", "reward1"):
        with roles.use(role):
            found.append(validate())
    assert found[0] != found[1]
    with roles.use("reward0"):
        assert validate() == found[0]
    prompts = [codec.prompt_ids(row.question) for row in rows]
    with roles.use("reward0"):
        ids = generate_all(roles.model, prompts, codec, 8, 16)
    read = [(prompt, [answer]) for prompt, answer in zip(prompts, ids, strict=True)]
    for key, scorer in (("score", model), ("judge", judge)):
        expected = scorer.corrected_scores(read, codec).mean().item()
        assert found[0][key] == pytest.approx(expected, abs=1e-4), key
    assert found[0]["score"] != found[0]["judge"]
    table = validate.table([0, 5, 10])
    assert len(table) == SHOWN == 12
    assert list(table[0]) == ["question", "reference", "update 0", "update 5", "update 10"]
    place = [row.question for row in rows].index(table[3]["question"])
    assert table[3]["update 0"] == table[3]["update 10"] == " ".join(codec.text(ids[place]).split())
    assert any(row["update 0"] != row["update 5"] for row in table)
