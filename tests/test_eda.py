"""EDA: seed figures 1-7, the tables behind them, and what they count."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from stages.eda import main
from stages.rlhf.files import RUN
from stages.rlhf.records import PromptRow, RmRow, SftRow, details_file, write_jsonl
from stages.rlhf.report import tables
from tests.conftest import ROOT, write_fingerprint

NAMES = [
    "1_share",
    "2_question_length",
    "3_answer_length",
    "4_sft_lengths",
    "5_rank",
    "6_rank_length",
    "7_category",
    "7_question_type",
]
SFT = [
    SftRow(id="s1", question="가나다?", answer="하나둘셋넷", category="인문", question_type="단답"),
    SftRow(id="s2", question="가나다라마?", answer="하나", category="자연"),
    SftRow(id="s3", question="가?", answer="하나둘셋", category="인문"),
]
RM = [
    RmRow(id="r1", question="나?", answers=("a" * 9, "b" * 3, "c"), ranks=(2, 1, 3)),
    RmRow(id="r2", question="다?", answers=("a" * 5, "b" * 7, "c"), ranks=(1, 1, 3)),
]
PPO = [PromptRow(id="p1", question="라라라라?", category="공학")]


def write_rows(folder: Path, parts: dict[str, list[Any]]) -> Path:
    for part, rows in parts.items():
        write_jsonl(folder / part / "train.jsonl", rows)
        write_jsonl(folder / part / "validation.jsonl", rows[:1])
        write_jsonl(folder / part / "test.jsonl", [])
    return folder


def run(rows: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(ROOT)
    code = rows.parent / write_fingerprint(rows.parent, "eda")
    arguments = ["--code", code, "--rows", rows]
    arguments += ["--plots", out / "plots", "--metrics", out / "eda.json"]
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows", {"sft": SFT, "rm": RM, "ppo": PPO})


def test_exact_files_and_same_bytes(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = []
    for name in ("one", "two"):
        result = run(rows, tmp_path / name, monkeypatch)
        assert result.exit_code == 0, result.output
        files = {p.name: p.read_bytes() for p in (tmp_path / name / "plots").iterdir()}
        assert set(files) == {f"{n}.{end}" for n in NAMES for end in ("png", "csv")} | {RUN}
        contents.append((files, (tmp_path / name / "eda.json").read_bytes()))
    assert contents[0] == contents[1]
    assert all(len(data) < 300_000 for data in contents[0][0].values())


def test_numbers(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(rows, tmp_path, monkeypatch)
    found = json.loads(details_file(tmp_path / "eda.json").read_text(encoding="utf-8"))
    assert found["items"]["sft"] == {
        "train": 3, "validation": 1, "test": 0, "train_share": 0.5
    }  # fmt: skip
    assert found["question_length"]["sft"]["p50"] == 4
    assert found["question_length"]["sft"]["mean"] == pytest.approx(4)
    assert found["answer_length"]["rm"]["count"] == 6
    assert found["answer_length"]["rm"]["p95"] == pytest.approx(8.5)
    assert found["answer_length"]["ppo"]["mean"] is None
    assert found["answer_length"]["ppo"]["mean_reason"]
    # r2 has a tie: three answers of rank 1 (3, 5, 7 characters), one of rank 2, two of rank 3.
    rank = found["rank"]
    assert rank["balance"] == pytest.approx({"1": 0.5, "2": 1 / 6, "3": 1 / 3}, abs=1e-5)
    assert rank["mean_length"] == {"1": 5, "2": 9, "3": 1}
    assert rank["longest"] == "2"
    assert rank["tied_groups"] == 0.5
    assert found["category"]["sft"] == pytest.approx({"인문": 2 / 3, "자연": 1 / 3}, abs=1e-5)
    assert found["category"]["rm"] is None
    assert "category" in found["category"]["rm_reason"]
    assert found["question_type"]["sft"] == pytest.approx(
        {"단답": 1 / 3, tables.MISSING: 2 / 3}, abs=1e-5
    )


def test_label_table_top_others_missing() -> None:
    # The tie of 나 and 다 is settled by name.
    rows = [
        PromptRow(id=str(i), question="?", category=c)
        for i, c in enumerate(["가", "가", "가", "다", "나", "라", None, "가"])
    ]
    table = tables.label_table({"sft": rows, "ppo": []}, "category", 2)
    assert list(table["category"]) == ["가", "나", tables.OTHERS, tables.MISSING]
    assert list(table["sft"]) == pytest.approx([0.5, 0.125, 0.25, 0.125])
    assert list(table["ppo"]) == [0, 0, 0, 0]
    alone = tables.label_table({"sft": rows}, "category", 2)
    assert list(alone["category"]) == list(table["category"])


def test_bins_hold_every_value() -> None:
    values = np.array([0.0, 1, 5, 9, 10, 500])
    edges = tables.length_edges(values, bins=4)
    table = tables.bin_table({"share": values}, edges)
    assert table["share"].sum() == pytest.approx(1)
    assert edges[-1] > np.quantile(values, 0.99)
    short = tables.bin_table({"share": values}, np.array([0.0, 2, 10]))
    assert list(short["share"]) == pytest.approx([2 / 6, 4 / 6])


def test_fractional_rank_is_named() -> None:
    row = RmRow(id="r", question="?", answers=("a", "b"), ranks=(1.5, 1.5))
    assert list(tables.rank_table([row])["rank"]) == ["1.5"]


def test_empty_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_rows(tmp_path / "rows", {"sft": SFT, "rm": [], "ppo": []})
    result = run(rows, tmp_path, monkeypatch)
    assert result.exit_code == 0, result.output
    found = json.loads(details_file(tmp_path / "eda.json").read_text(encoding="utf-8"))
    assert found["rank"]["balance"] is None
    assert found["rank"]["balance_reason"]
    assert pd.read_csv(tmp_path / "plots" / "1_share.csv")["train_share"].tolist() == [1, 0, 0]


def test_missing_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_rows(tmp_path / "rows", {"sft": SFT, "ppo": PPO})
    result = run(rows, tmp_path, monkeypatch)
    assert result.exit_code == 1
    assert "rm/train.jsonl" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("values", "bins", "edges"),
    [
        ([0.0, 1.0], 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ([-0.23, 0.9], 4, [-0.5, 0, 0.5, 1.0]),
        ([3.0, 47.0], 5, [0, 10, 20, 30, 40, 50]),
        ([0.7], 9, [0, 1]),
        ([], 9, [0, 1]),
    ],
)
def test_even_edges(values: list[float], bins: int, edges: list[float]) -> None:
    assert tables.even_edges(np.array(values), bins).tolist() == edges


def test_even_edges_are_shared_by_values_that_span_about_the_same() -> None:
    rng = np.random.default_rng(0)
    one, other = (tables.even_edges(rng.normal(size=500), 40) for _ in range(2))
    widths = {round(float(w), 9) for edges in (one, other) for w in np.diff(edges)}
    assert widths == {0.2}
    shared = set(one) & set(other)
    assert len(shared) > 25
