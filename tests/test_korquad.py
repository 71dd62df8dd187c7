"""KorQuAD's exact match and F1, by hand."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.benchmarks.korquad import exact_match, f1, read, table


@pytest.mark.parametrize(
    ("answer", "right", "exact", "overlap"),
    [
        ("1989년 2월 15일", "1989년 2월 15일", 1, 1),
        ("《서울》.", "서울", 1, 1),
        ("'세종 대왕'", "세종대왕", 0, 1),  # spaces count for exact match alone
        ("서울입니다", "서울", 0, 2 * 2 / (5 + 2)),
        ("부산", "서울", 0, 0),
        ("", "서울", 0, 0),
        ("가가", "가", 0, 2 * 1 / 3),  # a character counts as often as it stands
        ("BTS", "bts", 1, 1),
    ],
)
def test_scores_by_hand(answer: str, right: str, exact: float, overlap: float) -> None:
    assert exact_match(answer, (right,)) == exact
    assert f1(answer, (right,)) == pytest.approx(overlap)
    assert f1(answer, ("없음", right)) >= f1(answer, (right,))


def test_questions_are_drawn_by_the_seed(tmp_path: Path) -> None:
    qas = [{"question": str(i), "answers": [{"text": "답"}]} for i in range(20)]
    data = {"data": [{"paragraphs": [{"context": "글", "qas": qas}]}]}
    (tmp_path / "k.json").write_text(json.dumps(data), encoding="utf-8")
    drawn = [tuple(q.question for q in read(tmp_path / "k.json", 5, seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 5
    assert len(read(tmp_path / "k.json", 100, 0)) == 20


def test_the_table_pairs_models_with_the_base() -> None:
    base = pd.DataFrame({"exact_match": [0.0, 1.0], "f1": [0.5, 1.0]})
    sft = pd.DataFrame({"exact_match": [1.0, 1.0], "f1": [1.0, 1.0]})
    found = table({"base": base, "sft": sft}, 0).set_index("model")
    assert found.loc["sft", "exact_match"] == 100
    assert found.loc["sft", "exact_match_gain"] == 50
    assert found.loc["sft", "f1_gain"] == 25
    assert found.loc["base", "f1_gain"] == 0
