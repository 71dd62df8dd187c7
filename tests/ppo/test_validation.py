"""What validation measures of a policy, and which of its answers are shown."""

from pathlib import Path

import pytest

from stages.rlhf.chat import Codec
from stages.rlhf.decoding.generation import generate_all
from stages.rlhf.ppo.validation import SHOWN, Validator, reference_metrics
from stages.rlhf.records import Response, SftRow
from tests.model_fixtures import (
    QUESTIONS,
    at_once,
    random_reward_model,
    sft_roles,
    shake,
    tiny_tokenizer,
)


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
    assert found["chrf_valid"] == 50
    assert 50 <= found["chrf_plus_plus"] < found["chrf"]


@pytest.mark.parametrize(
    ("answer", "ended"),
    [
        ("도쿄입니다.", False),
        ("도쿄입니다. 도쿄입니다. 도쿄입니다. 도쿄입니다.", True),
        ("일본의 수도는?", True),
    ],
)
def test_only_valid_answers_count_for_the_choice(answer: str, ended: bool) -> None:
    rows = [SftRow(id="0", question="일본의 수도는?", answer="도쿄입니다.")]
    found = reference_metrics([Response(answer, 9, ended)], rows)
    assert found["chrf"] > 0
    assert found["chrf_valid"] == 0
    right = reference_metrics([Response("도쿄예요.", 9, True)], rows)
    assert 0 < right["chrf_valid"] == right["chrf"]


def test_a_validator_measures_the_role_in_use_and_keeps_answers_to_be_read(tmp_path: Path) -> None:
    model = random_reward_model(sft_roles(tmp_path, "full"))
    judge = random_reward_model(sft_roles(tmp_path, "full"))
    shake(judge.roles, "reward0", seed=11)
    codec, roles = Codec(tiny_tokenizer()), model.roles
    rows = [SftRow(id=str(i), question=q, answer="네.") for i, q in enumerate(QUESTIONS * 2)]
    validate = Validator(roles, model, judge, codec, rows, 8, at_once(5))
    found = []
    for role in ("reward0", "reward1", "reward0"):
        with roles.use(role):
            found.append(validate())
    assert found[0] != found[1]
    assert found[0] == found[2]
    prompts = [codec.prompt_ids(row.question) for row in rows]
    with roles.use("reward0"):
        ids = generate_all(roles.model, prompts, codec, 8, at_once(16))
    read = [(prompt, [answer]) for prompt, answer in zip(prompts, ids, strict=True)]
    for key, scorer in (("score", model), ("judge", judge)):
        expected = scorer.corrected_scores(read, codec).mean().item()
        assert found[0].metrics[key] == pytest.approx(expected, abs=1e-4), key
    assert found[0].metrics["score"] != found[0].metrics["judge"]
    table = validate.table([0, 5, 10], [one.shown for one in found])
    assert len(table) == SHOWN == 12
    assert list(table[0]) == ["question", "reference", "update 0", "update 5", "update 10"]
    place = [row.question for row in rows].index(table[3]["question"])
    assert table[3]["update 0"] == table[3]["update 10"] == " ".join(codec.text(ids[place]).split())
    assert any(row["update 0"] != row["update 5"] for row in table)
