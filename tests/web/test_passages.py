"""Questions with passages: what the models read, what the page shows of it, what a vote keeps."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from starlette.testclient import TestClient

from stages.rlhf.bot.models import NAMES, Bot
from stages.rlhf.chat import REFUSAL
from stages.rlhf.retrieval.library import Library
from stages.rlhf.retrieval.passages import Passage
from stages.rlhf.web.app import build
from stages.rlhf.web.batcher import Batcher
from stages.rlhf.web.votes import VoteFile, group
from tests.cli.test_chat import run, server
from tests.conftest import BROWSER
from tests.test_preprocess import run as preprocess
from tests.test_preprocess import world, write_source
from tests.web.test_app import LOCAL, events, refused
from tests.web.test_page import OFFLINE, REQUIRED, opened_page
from tests.web.test_round import rows

QUESTION = "제주도는?"
PASSAGES = (
    "제주도는 대한민국의 가장 큰 섬이다.",
    "<b>한라산</b>은 제주도에 있으며 높이는 1947m이다.",
    "독도는 울릉도의 동남쪽에 있다.",
)
ANSWERS = {
    "base": "모릅니다.",
    "sft": REFUSAL,
    "ppo": "제주도에는 한라산이 있습니다. [2]",
}
Say = Callable[[dict[str, str]], None]


@pytest.fixture
def say(bot: Bot, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Makes every model give an answer of its own to all questions."""

    def replace(answers: dict[str, str]) -> None:
        def stream(name: str, prompts: list[Any], seeds: Any = None) -> Iterator[dict[int, int]]:
            for token in bot.codec.response_ids(answers[name]):
                yield dict.fromkeys(range(len(prompts)), token)

        monkeypatch.setattr(bot, "stream", stream)

    replace(ANSWERS)
    return replace


def client_of(batcher: Batcher, folder: Path, passages: Any) -> TestClient:
    app = build(batcher, VoteFile(folder / "rm.jsonl"), None, passages=passages)
    return TestClient(app, base_url=LOCAL)


def test_the_models_read_the_passages_that_the_first_line_shows(
    batcher: Batcher, bot: Bot, tmp_path: Path
) -> None:
    questions = []

    def find(question: str) -> tuple[str, ...]:
        questions.append(question)
        return PASSAGES

    client = client_of(batcher, tmp_path, find)
    assert client.get("/api/about").json()["rag"] is True
    first, *others = events(client, QUESTION)
    assert first["passages"] == [*PASSAGES]
    assert questions == [QUESTION]
    prompt = bot.prompt(QUESTION, PASSAGES)
    assert prompt != bot.prompt(QUESTION)
    answers = {event["model"]: event["answer"] for event in others if "answer" in event}
    assert answers == {n: bot.codec.text(*bot.greedy(n, [prompt])) for n in NAMES}


def test_an_answer_names_what_it_cites(batcher: Batcher, tmp_path: Path, say: Say) -> None:
    found = events(client_of(batcher, tmp_path, lambda question: PASSAGES), QUESTION)
    whole = {event["model"]: event for event in found if "answer" in event}
    assert {name: (e["cited"], e["declines"]) for name, e in whole.items()} == {
        "base": (None, False),
        "sft": (None, True),
        "ppo": (2, False),
    }


def test_an_answer_that_no_passage_states_is_marked(
    batcher: Batcher, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    def source(question: str, passages: tuple[str, ...], answer: str) -> int | None:
        assert (question, passages) == (QUESTION, PASSAGES)
        return 2 if "한라산" in answer else None

    monkeypatch.setattr(batcher, "source", source)
    found = events(client_of(batcher, tmp_path, lambda question: PASSAGES), QUESTION)
    stated = {event["model"]: event["stated"] for event in found if "answer" in event}
    assert stated == {"base": False, "sft": False, "ppo": True}


def test_where_nothing_is_found_the_question_is_alone(
    batcher: Batcher, bot: Bot, tmp_path: Path
) -> None:
    first, *others = events(client_of(batcher, tmp_path, lambda question: ()), QUESTION)
    assert first["passages"] == []
    answer = next(e for e in others if e.get("model") == "ppo" and "answer" in e)
    assert answer["answer"] == bot.codec.text(*bot.greedy("ppo", [bot.prompt(QUESTION)]))


def test_no_passages_are_searched_for_what_is_no_question(batcher: Batcher, tmp_path: Path) -> None:
    def find(question: str) -> tuple[str, ...]:
        raise AssertionError(question)

    client = client_of(batcher, tmp_path, find)
    for question in (" ", "가" * 2000):
        found = refused(client.post("/api/ask", json={"question": question}))
        assert found[:2] == (422, "question")


def test_one_search_at_a_time(batcher: Batcher, tmp_path: Path) -> None:
    threads, most, inside = set(), 0, 0

    def find(question: str) -> tuple[str, ...]:
        nonlocal most, inside
        inside += 1
        most = max(most, inside)
        threads.add(threading.current_thread())
        time.sleep(0.05)
        inside -= 1
        return PASSAGES

    with Serving(batcher, tmp_path, find) as url:

        def ask() -> None:
            body = {"question": QUESTION}
            assert httpx.post(f"{url}api/ask", json=body, timeout=60).status_code == 200

        askers = [threading.Thread(target=ask) for _ in range(4)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        assert most == 1
        assert not any(thread.name == "server" for thread in threads)  # others may ask meanwhile


class Serving:
    """The application at an address of its own, in a thread of this process."""

    def __init__(self, batcher: Batcher, folder: Path, passages: Any) -> None:
        app = build(batcher, VoteFile(folder / "rm.jsonl"), None, passages=passages)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        self.thread = threading.Thread(
            target=self.server.run, args=([self.listener],), name="server", daemon=True
        )

    def __enter__(self) -> str:
        self.thread.start()
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}/"

    def __exit__(self, *exception: object) -> None:
        self.server.should_exit = True
        self.thread.join()


def vote_on(client: TestClient, a: str, b: str, vote: str = "b") -> Any:
    ask = events(client, QUESTION)[0]["ask"]
    return client.post("/api/vote", json={"ask": ask, "a": a, "b": b, "vote": vote})


def test_a_vote_keeps_answers_without_citations(batcher: Batcher, tmp_path: Path, say: Say) -> None:
    client = client_of(batcher, tmp_path, lambda question: PASSAGES)
    row = vote_on(client, "base", "ppo").json()["row"]
    assert row["answers"] == ["모릅니다.", "제주도에는 한라산이 있습니다."]
    assert row["question"] == QUESTION
    assert row["passages"] == [*PASSAGES]
    assert row["cited"] == [None, 2]
    say({**ANSWERS, "base": "한라산이 있습니다. [1]", "ppo": "한라산이 있습니다. [2]"})
    assert "the same" in refused(vote_on(client, "base", "ppo"))[2]


def test_a_vote_without_passages_is_as_before(batcher: Batcher, tmp_path: Path, say: Say) -> None:
    row = vote_on(client_of(batcher, tmp_path, None), "base", "ppo").json()["row"]
    assert row["answers"] == [ANSWERS["base"], ANSWERS["ppo"]]
    assert not row.keys() & {"passages", "cited"}


def test_votes_with_passages_are_read_as_ranked_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "source", world(120))
    answers = {
        "sft": {"answer": "모르겠습니다.", "ended": True, "cited": None},
        "ppo": {"answer": "제주도에 있습니다. [2]", "ended": True, "cited": 2},
    }
    question = "한라산은 어디에 있습니까?"
    file = VoteFile(source / "votes" / "rm.jsonl")
    file.append(group("1", question, answers, "sft", "ppo", "b", PASSAGES))
    assert preprocess(tmp_path, monkeypatch, "out").exit_code == 0
    found = [row for part in rows(tmp_path / "out", "rm").values() for row in part]
    (row,) = [row for row in found if row["id"] == "vote-1-sft-ppo"]
    assert row["answers"] == ["모르겠습니다.", "제주도에 있습니다."]
    assert row["ranks"] == [2, 1]


# --- the command


def test_the_command_finds_passages_where_there_is_an_index(
    micro_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uvicorn.Server, "run", lambda *given, **named: None)
    missing = run("--port", "0", "--rag")
    assert missing.exit_code == 1
    assert "data/index: no passages.jsonl" in missing.output
    named = [Passage("a", (text,)) for text in PASSAGES]
    Library.build(named, ["pieces"], micro_run / "index")
    for words, expected in ((("--model", "base"), True), (("--model", "base", "--no-rag"), False)):
        with server(micro_run.parent, "--no-scores", *words) as (url, _):
            assert httpx.get(f"{url}api/about", timeout=60).json()["rag"] is expected
            asked = httpx.post(f"{url}api/ask", json={"question": QUESTION}, timeout=60)
            passages = json.loads(asked.text.splitlines()[0])["passages"]
            assert (PASSAGES[0] in passages) is expected


# --- the page

needs_browser = pytest.mark.skipif(
    BROWSER is None and REQUIRED not in os.environ, reason="no Chromium on this machine"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-quic", OFFLINE]
        )


def answered(
    browser: Browser, url: str, width: int = 1100, blind: bool = False, **more: Any
) -> tuple[Page, list[str]]:
    """The page once the question is answered."""
    viewport = {"width": width, "height": 800}
    context = browser.new_context(viewport=viewport, locale="ko-KR", **more)
    page, wrong = opened_page(context, url)
    expect(page.locator("#first option")).to_have_count(3)
    if blind:
        page.check("#blind")
    page.fill("#question", QUESTION)
    page.press("#question", "Enter")
    expect(page.locator(".more")).to_have_count(1, timeout=60_000)
    return page, wrong


def card(page: Page, name: str) -> Locator:
    return page.locator(f".answer[data-model={name}]")


def marked(page: Page) -> list[str]:
    """Numbers of the passages that are marked."""
    return page.locator(".evidence li.marked b").all_text_contents()


@needs_browser
def test_the_page_marks_the_passage_that_an_answer_cites(
    browser: Browser, batcher: Batcher, tmp_path: Path, say: Say
) -> None:
    with Serving(batcher, tmp_path, lambda question: PASSAGES) as url:
        page, wrong = answered(browser, url)
        assert page.locator(".evidence summary").text_content() == "근거 3개"
        shown = page.locator(".evidence li > span:not(.by)").all_text_contents()
        assert shown == [*PASSAGES]
        assert page.locator(".evidence li.cited .by").all_text_contents() == ["PPO"]
        assert (
            card(page, "ppo").locator(".text").text_content() == "제주도에는 한라산이 있습니다.[2]"
        )
        assert page.locator(".cite").all_text_contents() == ["[2]"]
        card(page, "base").hover()
        assert marked(page) == []
        card(page, "ppo").hover()
        assert marked(page) == ["[2]"]
        page.mouse.move(0, 0)
        assert marked(page) == []
        page.locator(".evidence summary").focus()
        page.keyboard.press("Tab")
        assert marked(page) == ["[2]"]
        page.locator(".evidence summary").click()
        assert not page.locator(".evidence ol").is_visible()
        page.locator(".cite").press("Enter")
        assert page.locator(".evidence ol").is_visible()
        card(page, "base").hover()
        assert marked(page) == ["[2]"]
        page.mouse.move(0, 0)
        assert marked(page) == ["[2]"]  # which has the focus
        page.focus("#question")
        assert marked(page) == []
        notes = {name: card(page, name).locator(".grounds").text_content() for name in NAMES}
        assert notes == {
            "base": "근거를 밝히지 않은 답입니다.",
            "sft": "근거에 답이 없다고 보고 답하지 않았습니다.",
            "ppo": "",
        }
        assert not wrong
        page.context.close()


@needs_browser
def test_the_page_says_that_no_passage_states_an_answer(
    browser: Browser, batcher: Batcher, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "source", lambda *given: None)
    with Serving(batcher, tmp_path, lambda question: PASSAGES) as url:
        page, wrong = answered(browser, url)
        notes = {name: card(page, name).locator(".grounds").text_content() for name in NAMES}
        unstated = "근거에 없는 답입니다. 모델이 기억하거나 지어낸 말일 수 있습니다."
        declined = "근거에 답이 없다고 보고 답하지 않았습니다."
        assert notes == {"base": unstated, "sft": declined, "ppo": unstated}
        assert not wrong
        page.context.close()


@needs_browser
def test_a_citation_of_nothing_is_named(
    browser: Browser, batcher: Batcher, tmp_path: Path, say: Say
) -> None:
    say({"base": "네. [1] 아니요. [3]", "sft": "네. [7]", "ppo": "네. [4]"})
    with Serving(batcher, tmp_path, lambda question: PASSAGES) as url:
        page, _ = answered(browser, url)
        assert card(page, "sft").locator(".text").text_content() == "네. [7]"
        assert card(page, "sft").locator(".grounds").text_content() == "7번 근거는 없습니다."
        card(page, "sft").hover()
        assert marked(page) == []
        card(page, "base").locator(".text").hover()
        assert marked(page) == ["[3]"]
        card(page, "base").locator(".cite").first.hover()
        assert marked(page) == ["[1]"]
        expect(page.locator(".vote")).to_have_text("두 답이 같습니다.")  # but for their citations
        page.context.close()


@needs_browser
def test_on_a_phone_the_passages_are_folded_and_fit(
    browser: Browser, batcher: Batcher, tmp_path: Path, say: Say
) -> None:
    with Serving(batcher, tmp_path, lambda question: PASSAGES) as url:
        page, wrong = answered(browser, url, 360, blind=True, color_scheme="dark")
        assert not page.locator(".evidence ol").is_visible()
        page.locator(".cite").click()
        assert page.locator(".evidence ol").is_visible()
        (by,) = page.locator(".evidence li.cited .by").all_text_contents()
        assert by in ("A", "B")
        page.click("[data-vote=tie]")
        expect(page.locator(".evidence li.cited .by")).to_have_text("PPO")
        for part in ("documentElement", "querySelector('#log')"):
            assert page.evaluate(f"document.{part}.scrollWidth") == 360
        assert not wrong
        page.context.close()


@needs_browser
@pytest.mark.parametrize("found", [None, ()])
def test_without_passages_the_page_is_as_before(
    browser: Browser, batcher: Batcher, tmp_path: Path, say: Say, found: tuple[str, ...] | None
) -> None:
    passages = None if found is None else lambda question: found
    with Serving(batcher, tmp_path, passages) as url:
        page, wrong = answered(browser, url)
        expected = [] if found is None else ["질문에 맞는 근거를 찾지 못해 질문만 보고 답합니다."]
        assert page.locator(".evidence").all_text_contents() == expected
        assert page.locator(".cite").count() == 0
        assert card(page, "ppo").locator(".text").text_content() == ANSWERS["ppo"]
        assert card(page, "base").locator(".grounds").text_content() == ""
        assert not wrong
        page.context.close()
