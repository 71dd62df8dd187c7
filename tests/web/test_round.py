"""One round: what was voted becomes rows of the reward model's training."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.rlhf.records import read_jsonl
from stages.rlhf.web.votes import VoteFile, group
from tests.test_preprocess import check, rejects, run, world, write_source

SPLITS = ("train", "validation", "test")


def one(text: str) -> dict[str, Any]:
    return {"answer": text, "ended": True}


def rows(folder: Path, part: str) -> dict[str, list[Any]]:
    names = ("train", "test") if part == "judge" else SPLITS
    return {name: list(read_jsonl(folder / part / f"{name}.jsonl")) for name in names}


def test_votes_join_the_ranked_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_source(tmp_path / "source", world(120))
    assert run(tmp_path, monkeypatch, "first").exit_code == 0
    first = tmp_path / "first"
    raw = tmp_path / "raw"  # what README of stages/rlhf/web says
    for part in ("sft", "rm", "ppo"):
        shutil.copytree(first / part, raw / part)
    shutil.copyfile(first / "corpus.jsonl", raw / "corpus.jsonl")
    for split in ("train", "test"):
        (raw / f"judge_{split}").mkdir()
        shutil.copyfile(first / "judge" / f"{split}.jsonl", raw / f"judge_{split}" / "rm.jsonl")
    again = {"data.source": "jsonl", "data.path": str(raw)}
    assert run(tmp_path, monkeypatch, "second", **again).exit_code == 0
    for part in ("sft", "rm", "judge", "ppo"):
        assert rows(tmp_path / "second", part) == rows(first, part), part

    trained, tested = (rows(first, "rm")[split][0] for split in ("train", "test"))
    file = VoteFile(raw / "votes" / "rm.jsonl")
    new = {"sft": one("모르겠습니다."), "ppo": one("제주도에 있습니다.")}
    file.append(group("1", "한라산은 어디에 있습니까?", new, "sft", "ppo", "b"))
    file.append(group("2", trained["question"], new, "sft", "ppo", "a"))
    file.append(group("3", tested["question"], new, "sft", "ppo", "a"))
    file.append(group("4", "백두산은 어디에 있습니까?", new, "sft", "ppo", "tie"))
    file.append(group("5", "설악산은 어디에 있습니까?", {**new, "sft": one("")}, "sft", "ppo", "b"))
    assert run(tmp_path, monkeypatch, "third", **again).exit_code == 0
    third = tmp_path / "third"
    check(third)
    assert set_aside(third) == {
        "vote-3-sft-ppo": "leak",  # a test question
        "vote-4-sft-ppo": "all_tied",
        "vote-5-sft-ppo": "too_few_answers",
    }
    new_rows = {row["id"]: row for row in rows(third, "rm")["train"] if "vote" in row["id"]}
    assert new_rows.keys() == {"vote-1-sft-ppo", "vote-2-sft-ppo"}
    assert new_rows["vote-1-sft-ppo"]["answers"] == ["모르겠습니다.", "제주도에 있습니다."]
    assert new_rows["vote-1-sft-ppo"]["ranks"] == [2, 1]
    assert new_rows["vote-2-sft-ppo"]["question"] == trained["question"]
    known = {row["id"] for row in rows(first, "rm")["train"]}
    assert known == {row["id"] for row in rows(third, "rm")["train"]} - new_rows.keys()
    for part in ("sft", "judge", "ppo"):
        assert rows(third, part) == rows(first, part), part


def set_aside(out: Path) -> dict[str, str]:
    """Reasons by id of the rows of part rm that are not used."""
    return {name: reason for part, name, reason in rejects(out) if part == "rm"}
