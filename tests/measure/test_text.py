"""Text metrics against values worked by hand and against sacrebleu."""

import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sacrebleu

from stages.rlhf.measure import text as tm
from stages.rlhf.records import Response, SftRow

QUESTION = "한라산의 높이는 얼마인가요?"
REFERENCE = "한라산의 높이는 1947m입니다."


def test_fold() -> None:
    assert tm.fold(" 가\n\t나 \u3000다 ") == "가 나 다"
    assert tm.fold(unicodedata.normalize("NFD", "한라산")) == "한라산"


@pytest.mark.parametrize(
    ("answer", "reference"),
    [(REFERENCE, REFERENCE), ("한라산은 높습니다.", REFERENCE), ("", REFERENCE), ("산", "바다")],
)
def test_chrf_is_sacrebleus(answer: str, reference: str) -> None:
    expected = sacrebleu.sentence_chrf(answer, [reference]).score
    assert tm.chrf(answer, reference) == pytest.approx(expected)


SAID = [  # answer, reference
    (REFERENCE, REFERENCE),
    ("", REFERENCE),
    ("한라산은 높습니다.", REFERENCE),
    ("한라산의 높이는 1950m입니다. 제주도에 있습니다.", REFERENCE),
    ("산", "바다"),
    ("네", "네, 그렇습니다. 물은 섭씨 100도에서 끓습니다."),
    ("김치는 배추로 담급니다 🥬🌶️!", "김치는 배추로 담그는 음식입니다 🥬"),
    ("GPU는 graphics processing unit의 약자예요.", "GPU는 Graphics Processing Unit의 약자입니다."),
    ("pH 7은 중성입니다", "pH가 7이면 중성(neutral)입니다."),
    ("세종대왕이 1443년에 만들었다 " * 6, "훈민정음은 세종대왕이 1443년에 만들었습니다."),
    ("ㅋㅋㅋㅋ 모르겠어요…", "모르겠습니다."),
    ("부산은  항구\u3000도시이다", "부산은 항구 도시이다"),
    ("The answer is Seoul.", "대한민국의 수도는 서울입니다."),
]


@pytest.mark.parametrize(
    ("ours", "options"), [(tm.chrf, []), (tm.chrf_plus_plus, ["--chrf-word-order", "2"])]
)
def test_chrf_is_that_of_sacrebleus_command_line(
    ours: Callable[[str, str], float], options: list[str], tmp_path: Path
) -> None:
    files = [tmp_path / "answers", tmp_path / "references"]
    for file, texts in zip(files, zip(*SAID, strict=True), strict=True):
        file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    words = ["-m", "chrf", "--sentence-level", "--score-only", "--width", "10", *options]
    command = [sys.executable, "-m", "sacrebleu", str(files[1]), "-i", str(files[0]), *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    expected = [float(line) for line in done.stdout.splitlines()]
    assert expected[:2] == [100, 0]
    assert len(set(expected)) > 8
    found = [ours(answer, reference) for answer, reference in SAID]
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("아버지가방에들어가신다.", "아버지가 방에 들어가신다."),
        ("한라산의높이는 1947m입니다.", REFERENCE),
        ("한 라 산 의 높 이 는 1947m입니다.", REFERENCE),
        ("한라산의 높이는 1947 m 입니다.", REFERENCE),
    ],
)
def test_chrf_plus_plus_sees_spacing(answer: str, reference: str) -> None:
    assert tm.chrf(answer, reference) == pytest.approx(100)
    assert tm.chrf_plus_plus(answer, reference) < 90
    assert tm.chrf_plus_plus(reference, reference) == pytest.approx(100)


def test_chrf_plus_plus_by_hand() -> None:
    # Character 1- to 6-grams agree in full, and of both word orders none: 6 of 8 orders.
    assert tm.chrf_plus_plus("아버지가방에들어가신다", "아버지가 방에 들어가신다") == pytest.approx(
        100 * 6 / 7  # the answer is one word and has no 2-gram: 7 orders count
    )


def test_chrf_by_hand() -> None:
    assert tm.chrf(f" {REFERENCE}\n", REFERENCE) == pytest.approx(100)
    # "가나" against "가다": one of two unigrams each way, no bigram: P = R = (1/2 + 0) / 2.
    assert tm.chrf("가나", "가다") == pytest.approx(25)
    # beta 2: recall weighs four times precision, so leaving out costs more than adding.
    assert tm.chrf("가", "가나") < tm.chrf("가나", "가")


def test_exact() -> None:
    assert tm.exact(unicodedata.normalize("NFD", "하나  둘 "), "하나 둘")
    assert not tm.exact("하나 둘.", "하나 둘")


@pytest.mark.parametrize(
    ("answer", "phrase", "expected"),
    [
        ("높이는 1947m입니다.", "1947m", True),
        ("서울입니다", "서울", True),
        ("서 울입니다", "서울", False),
        ("13년 만에", "3년", False),
        ("13년이 아니라 3년 만에", "3년", True),
        ("1,500년", "500년", False),
        ("2, 5월", "5월", True),
        ("1443년", "1443", True),
        ("14435명", "1443", False),
        ("1443.5", "1443", False),
        ("1443. 그리고", "1443", True),
        ("a+b(c)", "b(c)", True),
        ("단위는 Wb입니다", "W", False),
        ("단위는 W입니다", "W", True),
        ("GPT4", "GPT", True),
        ("무엇이든", "", False),
        ("높이는 1,947m입니다.", "1947m", True),
        ("높이는 1947 m입니다.", "1947m", True),
        ("높이는 1947m입니다.", "1,947 m", True),
        ("높이는 １９４７m입니다.", "1947m", True),
        ("인구는 12,345,678명입니다.", "12345678명", True),
        ("비율은 50 %이다.", "50%", True),
        ("비율은 50％이다.", "50 %", True),
        ("10 번입니다.", "10번", True),
        ("21947m", "1947m", False),
        ("21,947m", "1947m", False),
        ("1947mm", "1947m", False),
        ("1,947.5m", "1947m", False),
        ("1,947.5m", "1947", False),
        ("1947m²", "1947m", False),
        ("10m/s", "10m", False),
        ("1947미터", "1947m", False),  # another unit's name, and words, are not numbers
        ("백만 명", "1000000명", False),
        ("천구백사십칠 미터", "1947m", False),
        ("기온은 -5도", "5도", False),
        ("-5도", "5도", False),
        ("3-5도", "5도", True),
        ("1,2,3", "23", False),
        ("1,94", "194", False),
        ("2,024,5", "20245", False),
        ("19 47m", "1947m", False),
    ],
)
def test_contains(answer: str, phrase: str, expected: bool) -> None:
    assert tm.contains(answer, phrase) is expected


def test_commits_wrongly() -> None:
    rivals = {"1950m", "1708m"}
    assert tm.states_wrong_fact("1947m입니다.", "1947m", rivals) is False
    assert tm.states_wrong_fact("1947m이고 설악산은 1708m입니다.", "1947m", rivals) is False
    assert tm.states_wrong_fact("1708m입니다.", "1947m", rivals) is True
    assert tm.states_wrong_fact("모릅니다.", "1947m", rivals) is None
    assert tm.states_wrong_fact("11708m입니다.", "1947m", rivals) is None
    assert tm.states_wrong_fact("1,947 m입니다.", "1947m", {"1708m"}) is False
    assert tm.states_wrong_fact("1,708 m입니다.", "1947m", {"1708m"}) is True
    assert tm.states_wrong_fact("1 원소입니다.", "산소", {"원소"}) is True  # no unit: a word
    # A rival must begin a word; the right value need not.
    assert tm.states_wrong_fact("병원에서 정합니다.", "위안", {"원"}) is None
    assert tm.states_wrong_fact("'원'입니다.", "위안", {"원"}) is True
    assert tm.states_wrong_fact("병원에서 정합니다.", "원", {"위안"}) is False


def test_length_is_in_characters() -> None:
    assert tm.length(" 가나  다\n") == 4


def row(question: str, answer: str, phrase: str | None, category: str = "자연") -> SftRow:
    return SftRow(
        id=question, question=question, answer=answer, must_contain=phrase, category=category
    )


ROWS = [
    row(QUESTION, f"{REFERENCE} 제주도에 있습니다.", "1947m"),
    row("설악산의 높이는 얼마인가요?", "1708m입니다.", "1708m"),
    row("한라산은 어디에 있나요?", "제주도에 있습니다.", "제주도"),
    row("수도는 어디인가요?", "서울입니다.", "서울", "사회"),
    row("무엇이 좋은가요?", "사과가 좋습니다.", None),
]


def test_rival_values() -> None:
    rivals = tm.rival_values(ROWS)
    assert rivals[0] == {"1708m"}  # its own reference names 제주도
    assert rivals[2] == {"1947m", "1708m"}
    assert rivals[3] == set()  # another category
    grouped = row("지리산의 높이는 얼마인가요?", "1915m이고 한라산은 1,947m입니다.", "1915m")
    assert tm.rival_values([*ROWS, grouped])[-1] == {"1708m", "제주도"}  # 1947m is in its answer
    asked = row("1947m와 1950m 가운데 무엇인가요?", "1950m입니다.", "1950m")
    assert tm.rival_values([*ROWS, asked])[-1] == {"1708m", "제주도"}  # asked by name: no rival


def test_answer_values() -> None:
    texts = ["1708m입니다.", "1708m입니다.", "모릅니다.", "서울 서울 서울", "무엇이 좋은가요?"]
    answers = [Response(text, 3, ended=i > 0) for i, text in enumerate(texts)]
    values = tm.text_values(answers, ROWS)
    assert tuple(values) == tm.TEXT_METRICS
    nan = float("nan")
    assert values["chrf_plus_plus"][1] == pytest.approx(100)
    assert values["chrf_plus_plus"][0] == tm.chrf_plus_plus(texts[0], ROWS[0].answer)
    np.testing.assert_array_equal(values["exact"], [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(values["contains"], [0, 1, 0, 1, nan])
    np.testing.assert_array_equal(values["wrong_fact_rate"], [1, 0, nan, 0, nan])
    np.testing.assert_array_equal(values["eos_rate"], [0, 1, 1, 1, 1])
    np.testing.assert_array_equal(values["repetition"], [0, 0, 0, 1, 0])
    np.testing.assert_array_equal(values["copy_rate"], [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(values["length"], [9, 9, 5, 8, 9])
