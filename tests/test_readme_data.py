"""The README's examples of data are read as it says, and `preprocess` prints the lines it shows."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest

from stages.rlhf.config.preprocess import Column
from stages.rlhf.ingest.cleaning import Reason, clean_item
from stages.rlhf.ingest.needs import NEEDS
from stages.rlhf.ingest.sources import Reader, aihub, jsonl, kochatgpt
from stages.rlhf.ingest.sources.items import PARTS, Item
from stages.rlhf.ingest.sources.names import WORDS
from stages.rlhf.ingest.sources.shapes import ANSWER, ANSWERS, MESSAGES, QUESTION, RANKS, SCORES
from tests.conftest import ROOT
from tests.test_preprocess import metrics, question, run, world, write_source

FORMATS = (ROOT / "stages/rlhf/ingest/README.md").read_text("utf-8")
TEXT = (ROOT / "README.md").read_text("utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| ([^|]*?)<br>(.*) \|$", TEXT, flags=re.MULTILINE)
CAPITAL = ("수도는?", "서울입니다.", {"부산입니다."})
SEOUL = ("영어로 옮기세요. 서울", "Seoul", {"Busan"})


def lines(cell: str) -> list[str]:
    """The lines of code in a cell."""
    return [line.strip("`") for line in cell.split("<br>")]


def read(source: str, part: Any, row: Any) -> Item:
    if source == "jsonl":
        return jsonl.item(part, row, "1", None, {})
    return {"aihub": aihub, "kochatgpt": kochatgpt}[source].item(part, row, "1", None)


def test_every_source_and_the_usual_shapes_have_their_example() -> None:
    assert [source for source, *_ in ROWS] == ["jsonl"] * 7 + ["kochatgpt", "aihub"]
    words = " ".join(title for _, title, _ in ROWS)
    for name in ("koqa", "TRL", "chats", "Alpaca", "KULLM", "UltraFeedback", "tables", "71748"):
        assert name in words


@pytest.mark.parametrize(("source", "title", "cell"), [row for row in ROWS if "{" in row[2]])
def test_an_example_is_read_as_meant(source: str, title: str, cell: str) -> None:
    asked, good, bad = SEOUL if "Alpaca" in title else CAPITAL
    for part, line in zip(PARTS, lines(cell), strict=True):
        item = read(source, part, json.loads(line))
        assert item.fault is None
        row = clean_item(item).row
        assert row.question == asked
        ranks = {answer.text: answer.rank for answer in row.answers}
        assert ranks == {"sft": {good: 1}, "rm": {good: 1} | dict.fromkeys(bad, 2), "ppo": {}}[part]


def test_the_table_is_read_as_meant(tmp_path: Path) -> None:
    (cell,) = (cell for _, title, cell in ROWS if "tables" in title)
    write_source(tmp_path, world(2))
    (tmp_path / "rm.jsonl").unlink()
    (tmp_path / "rm.csv").write_text("\n".join(lines(cell)), encoding="utf-8")
    found = [clean_item(item).row for item in Reader("jsonl", tmp_path, None).items("rm")]
    answers = [[(answer.text, answer.rank) for answer in row.answers] for row in found]
    assert answers == [
        [("서울입니다.", 1), ("부산입니다.", 2)],
        [("서울입니다.", 1), ("인천입니다.", 2)],
    ]
    assert {row.question for row in found} == {"수도는?"}


def test_preprocess_prints_the_lines_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = world(100)
    rows["sft"] = [{"instruction": r["question"], "output": r["answer"]} for r in rows["sft"]]
    rows["sft"][5]["output"] = ""
    for number in (6, 7):
        rows["sft"][number]["output"] = "저는 <NAME>입니다."
    pairs = [
        {"prompt": question(1000 + n), "chosen": f"{a}.", "rejected": f"{b}."}
        for n in range(80)
        for a, b in ("가나", "가다", "나다")
    ]
    del rows["rm"]
    write_source(tmp_path / "source", rows)
    pd.DataFrame(pairs).to_csv(tmp_path / "source" / "rm.csv", index=False)
    result = run(tmp_path, monkeypatch)
    assert result.exit_code == 0, result.output
    (block,) = re.findall(r"^```text\n(.*?)^```$", FORMATS, flags=re.MULTILINE | re.DOTALL)
    shown = block.splitlines()
    assert len(shown) == 5
    assert not [line for line in shown if line not in result.output.splitlines()], result.output
    assert metrics(tmp_path / "out")["rm"]["merged"] == 160


def codes(row: str) -> list[str]:
    return re.findall(r"`([^`]+)`", row)


def test_the_rooms_readme_names_every_key_word_and_reason() -> None:
    rows = [line.split("|") for line in FORMATS.splitlines() if line.startswith("| `")]
    cells = {tuple(codes(row[1])): codes(row[2]) for row in rows}
    for names in (QUESTION, ANSWER, MESSAGES, ANSWERS, RANKS, SCORES):
        others = [code for code in cells[names[:1]] if code in names]
        assert sorted({*names[:1], *others}) == sorted(names)
    for split, words in WORDS.items():
        if words != (split,):
            assert (split, *cells[split,]) == words
    named = {name for first in cells for name in first}
    assert set(get_args(Reason)) <= named
    columns = {name for name in get_args(Column) if f"`{name}`" in FORMATS}
    assert columns == set(get_args(Column))


def test_the_rooms_readme_says_how_many_rows_are_needed() -> None:
    splits = ("train", "validation", "test", "judge_train", "judge_test")
    for part, needs in NEEDS.items():
        (row,) = re.findall(rf"^\| {part} \| ([\d–| ]+) \|$", FORMATS, flags=re.MULTILINE)
        found = dict(zip(splits, row.split(" | "), strict=True))
        assert {name: int(n) for name, n in found.items() if n != "–"} == {
            split: need.rows for split, need in needs.items()
        }
