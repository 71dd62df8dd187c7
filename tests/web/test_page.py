"""The page in headless Chromium: a question, three answers, a vote; nothing from elsewhere."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from stages.rlhf.bot.models import Bot
from tests.cli.test_chat import server
from tests.conftest import BROWSER
from tests.tokenizer_fixtures import QUESTIONS

REQUIRED = "KOQA_BROWSER_TESTS"  # set where Chromium must be there, as in CI
pytestmark = pytest.mark.skipif(
    BROWSER is None and REQUIRED not in os.environ, reason="no Chromium on this machine"
)
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
QUESTION = QUESTIONS[5]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    arguments = ["--no-sandbox", "--disable-quic", "--disable-background-networking", OFFLINE]
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=BROWSER, args=arguments)


@pytest.fixture(scope="module")
def served(micro_run: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with server(micro_run.parent) as found:
        yield found


@pytest.fixture(scope="module")
def url(served: tuple[str, subprocess.Popen[str]]) -> str:
    return served[0]


def opened_page(context: BrowserContext, url: str) -> tuple[Page, list[str]]:
    """The page, and what it logs and fetches from elsewhere: nothing."""
    page, wrong = context.new_page(), list[str]()
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda one: wrong.append(one.url) if not one.url.startswith(url) else None)
    page.goto(url)
    return page, wrong


def votes(micro_run: Path) -> list[dict[str, object]]:
    text = (micro_run / "votes" / "rm.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_question_three_answers_and_a_vote(
    browser: Browser, url: str, bot: Bot, micro_run: Path
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, locale="ko-KR")
    page, wrong = opened_page(context, url)
    offered = page.locator("#examples button").all_text_contents()
    assert len(offered) == 3
    assert set(offered) <= set(QUESTIONS)
    page.fill("#question", QUESTION)
    page.press("#question", "Enter")
    expect(page.locator(".vote button")).to_have_count(4, timeout=60_000)
    prompt = bot.prompt(QUESTION)
    for name in ("base", "sft", "ppo"):
        card = page.locator(f".answer[data-model={name}]")
        (ids,) = bot.greedy(name, [prompt])
        assert card.locator(".text").text_content() == bot.codec.text(ids)
        assert f"{len(ids)} 토큰" in (card.locator(".facts").text_content() or "")
        assert "보상" in (card.locator(".facts").text_content() or "")
    boxes = [one.bounding_box() for one in page.locator(".answer").all()]
    assert len({box["y"] for box in boxes if box}) == 1  # side by side
    page.click("[data-vote=b]")
    expect(page.locator(".vote")).to_contain_text("투표를 저장했습니다")
    assert page.locator("[data-vote=a]").is_disabled()
    row = votes(micro_run)[-1]
    answers = [bot.codec.text(*bot.greedy(name, [prompt])) for name in ("sft", "ppo")]
    assert (row["question"], row["answers"], row["ranks"]) == (QUESTION, answers, [2, 1])
    page.click(".more button")
    expect(page.locator(".turn")).to_have_count(2)
    expect(page.locator(".turn h3 span").last).to_have_text("표본 0")
    expect(page.locator(".more")).to_have_count(2, timeout=60_000)
    assert not wrong
    context.close()


def test_on_a_phone_names_stay_hidden_until_the_vote(
    browser: Browser, url: str, micro_run: Path
) -> None:
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, locale="en-US", color_scheme="dark"
    )
    page, wrong = opened_page(context, url)
    page.check("#blind")
    page.fill("#question", QUESTION)
    page.click("#send")
    expect(page.locator(".vote button")).to_have_count(4, timeout=60_000)
    assert page.locator(".answer h3 b").all_text_contents() == ["A", "B"]
    assert not any(page.locator(".facts").all_text_contents())
    page.click("[data-vote=a]")
    expect(page.locator(".vote")).to_contain_text("Vote saved")
    names = page.locator(".answer h3 b").all_text_contents()
    row = votes(micro_run)[-1]
    assert isinstance(row["models"], list)
    shown = [{"sft": "SFT", "ppo": "PPO"}[name] for name in row["models"]]
    assert names == [f"A = {shown[0]}", f"B = {shown[1]}", "base"]
    assert row["blind"] is True
    for part in ("documentElement", "querySelector('#log')"):
        assert page.evaluate(f"document.{part}.scrollWidth") == 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 23)"
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(247, 247, 245)"
    assert not wrong
    context.close()


def test_markup_is_shown_and_not_run(browser: Browser, url: str) -> None:
    context = browser.new_context(locale="ko-KR")
    page, wrong = opened_page(context, url)
    text = "<img src=x onerror=document.title=1>?"
    page.fill("#question", text)
    page.click("#send")
    expect(page.locator(".more")).to_have_count(1, timeout=60_000)
    assert page.locator(".turn h2").text_content() == text
    assert page.locator("main img").count() == 0
    assert page.title() == "koqa"
    assert not wrong
    context.close()


def test_korean_is_drawn_by_the_font_that_comes_with_it(browser: Browser, url: str) -> None:
    context = browser.new_context(locale="ko-KR")
    page, wrong = opened_page(context, url)
    page.wait_for_function("document.fonts.status === 'loaded'")
    page.evaluate("document.fonts.load('20px \"koqa Korean\"', '가')")
    faces = page.evaluate("[...document.fonts].map(face => [face.family, face.status])")
    assert faces == [["koqa Korean", "loaded"]]
    drawn = """() => { const context = document.createElement('canvas').getContext('2d');
        context.font = '20px "koqa Korean"';
        return [...'가힣묻'].map(one => context.measureText(one).width) }"""
    widths = page.evaluate(drawn)
    assert max(widths) - min(widths) < 1e-3  # syllables of one font are as wide as each other
    assert not wrong
    context.close()


def test_a_server_that_is_gone_is_said(
    browser: Browser, served: tuple[str, subprocess.Popen[str]]
) -> None:
    url, process = served
    context = browser.new_context(locale="ko-KR")
    page, _ = opened_page(context, url)
    expect(page.locator("#about")).to_contain_text("PPO")
    process.kill()  # the last test of this file
    process.wait()
    page.fill("#question", QUESTION)
    page.click("#send")
    expect(page.locator(".turn")).to_contain_text("서버에 닿지 않습니다")
    context.close()
