"""`koqa chat`, as it is typed: what it refuses to start with, and what a kill leaves."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from stages.cli.main import koqa
from tests.bot_fixtures import write_run
from tests.conftest import ROOT
from tests.tokenizer_fixtures import QUESTIONS


def run(*words: str) -> Result:
    return CliRunner(env={"KOQA_TOKEN": None}).invoke(koqa, ["chat", *words])


@contextmanager
def server(folder: Path, *words: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command in a process of its own, and the address that it prints."""
    command = [sys.executable, "-m", "stages.cli.main", "chat", "--port", "0", *words]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[0], process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--host", "0.0.0.0"), "--host 0.0.0.0 can be reached from elsewhere; expected a token"),
        (("--host", "::"), "--host :: can be reached from elsewhere; expected a token"),
        (("--host", "0.0.0.0", "--token", "secret"), "the token has 6 characters; expected 16"),
        (("--host", "no.such.invalid"), "--host no.such.invalid: no such address"),
    ],
)
def test_a_door_without_a_lock_is_not_opened(words: tuple[str, ...], expected: str) -> None:
    done = run(*words, "--port", "0")
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: {expected}")


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("--port", str(port))
    assert done.output == (
        f"Error: 127.0.0.1, port {port}: Address already in use; choose another --port\n"
    )


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_run(tmp_path, monkeypatch)
    (tmp_path / "file").write_text("")
    done = run("--port", "0", "--votes", "file/rm.jsonl")
    assert done.output == "Error: file/rm.jsonl: cannot be written: File exists\n"
    (data / "ppo" / "best" / "model.json").unlink()
    done = run("--port", "0")
    assert done.exit_code == 1
    assert "ppo/best/model.json: no such file" in done.output


def test_a_kill_in_mid_answer_loses_no_vote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, monkeypatch)
    given = []
    with server(tmp_path) as (url, process), httpx.Client(base_url=url, timeout=60) as client:
        for question in QUESTIONS:
            found = client.post("/api/ask", json={"question": question}).text.splitlines()
            ask = json.loads(found[0])["ask"]
            vote = {"ask": ask, "a": "base", "b": "ppo", "vote": "tie"}
            done = client.post("/api/vote", json=vote)
            if done.status_code == 200:
                given.append(done.json()["row"])
        with client.stream("POST", "/api/ask", json={"question": QUESTIONS[0]}) as answer:
            lines = answer.iter_lines()
            assert json.loads(next(lines))["waiting"] == 0
            process.send_signal(signal.SIGKILL)
            with pytest.raises(httpx.RemoteProtocolError):
                assert '{"done": true}' not in [*lines]
    file = tmp_path / "data" / "votes" / "rm.jsonl"
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == given
    assert len(given) > 3


def test_with_a_token_it_listens_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, monkeypatch)
    monkeypatch.setenv("KOQA_TOKEN", "t" * 16)
    with server(tmp_path, "--host", "0.0.0.0", "--model", "sft", "--no-scores") as (url, process):
        assert url.startswith("http://0.0.0.0:")
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}api/about").status_code == 401
        right = {"Authorization": f"Bearer {'t' * 16}"}
        about = httpx.get(f"{url}api/about", headers=right).json()
        assert [model["name"] for model in about["models"]] == ["sft"]
        assert about["scored"] is False
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
