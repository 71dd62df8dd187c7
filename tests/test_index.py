"""Stage index by the command of dvc.yaml, on preprocess files made by hand."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from stages import index
from stages.rlhf.chat import cited, declines
from stages.rlhf.records import (
    WITHOUT_EVIDENCE,
    PromptRow,
    RmRow,
    SftRow,
    read_rows,
    write_jsonl,
)
from stages.rlhf.retrieval.library import Library
from tests.conftest import ROOT, naming, write_fingerprint, write_params
from tests.retrieval_fixtures import TEXTS, demonstrations, groups
from tests.tokenizer_fixtures import bpe

COMMAND = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]["index"]["cmd"].split()[3:]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data/preprocess with thirty rows a part, and an embedder that nothing reads."""
    rows = tmp_path / "data" / "preprocess"
    asked = demonstrations()
    prompts = [PromptRow(id=row.id, question=row.question) for row in asked]
    for name, part in (("train", slice(None)), ("validation", slice(6)), ("test", slice(12))):
        write_jsonl(rows / "sft" / f"{name}.jsonl", asked[part])
        write_jsonl(rows / "rm" / f"{name}.jsonl", groups()[part])
        write_jsonl(rows / "ppo" / f"{name}.jsonl", prompts[part])
        if name != "validation":
            write_jsonl(rows / "judge" / f"{name}.jsonl", groups()[part])
    write_jsonl(rows / "corpus.jsonl", ({"text": text} for text in TEXTS))
    bpe("<pad>", "<bos>", "<eos>").save(str(rows / "tokenizer.json"))
    write_jsonl(rows / "rejects.jsonl", [{"part": "sft"}])
    (tmp_path / "data" / "embedder").mkdir()
    (tmp_path / "data" / "embedder" / "none").write_text("")
    write_fingerprint(tmp_path, "index")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(folder: Path, seed: int = 0, **params: Any) -> str:
    """The stage with these params of section rag; what it prints."""
    changed = {f"rag.{key}": value for key, value in params.items()}
    write_params(folder, model="micro", threads=1, seed=seed, **changed)
    result = CliRunner().invoke(index.main, COMMAND)
    return result.output if result.exit_code == 0 else f"failed: {result.output}"


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_without_rag_rows_stay_as_they_are(folder: Path) -> None:
    (folder / "data" / "rows").mkdir()
    (folder / "data" / "rows" / "stale.jsonl").write_text("{}")
    assert not run(folder, enabled=False).startswith("failed")
    before = files_of(folder / "data" / "preprocess")
    del before["rejects.jsonl"]  # which no stage reads
    assert files_of(folder / "data" / "rows") == {**before, "reading.jsonl": b""}
    assert set(files_of(folder / "data" / "index")) == {"run.json"}
    assert json.loads((folder / "metrics" / "index.json").read_text()) == {"enabled": False}


def test_rows_get_passages_and_metrics_count_them(folder: Path) -> None:
    assert not run(folder, enabled=True, passage_tokens=2000, reading=2).startswith("failed")
    rows, before = folder / "data" / "rows", files_of(folder / "data" / "preprocess")
    for name in ("corpus.jsonl", "tokenizer.json"):
        assert (rows / name).read_bytes() == before[name]
    assert set(files_of(rows)) == set(before) - {"rejects.jsonl"} | {"reading.jsonl"}
    train = read_rows(rows / "sft" / "train.jsonl", SftRow)
    assert [row.id for row in train] == [row.id for row in demonstrations()]
    kinds = [index.kind_of(row) for row in train]
    details = json.loads((folder / "metrics" / "details" / "index.json").read_text())
    groups = read_rows(rows / "rm" / "train.jsonl", RmRow)
    lessons = read_rows(rows / "reading.jsonl", SftRow)
    taught = [row.id for row in [*train, *groups] if row.passages]
    assert [row.id for row in lessons] == [f"{i}-{n}" for n in range(3) for i in taught]
    assert details["reading"] == len(lessons) > 0
    counts = details["rows"]["sft"]["train"]
    assert counts == {kind: kinds.count(kind) for kind in ("cited", "closed", "refused")}
    assert details["rows"]["sft"]["test"] == {"cited": 12}
    assert details["rows"]["ppo"]["test"] == {"unlabelled": 12}
    assert set(details["rows"]["judge"]) == {"train", "test"}
    assert details["passages"] == len(TEXTS) == len(Library.load(folder / "data" / "index").texts)
    assert details["retrieval"]["questions"] == 8  # of 12 rows; four have no phrase
    assert details["retrieval"]["hit@1"] == 1
    assert details["retrieval"]["by_kind"]["asked"]["questions"] == 8
    gone = read_rows(folder / "data" / "index" / WITHOUT_EVIDENCE, SftRow)
    assert len(gone) == details["without_evidence"] == 12
    assert all(cited(row.answer) is None and not declines(row.answer) for row in gone)
    assert all(row.passages for row in gone)


def test_another_seed_draws_others(folder: Path) -> None:
    found = []
    for seed in (7, 8):
        assert not run(folder, seed, enabled=True, passage_tokens=2000, reading=2).startswith(
            "failed"
        )
        found.append({name: files_of(folder / "data" / name) for name in ("rows", "index")})
    one, other = found
    for part in ("sft", "rm", "judge", "ppo"):
        assert one["rows"][f"{part}/train.jsonl"] != other["rows"][f"{part}/train.jsonl"]
    for name in ("sft/test.jsonl", "sft/validation.jsonl", "ppo/test.jsonl"):  # nothing is drawn
        assert one["rows"][name] == other["rows"][name]
    del one["index"]["run.json"], other["index"]["run.json"]
    assert one["index"] == other["index"]


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"right": 0.7, "absent": 0.4}, ("right", 0.7, "absent", 0.4)),
        ({"tokens": "words"}, ("rag.tokens", "words")),
        ({"right": -0.1}, ("rag.right", "-0.1")),
        ({"absent": 1.1}, ("rag.absent", 1.1)),
        ({"characters": 5}, ("rag.characters", 5)),
        ({"passages": 1}, ("rag.passages", 1)),
        ({"passage_tokens": 0}, ("rag.passage_tokens", 0)),
        ({"enabled": True, "path": "nowhere"}, ("nowhere", "no such file")),
    ],
)
def test_bad_params_are_named(folder: Path, params: dict[str, Any], named: tuple[Any, ...]) -> None:
    assert naming_matches(run(folder, **params), "failed", *named)


def naming_matches(text: str, *facts: Any) -> bool:
    return re.search(naming(*facts), text) is not None


def test_an_empty_library_is_an_error(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "empty" / "글.hwp").write_text("글")
    assert naming_matches(run(folder, enabled=True, path="empty"), "failed", "no passage")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (PromptRow(id="1", question="?"), "closed"),
        (PromptRow(id="1", question="?", passages=("글",)), "unlabelled"),
        (SftRow(id="1", question="?", answer="가 [1]"), "closed"),
        (SftRow(id="1", question="?", answer="가 [1]", passages=("글",)), "cited"),
        (SftRow(id="1", question="?", answer="가", passages=("글",)), "unlabelled"),
        (
            RmRow(id="1", question="?", answers=("가 [1]", "나"), ranks=(2, 1), passages=("글",)),
            "unlabelled",
        ),
        (
            RmRow(
                id="1",
                question="?",
                answers=("가 [1]", "근거에서 답을 찾을 수 없습니다."),
                ranks=(1, 0),
                passages=("글",),
            ),
            "refused",
        ),
    ],
)
def test_what_passages_are_for(row: PromptRow, expected: str) -> None:
    assert index.kind_of(row) == expected
