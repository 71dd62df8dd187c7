"""Votes: rows of the ranked groups, on the disk once they are acknowledged."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from stages.rlhf.web.votes import VoteFile, group
from tests.conftest import naming

ANSWERS = {
    "base": {"answer": "아니요.", "ended": False},
    "sft": {"answer": "네.", "ended": True},
    "ppo": {"answer": "서울입니다.", "ended": True},
    "twin": {"answer": "네.", "ended": True},
}


@pytest.mark.parametrize(
    ("vote", "ranks"), [("a", [1, 2]), ("b", [2, 1]), ("tie", [1, 1]), ("both_bad", [1, 1])]
)
def test_a_vote_is_a_ranked_group(vote: str, ranks: list[int]) -> None:
    assert group("1f", "수도는?", ANSWERS, "base", "ppo", vote) == {
        "id": "vote-1f-base-ppo",
        "question": "수도는?",
        "answers": ["아니요.", "서울입니다."],
        "ranks": ranks,
        "vote": vote,
        "models": ["base", "ppo"],
        "ended": [False, True],
    }


@pytest.mark.parametrize(
    ("a", "b", "vote", "said"),
    [
        ("sft", "ppo", "c", "vote is 'c'"),
        ("sft", "dpo", "a", "no answer by 'dpo'"),
        ("sft", "twin", "a", "the same"),
        ("sft", "sft", "a", "the same"),
    ],
)
def test_what_is_no_vote_is_refused(a: str, b: str, vote: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        group("1f", "수도는?", ANSWERS, a, b, vote)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_votes_are_appended_and_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "votes" / "rm.jsonl"
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(path.stat().st_size), fsync(fd)))
    first, second = {"question": "가\n나"}, {"question": "다"}
    VoteFile(path).append(first)
    assert lines(path) == [first]
    VoteFile(path).append(second)  # another start of the server
    assert lines(path) == [first, second]
    assert synced[1] == path.stat().st_size > synced[0] > 0


def test_half_a_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "rm.jsonl"
    path.write_bytes('{"question": "가'.encode()[:-1])
    VoteFile(path).append({"question": "나"})
    assert json.loads(path.read_bytes().splitlines()[1]) == {"question": "나"}


def test_what_cannot_be_written_whole_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rm.jsonl"
    file = VoteFile(path)
    file.append({"question": "가"})
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        file.append({"question": "나"})
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=naming(tmp_path, "cannot be written", "Is a directory")):
        VoteFile(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=naming("file/rm.jsonl", "cannot be written")):
        VoteFile(tmp_path / "file" / "rm.jsonl")
