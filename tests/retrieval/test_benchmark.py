"""The table of ways to find a paragraph, on four paragraphs in SQuAD's form."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from tests.benchmarks.retrieval import main, measures_of

ARTICLES = {
    "한라산": {
        "한라산은 제주도에 있다. 높이는 1947미터이다.": [
            "한라산은 어느 섬에 있나?",
            "한라산의 높이는?",
        ],
        "백록담은 한라산의 호수이다. 물이 맑다.": ["백록담은 무엇인가?"],
    },
    "서울": {
        "서울은 대한민국의 수도이다. 한강이 흐른다.": ["대한민국의 수도는?", "서울에 흐르는 강은?"],
        "남산은 서울의 산이다. 탑이 있다.": ["남산은 어느 도시의 산인가?"],
    },
}


def test_every_way_finds_the_paragraphs(tmp_path: Path) -> None:
    articles = [
        {
            "title": title,
            "paragraphs": [
                {"context": context, "qas": [{"question": question} for question in questions]}
                for context, questions in paragraphs.items()
            ],
        }
        for title, paragraphs in ARTICLES.items()
    ]
    (tmp_path / "dev.json").write_text(json.dumps({"data": articles}), encoding="utf-8")
    found = CliRunner().invoke(main, [str(tmp_path / "dev.json"), "--out", str(tmp_path / "t.csv")])
    assert found.exit_code == 0, found.output
    table = pd.read_csv(tmp_path / "t.csv").set_index("way")
    assert set(table.index) >= {"pieces", "morphemes", "both", "both, by rank"}
    assert (table.questions == 6).all()
    assert table.loc["both", "hit@1"] == 1
    assert (table[["build_seconds", "query_ms_p50"]] > 0).all(axis=None)


def test_intervals_are_over_articles() -> None:
    article = np.repeat([0, 1], 50)
    cells = measures_of({"hit@1": (article == 0).astype(float)}, article)
    assert cells["hit@1"] == 0.5
    assert cells["hit@1, odd"] == 0
    assert (cells["hit@1_ci_low"], cells["hit@1_ci_high"]) == (0, 1)  # two articles, not a hundred
    assert cells == pytest.approx(measures_of({"hit@1": (article == 0).astype(float)}, article))
