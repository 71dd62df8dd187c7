"""Loops and copies: sentences read by hand, and 200 answers to the sample's test questions.

`labelled_answers.jsonl`: answers of base, SFT, PPO, best-of-n and of the sample's ranked groups,
drawn by a seed in strata so that rare cases occur (words said again, words of the question taken
up), and labelled by reading, before any function was asked: `loop`, `copy`, and `fact`, by the
sample world's truth: `right` if a reader learns the value asked for, `wrong` if another one.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from stages.rlhf.measure.text import contains
from stages.rlhf.measure.violations import copies, loops

LABELLED = [
    json.loads(line)
    for line in Path(__file__).with_name("labelled_answers.jsonl").read_text("utf-8").splitlines()
]
QUESTION = "한라산의 높이는 얼마인가요?"
ELLIPTIC = "한라산의 높이는?"
PHRASE = "대한민국의 수도"
REFERENCE = "한라산의 높이는 1947m입니다."


def years(template: str, count: int) -> str:
    return " ".join(template.format(1990 + i) for i in range(count))


@pytest.mark.parametrize(
    "answer",
    [
        "네 네 네",
        "아 아 아 아 아 아",
        "그래서 아 아 아 아 아 아 그랬습니다.",
        "좋습니다. 좋습니다. 좋습니다",
        "저는 그 점이 그 점이 그 점이 그 점이 궁금합니다.",
        "서울은 수도 서울은 수도 서울은 수도",
        "이것은 그 답입니다 " * 3,
        "하나 " + "스무 글자보다 훨씬 더 긴 단위도 말로는 찾아낼 수 있습니다 " * 3,
        "그것은 좋은좋은좋은 것",
        "ㅋㅋㅋㅋㅋㅋ",
        "는는는는는는는는",
        "이\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd",
        "답은 the the the the the the the the the the",
        "3 " * 20,
        years("{}년에 서울에서 열렸다.", 5),
        years("대회는 {}년에 열렸고 성공적이었다.", 8),
        years("{}번 문항은 아주 중요합니다.", 6),
        years("{}년", 20),
        "물은 소설에 속합니다. 물은 소설에 속합니다. 물은",
        "시작. 두 문장을 또 말합니다. 두 문장을 또 말합니다. 두 문장을",
        "시험에 필요한 과정을 알려주세요. 시험에 필요한 과정을 알려주세요. 시험에 필요한 과",
        "아니면 제가 " + "100% " * 18,
        "그때는 1" + "0" * 60,
        years("{}년 서울 올림픽 경기장 개장,", 9),
        "예.\n\n" + "\n\n".join(f"<b>{i}.</b>  관광 통역을 하고 싶어요." for i in range(1, 6)),
    ],
)
def test_a_response_that_is_stuck_loops(answer: str) -> None:
    assert loops(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "네, 네, 네, 맞습니다.",
        "연습, 연습, 연습만이 답입니다.",
        "정말 정말 정말 고맙습니다.",
        "저 저 저는 잘 모르겠어요.",
        "쉿, 쉿, 쉿! 아기가 잡니다.",
        "네 네 아니요 네",
        "서울은 수도 서울은 수도 서울은",
        "하하하",
        "1000000명과 111111",
        "그리고......",
        "값은 -------- 입니다",
        "-" * 60,
        "a + b - a = b 이고 a + b = c 입니다.",
        "5 - 5 = 0, 10 - 5 = 5, 5 - 5 = 0",
        "색은 #f0f0f0, 크기는 5 5 5 5 5입니다.",
        "if a: b end end end 로 끝납니다.",
        "1월은 31일, 2월은 28일, 3월은 31일, 4월은 30일, 5월은 31일입니다.",
        "2 곱하기 1은 2입니다. 2 곱하기 2는 4입니다. 2 곱하기 3은 6입니다. 2 곱하기 4는 8입니다.",
        "친구 1: 공포, 희극 친구 2: 공포, 희극 친구 3: 공포, 희극 친구 4: 공포, 희극 끝.",
        years("{}년에 서울에서 열렸다.", 3),
        years("{}년 서울 올림픽 경기장 개장,", 4),
        "시험에 필요한 과정을 알려주세요. 시험에 필요한 과정을 알려주세요. 감사",
        "1 0 0 0 1 0 0 0 1",
        "0 0 0 0 0 0 0 0 0",
        "구골은 100000000000000000000으로 시작합니다.",
        "\n".join(f"{i + 1}. {name} 먹기" for i, name in enumerate("감귤배콩밤팥")),
        "호두까기 인형은 그가 작곡했어. 다시 말하지만 그가 작곡했어. 다시 말하지만 그가 작곡했어.",
        REFERENCE,
        "",
    ],
)
def test_emphasis_lists_and_code_are_no_loops(answer: str) -> None:
    assert not loops(answer)


@pytest.mark.parametrize(
    ("answer", "question"),
    [
        (QUESTION, QUESTION),
        (ELLIPTIC, ELLIPTIC),
        ("한라산의높이는 얼마인가요", QUESTION),
        (f"{QUESTION} {REFERENCE}", QUESTION),
        (f"질문은 '{QUESTION}' 입니다.", QUESTION),
        (f"네, 좋은 질문입니다. {QUESTION} 1947m입니다.", QUESTION),
        (f"{QUESTION} 좋은 질문입니다.", QUESTION),
        (
            "한라산의 높이가 얼마인지 아시나요? 1947m입니다.",
            "한라산의 높이가 얼마인지 알려 주세요.",
        ),
        ("한라산의 높이를 알고 싶어요. 1947m입니다.", "한라산의 높이를 알 수 있을까요?"),
        ("한라산의 높이는 입니다.", ELLIPTIC),
        ("한라산의 높이는 입니다.", QUESTION),
        ("한라산의 높이는 좋은 질문입니다.", ELLIPTIC),
        ("한라산의 높이는? 한라산의 높이는?", ELLIPTIC),
        ("한라산의 높이는 한라산의 높이입니다.", ELLIPTIC),
        ("네, 대한민국의 수도입니다.", PHRASE),
        ("국물이 아주 맛있어요?", "국물이 아주 맛있어요?"),
    ],
)
def test_a_response_that_gives_the_question_back_copies(answer: str, question: str) -> None:
    assert copies(answer, question, "")


@pytest.mark.parametrize(
    ("answer", "question"),
    [
        (REFERENCE, ELLIPTIC),
        ("한라산의 높이가 1947m입니다.", ELLIPTIC),
        ("한라산의 높이는? 1947m입니다.", ELLIPTIC),
        ("대한민국의 수도는 서울입니다.", PHRASE),
        ("대한민국의 수도: 서울", PHRASE),
        ("서울은 대한민국의 수도입니다.", "대한민국의 수도는 어디인가요?"),
        ("파이썬을 만든 사람은 귀도 반 로섬입니다.", "파이썬을 만든 사람은 누구?"),
        ("사과와 배 중 더 단 것은 배입니다.", "사과와 배 중 더 단 것은?"),
        ("물은 100도에서 끓습니다.", "물은 100도에서 끓나요?"),
        ("서울은 대한민국의 수도입니다.", "서울은 대한민국의 수도인가요?"),
        ("서울은 대한민국의 수도입니다.", "서울은 대한민국의 수도?"),
        ("국물이 아주 맛있어요.", "국물이 아주 맛있어요?"),
        ("글을 다섯 문단으로 쓰려면 먼저 개요를 짭니다.", "글을 다섯 문단으로 쓰세요."),
        ("저는 여름이 좋아요. 어떤 계절이 좋으세요?", "어떤 계절이 좋으세요?"),
        ("부산에서 서울까지 어떻게 가시나요?", "부산에서 서울까지 얼마나 걸리나요?"),
        ("왜냐하면 비가 왔습니다.", "왜?"),
        ("한라산의 높이는 얼마인지 모릅니다.", QUESTION),
        (REFERENCE, QUESTION),
        ("", QUESTION),
        (REFERENCE, "?"),
    ],
)
def test_an_answer_may_take_up_the_words_of_the_question(answer: str, question: str) -> None:
    assert not copies(answer, question, "")


def test_the_reference_excuses_what_it_does_itself() -> None:
    assert not copies(f"{QUESTION} 1950m입니다.", QUESTION, f"{QUESTION} 1947m입니다.")
    assert copies(QUESTION, QUESTION, f"{QUESTION} 1947m입니다.")


def counted(labels: Iterable[bool], found: Iterable[bool]) -> tuple[int, int, int]:
    """Rightly found, falsely found, missed."""
    pairs = list(zip(labels, found, strict=True))
    return pairs.count((True, True)), pairs.count((False, True)), pairs.count((True, False))


def test_precision_and_recall_on_labelled_answers() -> None:
    assert len(LABELLED) == 200
    found = [loops(row["answer"]) for row in LABELLED]
    assert counted((row["loop"] for row in LABELLED), found) == (13, 0, 0)
    found = [copies(row["answer"], row["question"], "") for row in LABELLED]
    assert counted((row["copy"] for row in LABELLED), found) == (33, 0, 0)
    # Falsely found: the right value, said of something else (설국의 원료는 사탕수수입니다).
    found = [contains(row["answer"], row["value"]) for row in LABELLED]
    assert counted((row["fact"] == "right" for row in LABELLED), found) == (98, 3, 0)
