"""The shapes in which the field keeps rows: what is read, and what the fault is if none fits."""

import re
from typing import Any

import pytest

from stages.rlhf.ingest.sources import jsonl
from stages.rlhf.ingest.sources.items import Item
from tests.conftest import naming

Q, A, B, C = "수도는?", "서울입니다.", "부산입니다.", "모릅니다."
USER, GOOD = {"role": "user", "content": Q}, {"role": "assistant", "content": A}
BAD, SYSTEM = {"role": "assistant", "content": B}, {"role": "system", "content": "친절하게."}
HUMAN, GPT = {"from": "human", "value": Q}, {"from": "gpt", "value": A}
TRANSCRIPT = f"\n\nHuman: {Q}\n\nAssistant: "


def read(part: Any, row: Any, **columns: str) -> Item:
    return jsonl.item(part, row, "row-1", None, columns)


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"question": Q, "answer": A}, "question answer"),
        ({"prompt": Q, "completion": A}, "prompt completion"),
        ({"instruction": Q, "input": "", "output": A}, "instruction output"),
        ({"id": "alpaca_1", "instruction": Q, "output": A}, "instruction output"),
        ({"query": Q, "response": A}, "query response"),
        ({"input": Q, "output": A}, "input output"),
        ({"messages": [USER, GOOD]}, "messages"),
        ({"messages": [SYSTEM, USER, GOOD]}, "messages"),
        ({"conversations": [HUMAN, GPT]}, "conversations"),
        ({"prompt": [USER], "completion": [GOOD]}, "prompt completion"),
        ({"messages": [USER | {"content": [{"type": "text", "text": Q}]}, GOOD]}, "messages"),
        ({"prompt": TRANSCRIPT.rstrip(), "completion": A}, "prompt completion"),
    ],
)
def test_demonstrations(row: dict[str, Any], shape: str) -> None:
    item = read("sft", row)
    assert (item.question, item.answers, item.fault) == (Q, (A,), None)
    assert item.shape == tuple(shape.split())


def test_instruction_with_input() -> None:
    item = read("sft", {"instruction": "번역하라.", "input": "Seoul", "output": A})
    assert (item.question, item.shape) == ("번역하라.\nSeoul", ("instruction", "input", "output"))


def test_system_turns_are_left_out_and_counted() -> None:
    assert read("sft", {"messages": [SYSTEM, USER, GOOD]}).ignored == ("system turn",)
    assert read("sft", {"messages": [USER, GOOD]}).ignored == ()


def test_what_else_a_question_has_is_counted() -> None:
    row = {"question": Q, "answer": A}
    more = {"system_prompt": "친절하게.", "history": [["가", "나"]]}
    assert read("sft", row | more).ignored == ("system_prompt", "history")
    assert read("sft", row | {"system_prompt": "", "history": []}).ignored == ()


def test_the_last_question_comes_with_its_context() -> None:
    turns = [
        USER,
        GOOD,
        {"role": "user", "content": "인구는?"},
        {"role": "assistant", "content": C},
    ]
    item = read("sft", {"messages": turns})
    assert (item.question, item.answers) == (f"{Q}\n{A}\n인구는?", (C,))
    assert read("ppo", {"messages": turns}).question == f"{Q}\n{A}\n인구는?"
    assert read("ppo", {"messages": turns[:3]}).question == f"{Q}\n{A}\n인구는?"


@pytest.mark.parametrize(
    ("row", "answers", "ranks", "scored"),
    [
        ({"question": Q, "answers": [A, B], "ranks": [1, 2]}, (A, B), (1, 2), False),
        ({"prompt": Q, "responses": [A, B], "ranking": ["2", 1]}, (A, B), ("2", 1), False),
        ({"question": Q, "answers": [A, B], "scores": [0.1, 3]}, (A, B), (0.1, 3), True),
        ({"prompt": Q, "completions": [A, B], "ratings": [4, 5]}, (A, B), (4, 5), True),
        (
            {"question": Q, "answers": [{"text": A, "rank": 2}, {"text": B, "rank": 1}]},
            *((A, B), (2, 1), False),
        ),
        (
            {
                "instruction": Q,
                "completions": [
                    {"response": A, "overall_score": 7.5, "model": "x"},
                    {"response": B, "overall_score": 9},
                ],
            },
            *((A, B), (7.5, 9), True),
        ),
        ({"question": Q, "answers": [[GOOD], [BAD]], "ranks": [1, 2]}, (A, B), (1, 2), False),
        ({"prompt": Q, "chosen": A, "rejected": B}, (A, B), (1, 2), False),
        ({"prompt": Q, "chosen": [GOOD], "rejected": [BAD]}, (A, B), (1, 2), False),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, (A, B), (1, 2), False),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, (A, B), (1, 2), False),
        (
            {"conversations": [SYSTEM, HUMAN], "chosen": GPT, "rejected": GPT | {"value": B}},
            *((A, B), (1, 2), False),
        ),
        ({"prompt": Q, "chosen": GOOD, "rejected": BAD}, (A, B), (1, 2), False),
        ({"chosen": TRANSCRIPT + A, "rejected": TRANSCRIPT + B}, (A, B), (1, 2), False),
        ({"prompt": Q, "chosen": A, "rejected": [B, C]}, (A, B, C), (1, 2, 2), False),
        (
            {"prompt": Q, "chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 9.0},
            *((A, B), (1, 2), False),
        ),
    ],
)
def test_groups(row: dict[str, Any], answers: Any, ranks: Any, scored: bool) -> None:
    item = read("rm", row)
    assert (item.fault, item.question) == (None, Q)
    assert (item.answers, item.ranks, item.scored) == (answers, ranks, scored)


@pytest.mark.parametrize(
    "row",
    [{"question": Q}, {"prompt": Q}, {"instruction": Q, "input": ""}, {"messages": [SYSTEM, USER]}],
)
def test_prompts(row: dict[str, Any]) -> None:
    assert read("ppo", row).question == Q


@pytest.mark.parametrize(
    ("part", "row", "facts"),
    [
        ("sft", {"질문": Q, "답변": A}, ["no key question", "prompt", "keys found: 질문, 답변"]),
        ("sft", {"question": Q, "reply": A}, ["no key answer", "keys found: question, reply"]),
        ("sft", {}, ["no key question", "none"]),
        ("sft", {"messages": [USER]}, ["messages", "assistant turn at the end"]),
        ("sft", {"messages": [GOOD]}, ["user turn"]),
        ("sft", {"messages": "text"}, ["messages", "'text'", "list of turns"]),
        ("sft", {"messages": [{"role": "tool", "content": "x"}, GOOD]}, ["'tool'", "assistant"]),
        ("sft", {"messages": [{"role": "user"}, GOOD]}, ["user", "without text"]),
        ("sft", ["a", "b"], ["object", "['a', 'b']"]),
        ("rm", {"question": Q, "answers": [A, B]}, ["no key ranks", "scores", "answers"]),
        ("rm", {"question": Q, "answers": A, "ranks": [1]}, ["answers", "list"]),
        ("rm", {"prompt": Q, "chosen": A, "rejected": None}, ["chosen without rejected"]),
        ("rm", {"prompt": Q, "rejected": A}, ["rejected without chosen"]),
        ("rm", {"question": Q, "answers": [A, B], "ranks": {"A": 1}}, ["{'A': 1}", "list"]),
        ("rm", {"question": Q, "answers": [A, B], "ranks": "2,1"}, ["ranks is '2,1'", "list"]),
        ("rm", {"question": Q, "answers": [A, B], "score": 0.3}, ["score is 0.3", "list"]),
        ("rm", {"question": Q, "answer_a": A}, ["no key answers", "chosen and rejected"]),
        ("rm", {"question": Q, "answer": A}, ["no key answers", "keys found: question, answer"]),
        ("rm", {"chosen": A, "rejected": B}, ["no key question", "chosen, rejected"]),
        ("rm", {"chosen": [USER, GOOD], "rejected": [HUMAN | {"value": "왜?"}, BAD]}, ["prompts"]),
        ("rm", {"prompt": Q, "chosen": [USER], "rejected": [BAD]}, ["assistant", "user"]),
        ("rm", {"question": Q, "answers": [{"text": A}, {"text": B}]}, ["no key rank", "score"]),
        ("rm", {"messages": [USER, GOOD]}, ["one answer", "chosen"]),
        ("ppo", {"text": Q}, ["no key question", "keys found: text"]),
    ],
)
def test_rows_of_no_known_shape(part: Any, row: Any, facts: list[str]) -> None:
    item = read(part, row)
    assert item.fault is not None
    assert re.search(naming(*facts), item.fault)


@pytest.mark.parametrize("name", ["question", "instruction", "input"])
@pytest.mark.parametrize("chosen", [A, [A], [GOOD], GOOD])
def test_null_for_a_question_is_an_empty_one(name: str, chosen: Any) -> None:
    item = read("rm", {name: None, "chosen": chosen, "rejected": B})
    assert (item.question, item.answers, item.fault) == (None, (A, B), None)


def test_columns_of_other_names() -> None:
    row = {"질문": Q, "답변": A, "번호": 7, "분야": "지리", "question": "다른 것"}
    item = read("sft", row, question="질문", answer="답변", id="번호", category="분야")
    assert (item.question, item.answers, item.id, item.category) == (Q, (A,), "7", "지리")
    assert item.raw is row
    pair = {"q": Q, "good": A, "bad": B}
    item = read("rm", pair, question="q", chosen="good", rejected="bad")
    assert (item.question, item.answers) == (Q, (A, B))


def test_a_key_without_a_value() -> None:
    """A row of a table has the columns of all others."""
    row = {"question": None, "prompt": Q, "answer": None, "completion": A, "messages": None}
    assert (read("sft", row).question, read("sft", row).answers) == (Q, (A,))
    row = {"instruction": None, "chosen": A, "rejected": B}
    assert (read("rm", row).question, read("rm", row).fault) == (None, None)
    row = {"question": Q, "answers": [A, B], "chosen": None, "rejected": None, "scores": [1, 2]}
    assert read("rm", row | {"ranks": None}).shape == ("question", "answers", "scores")


@pytest.mark.parametrize(("given", "name"), [(0, "0"), ("", "row-1"), (None, "row-1"), ("a", "a")])
def test_ids(given: Any, name: str) -> None:
    assert read("ppo", {"question": Q, "id": given}).id == name
