"""`koqa ask` and `koqa export`, as they are typed."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from stages.cli import ask
from stages.cli.main import koqa
from stages.rlhf.bot import served
from stages.rlhf.bot.models import Bot
from stages.rlhf.retrieval.library import Library
from stages.rlhf.retrieval.passages import Passage
from tests.bot_fixtures import opened, write_run
from tests.tokenizer_fixtures import QUESTIONS

ONE, TWO = QUESTIONS[:2]


def run(*words: str) -> Result:
    return CliRunner().invoke(koqa, words)


def test_all_models_answer_with_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_run(tmp_path, monkeypatch)
    done = run("ask", ONE, TWO, "--model", "all", "--json")
    rows = [json.loads(line) for line in done.output.splitlines()]
    assert [(row["question"], row["model"]) for row in rows] == [
        (question, name) for question in (ONE, TWO) for name in ("base", "sft", "ppo")
    ]
    bot = opened(data)
    for row in rows:
        prompt = bot.prompt(row["question"])
        (ids,) = bot.greedy(row["model"], [prompt])
        assert row["answer"] == bot.codec.text(ids)
        assert row["tokens"] == len(ids)
        assert row["ended"] == (ids[-1] == bot.codec.eos_id)
        (found,) = bot.scores([(prompt, ids)]) or (None,)
        assert found is not None
        assert (row["reward"], row["judge"]) == pytest.approx(tuple(found), abs=1e-5)


def test_with_passages_an_answer_is_compared_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_run(tmp_path, monkeypatch)
    texts = ("일본의 수도는 도쿄이다.", "프랑스의 수도는 파리이다.")
    Library.build([Passage("a", (text,)) for text in texts], ["pieces"], data / "index")
    question, right = "프랑스의 수도는 어디인가요?", "프랑스의 수도는 파리입니다."
    tried = []

    def tries(bot: Bot, name: str, question: str, passages: Sequence[str], n: int) -> Iterator[str]:
        tried.append((question, *passages))
        yield from ["도쿄입니다."] * 3 + [right] * 2

    monkeypatch.setattr(Bot, "tries", tries)
    (row,) = map(json.loads, run("ask", question, "--rag", "--json").output.splitlines())
    assert row["source"] is None  # what a tiny random model says
    number = row["passages"].index(texts[1]) + 1
    assert row["checked"] == f"{right} [{number}]"
    assert tried == [(question, texts[1])]
    assert f"in the passages: {right} [{number}]" in run("ask", question, "--rag").output
    assert "in the passages" not in run("ask", question, "--no-rag").output


def test_for_people_it_prints_question_answer_and_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bot = opened(write_run(tmp_path, monkeypatch), names=("ppo",), scored=False)
    (ids,) = bot.greedy("ppo", [bot.prompt(ONE)])
    printed = run("ask", ONE).output
    assert printed.startswith(f"{ONE}\n ppo  ")
    text = bot.codec.text(ids)
    shown = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
    assert shown in printed.replace("\n      ", "\n")
    assert f"{len(ids)} tokens" in printed
    assert "reward " in printed
    assert "reward " not in run("ask", ONE, "--no-scores").output


def test_a_terminal_is_given_no_commands(capsys: pytest.CaptureFixture[str]) -> None:
    ask._show("가\x1b[2J\x07 나\n다", as_json=False)
    assert capsys.readouterr().out == "가\ufffd[2J\ufffd 나\n      다"


def test_questions_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, monkeypatch)
    lines, rows = tmp_path / "q.txt", tmp_path / "q.jsonl"
    lines.write_text(f"\ufeff{ONE}\n\n{TWO}\n", encoding="utf-8")
    rows.write_text("".join(json.dumps({"question": q}) + "\n" for q in (ONE, TWO)))
    answers = [
        run("ask", "--no-scores", "--json", "--file", str(file)).output for file in (lines, rows)
    ]
    assert answers[0] == answers[1]
    assert [json.loads(line)["question"] for line in answers[0].splitlines()] == [ONE, TWO]
    rows.write_text('{"question": "a"}\n{"q": "b"}\n')
    assert f"{rows}, line 2" in run("ask", "--file", str(rows)).output
    lines.write_bytes("가".encode("cp949"))
    assert f"{lines}: not UTF-8" in run("ask", "--file", str(lines)).output


@pytest.mark.parametrize("words", [[], [" "], ["가" * 100_000]])
def test_no_question_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    write_run(tmp_path, monkeypatch)
    done = run("ask", *words)
    assert done.exit_code == 1
    (line,) = done.output.splitlines()
    assert line.startswith("Error: ")
    assert "question" in line


def test_export_writes_a_folder_with_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, monkeypatch)
    done = run("export", "--out", "model", "--questions", "3", "--no-served")
    assert done.output == "model: 3 of 3 answers equal, " + done.output.split("equal, ")[-1]
    assert "# micro: SFT, then PPO" in (tmp_path / "model" / "README.md").read_text()
    assert "exists" in run("export", "--out", "model").output
    with monkeypatch.context() as patch:
        patch.setattr(served, "can_serve", lambda: False)
        assert "[serve]" in run("export", "--out", "other", "--served").output
    assert "hub" in run("export", "--out", "other", "--adapter").output
    assert "8 of 8 scores" in run("export", "--out", "rm", "--model", "rm").output
    assert "--adapter" in run("export", "--out", "x", "--model", "rm", "--adapter").output
