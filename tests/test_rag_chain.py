"""The whole chain with `rag.enabled` on the micro model: stages read what stage index wrote."""

import json
import re
from pathlib import Path

import pytest

from stages.rlhf.chat import EVIDENCE, cited, declines
from stages.rlhf.records import PromptRow, RmRow, SftRow, read_rows
from stages.rlhf.retrieval.library import Library
from tests.chain import run_chain

Chain = tuple[Path, dict[str, set[str]]]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rag")
    run_chain(folder, **{"rag.enabled": True})
    return folder


def test_rows_are_those_of_preprocess_with_passages(chain: Path) -> None:
    for part, schema in (("sft", SftRow), ("rm", RmRow), ("judge", RmRow), ("ppo", PromptRow)):
        for file in sorted((chain / "data" / "preprocess" / part).glob("*.jsonl")):
            before = read_rows(file, schema)
            after = read_rows(chain / "data" / "rows" / part / file.name, schema)
            assert [(row.id, row.question) for row in after] == [
                (row.id, row.question) for row in before
            ]
            assert any(row.passages for row in after), file
            assert all(row.passages or row == old for row, old in zip(after, before, strict=True))


def test_training_rows_cite_or_decline_where_they_have_passages(chain: Path) -> None:
    rows = read_rows(chain / "data" / "rows" / "sft" / "train.jsonl", SftRow)
    shown = [row for row in rows if row.passages]
    assert all(declines(row.answer) or cited(row.answer) for row in shown)
    assert any(declines(row.answer) for row in shown)
    assert all(EVIDENCE in row.message for row in shown)


def test_evaluate_compares_with_and_without(chain: Path) -> None:
    found = json.loads((chain / "metrics" / "details" / "evaluate.json").read_text("utf-8"))["rag"]
    assert set(found) == {"closed", "rag", "evidence_out", "refusal"}
    for condition in ("closed", "rag", "evidence_out"):
        checked = set() if condition == "closed" else {"checked"}
        assert {"base", "sft", "ppo", "questions"} | checked == set(found[condition])
    for model in ("ppo", "checked"):
        assert {"precision", "recall"} <= set(found["refusal"][model])


def test_the_report_shows_both(chain: Path) -> None:
    page = (chain / "data" / "evaluate" / "report.html").read_text("utf-8")
    found = json.loads((chain / "metrics" / "details" / "evaluate.json").read_text("utf-8"))["rag"]
    section = page.split('<h2 id="rag">')[1].split("<h2")[0]
    rows = re.findall(r"<tr><th>([^<]+ · [^<]+)</th>(.*?)</tr>", section)
    assert [name for name, _ in rows] == [
        f"{condition} · {model}"
        for condition in ("근거 없이", "찾은 근거로", "근거를 뺐을 때")
        for model in ("기반 모델", "SFT", "PPO", "PPO, 근거와 맞춘 답")
        if (condition, model) != ("근거 없이", "PPO, 근거와 맞춘 답")
    ]
    assert f"{found['rag']['ppo']['contains']:.3f}" in rows[5][1]
    assert f"{found['evidence_out']['sft']['declined']:.3f}" in rows[8][1]
    assert 'href="#rag"' in page


def test_the_index_is_found_again(chain: Path) -> None:
    library = Library.load(chain / "data" / "index")
    metrics = json.loads((chain / "metrics" / "index.json").read_text("utf-8"))
    assert metrics["passages"] == len(library.texts)
    assert metrics["retrieval"]["hit@5"] > 0.8
    assert library.find(library.texts[7], 1) == [7]


def test_without_it_the_report_says_nothing_of_it(micro_chain: Chain) -> None:
    page = (micro_chain[0] / "data" / "evaluate" / "report.html").read_text("utf-8")
    assert "#rag" not in page
    assert 'id="rag"' not in page


def test_without_it_rows_are_copies(micro_chain: Chain) -> None:
    folder = micro_chain[0] / "data"
    for part in ("sft", "rm", "judge", "ppo"):
        for file in (folder / "preprocess" / part).glob("*.jsonl"):
            assert (folder / "rows" / part / file.name).read_bytes() == file.read_bytes()
    assert {path.name for path in (folder / "index").iterdir()} == {"run.json"}
    assert "rag" not in json.loads(
        (micro_chain[0] / "metrics" / "details" / "evaluate.json").read_text("utf-8")
    )
