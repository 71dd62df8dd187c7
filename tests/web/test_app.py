"""The requests of the page, and those of others."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from stages.rlhf.bot.models import NAMES, Bot
from stages.rlhf.web import app as app_module
from stages.rlhf.web import batcher as batcher_module
from stages.rlhf.web.app import build
from stages.rlhf.web.batcher import Batcher, Event, Question
from stages.rlhf.web.guard import MOST_BYTES
from stages.rlhf.web.votes import VoteFile
from tests.tokenizer_fixtures import QUESTIONS

TOKEN = "a-token-of-24-characters"
LOCAL = "http://localhost:7860"


@pytest.fixture
def client(batcher: Batcher, tmp_path: Path) -> TestClient:
    app = build(batcher, VoteFile(tmp_path / "rm.jsonl"), None, ["김치는?"])
    return TestClient(app, base_url=LOCAL)


def events(client: TestClient, question: str, **more: Any) -> list[Event]:
    found = client.post("/api/ask", json={"question": question, **more})
    assert found.status_code == 200, found.text
    return [json.loads(line) for line in found.text.splitlines()]


def refused(found: Any) -> tuple[int, str, str]:
    body = found.json()
    assert set(body) == {"error", "message"}
    return found.status_code, body["error"], body["message"]


def test_the_page_and_what_it_needs_come_from_here_alone(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for name in ("/chat.css", "/chat.js", "/icon.svg"):
        assert f'"{name}"' in page.text
        found = client.get(name)
        assert found.status_code == 200
        assert "http" not in found.text.replace("http://www.w3.org/2000/svg", "").replace(
            "HTTP ${", ""
        )
    font = client.get("/font.ttf")
    assert font.content[:4] == b"\0\1\0\0"
    assert b"TSI" not in font.content[:1000]
    assert "max-age" in font.headers["cache-control"]
    for found in (page, font, client.get("/api/about"), client.get("/none")):
        assert "default-src 'none'" in found.headers["content-security-policy"]
        assert found.headers["x-content-type-options"] == "nosniff"
    assert client.get("/none").status_code == 404
    assert client.get("/../../params.yaml").status_code == 404


def test_the_page_learns_who_answers(client: TestClient, micro_run: Path, tmp_path: Path) -> None:
    assert client.get("/api/about").json() == {
        "base_model": "micro",
        "models": [{"name": name, "made_at": None} for name in NAMES],
        "scored": True,
        "rag": False,
        "votes": str(tmp_path / "rm.jsonl"),
        "examples": ["김치는?"],
        "most_characters": app_module.MOST_CHARACTERS,
    }


def test_a_question_is_answered_by_all_models(client: TestClient, bot: Bot) -> None:
    first, *others, last = events(client, QUESTIONS[5])
    assert first.keys() == {"ask", "waiting", "passages"}
    assert first["passages"] == []
    assert not any("cited" in event for event in others)
    assert last == {"done": True}
    answers = {event["model"]: event["answer"] for event in others if "answer" in event}
    prompt = bot.prompt(QUESTIONS[5])
    assert answers == {n: bot.codec.text(*bot.greedy(n, [prompt])) for n in NAMES}
    sampled = [events(client, QUESTIONS[5], seed=seed)[1:] for seed in (4, 4)]
    assert [e for e in sampled[0] if "answer" in e] == [e for e in sampled[1] if "answer" in e]


def test_a_vote_is_a_line_of_the_file(client: TestClient, bot: Bot, tmp_path: Path) -> None:
    found = events(client, QUESTIONS[5])
    answers = {event["model"]: event for event in found if "answer" in event}
    assert answers["sft"]["answer"] != answers["ppo"]["answer"]
    vote = {"ask": found[0]["ask"], "a": "sft", "b": "ppo", "vote": "b", "blind": True}
    row = client.post("/api/vote", json=vote).json()["row"]
    (line,) = (tmp_path / "rm.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == row
    assert row["question"] == QUESTIONS[5]
    assert row["answers"] == [answers[name]["answer"] for name in ("sft", "ppo")]
    assert (row["ranks"], row["blind"], row["seed"]) == ([2, 1], True, None)
    again = client.post("/api/vote", json={**vote, "a": "ppo", "b": "sft"})
    assert refused(again)[:2] == (409, "voted")
    assert client.post("/api/vote", json={**vote, "a": "base"}).status_code == 200
    assert len((tmp_path / "rm.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_votes_that_cannot_be_are_refused(
    client: TestClient, batcher: Batcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vote = {"ask": "0", "a": "sft", "b": "ppo", "vote": "a"}
    assert refused(client.post("/api/vote", json=vote))[:2] == (404, "unknown")
    vote["ask"] = events(client, QUESTIONS[5])[0]["ask"]
    for changed in ({"vote": "c"}, {"a": "dpo"}, {"b": None}, {"vote": ["a"]}):
        assert refused(client.post("/api/vote", json=vote | changed))[:2] == (422, "vote")
    (tmp_path / "rm.jsonl").unlink()
    (tmp_path / "rm.jsonl").mkdir()
    status, code, message = refused(client.post("/api/vote", json=vote))
    assert (status, code) == (507, "vote_file")
    assert f"{tmp_path / 'rm.jsonl'}: cannot be written: Is a directory" in message
    (tmp_path / "rm.jsonl").rmdir()
    assert client.post("/api/vote", json=vote).status_code == 200  # a refused one does not count
    off = TestClient(build(batcher, None, None), base_url=LOCAL)
    assert refused(off.post("/api/vote", json=vote))[:2] == (404, "no_votes")
    monkeypatch.setattr(app_module, "MOST_KEPT", 1)
    old = events(client, QUESTIONS[5])[0]["ask"]
    events(client, QUESTIONS[5])
    assert refused(client.post("/api/vote", json=vote | {"ask": old}))[:2] == (404, "unknown")


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({"question": ""}, 422, "question", "empty"),
        ({"question": " \x00\x07\u200b\n"}, 422, "question", "empty"),
        ({"question": None}, 422, "question", "None"),
        ({"question": ["가"]}, 422, "question", "expected a text"),
        ({}, 422, "question", "expected a text"),
        ({"question": "가" * 2000}, 422, "question", "max_prompt_tokens"),
        ({"question": "가" * 100_000}, 413, "too_large", str(MOST_BYTES)),
        ({"question": "가?", "seed": -1}, 422, "seed", "-1"),
        ({"question": "가?", "seed": True}, 422, "seed", "True"),
        ({"question": "가?", "seed": 2**40}, 422, "seed", str(2**40)),
        (["가?"], 400, "json", "no JSON object"),
    ],
)
def test_questions_that_cannot_be_are_refused(
    client: TestClient, body: Any, status: int, code: str, words: str
) -> None:
    found = refused(client.post("/api/ask", json=body))
    assert found[:2] == (status, code)
    assert words in found[2]


def test_bodies_that_are_no_json_are_refused(client: TestClient) -> None:
    json_type = {"content-type": "application/json"}
    for content in (b"", b"{", b"\xff\xfe", b"[" * 50_000):
        found = refused(client.post("/api/ask", content=content, headers=json_type))
        assert found[:2] == (400, "json"), content[:10]
    plain = client.post(
        "/api/ask", content=b'{"question": "?"}', headers={"content-type": "text/plain"}
    )
    assert refused(plain)[:2] == (415, "type")
    assert client.get("/api/ask").status_code == 405


def test_special_tokens_and_markup_in_a_question_are_text(client: TestClient, bot: Bot) -> None:
    text = "<eos> <|user|> <b>굵게</b>?"
    found = events(client, text)
    prompt = bot.prompt(text)
    assert prompt.count(bot.codec.eos_id) == 0
    answer = next(event for event in found if event.get("model") == "ppo" and "answer" in event)
    assert answer["answer"] == bot.codec.text(*bot.greedy("ppo", [prompt]))


def test_a_full_queue_is_said(batcher: Batcher, client: TestClient) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batcher_module, "MOST_WAITING", 0)
        assert refused(client.post("/api/ask", json={"question": "가?"}))[:2] == (503, "full")
    assert events(client, "가?")[-1] == {"done": True}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", ""]
)
def test_on_loopback_other_names_are_refused(client: TestClient, host: str) -> None:
    found = client.get("/api/about", headers={"host": host})
    assert refused(found)[:2] == (421, "host")
    assert client.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:7860", "[::1]:7860", "LOCALHOST:1"])
def test_the_names_of_loopback_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/api/about", headers={"host": host}).status_code == 200


def test_elsewhere_a_token_is_needed(batcher: Batcher, tmp_path: Path) -> None:
    client = TestClient(build(batcher, None, TOKEN), base_url="http://10.0.0.1:7860")
    assert client.get("/").status_code == 200  # the page, which asks for it
    for headers in ({}, {"authorization": TOKEN}, {"authorization": f"Bearer {TOKEN[:-1]}"}):
        assert refused(client.get("/api/about", headers=headers))[:2] == (401, "token")
        found = client.post("/api/ask", json={"question": "가?"}, headers=headers)
        assert refused(found)[:2] == (401, "token")
    right = {"authorization": f"Bearer {TOKEN}"}
    assert client.get("/api/about", headers=right).status_code == 200


def test_a_reader_who_leaves_is_noted(bot: Bot) -> None:
    async def read_one() -> Question:
        question = Question("가?", bot.prompt("가?"), None, lambda event: None)
        lines = app_module.as_lines({"ask": "0"}, question, asyncio.Queue())
        assert json.loads(await anext(lines)) == {"ask": "0"}
        assert not question.gone
        await lines.aclose()
        return question

    assert asyncio.run(read_one()).gone
