"""Speech levels, script, broken characters and cut sentences, on sentences read by hand."""

import pytest

from stages.rlhf.measure import style
from stages.rlhf.measure.style import PLAIN, POLITE


@pytest.mark.parametrize(
    ("sentence", "level"),
    [
        ("한라산의 높이는 1947m입니다.", POLITE),
        ("제주도에 있어요!", POLITE),
        ("맞죠?", POLITE),
        ("그렇습니까?", POLITE),
        ("이 점을 살펴 주십시오.", POLITE),
        ("서울은 대한민국의 수도이다.", PLAIN),
        ("물은 100도에서 끓는다.", PLAIN),
        ("그건 서울이야.", PLAIN),
        ("벌써 끝났어", PLAIN),
        ("먹었어, 정말로 먹었어", PLAIN),
        ("물고기는 잉어", None),
        ("비가 올까?", PLAIN),
        ("좋은 것 같아.", PLAIN),
        ("그렇게 하고.", None),
        ("내가 그랬잖아!", PLAIN),
        ("그렇게 해.", PLAIN),
        ("서울.", None),
        ("1947m", None),
        ("바다.", PLAIN),  # a noun in -다: read as a verb, the price of reading endings alone
        ("", None),
    ],
)
def test_speech_level(sentence: str, level: str | None) -> None:
    assert style.speech_level(sentence) == level


def test_sentences_keep_what_was_cut_off() -> None:
    assert style.sentences("서울입니다. 부산은") == ["서울입니다.", "부산은"]
    assert style.sentences("  ") == []


def test_levels_over_a_text() -> None:
    assert style.polite("서울입니다. 큰 도시예요.") is True
    assert style.polite("서울입니다. 큰 도시다.") is False
    assert style.polite("서울") is None
    assert style.consistent("서울입니다. 큰 도시예요.") is True
    assert style.consistent("서울이다. 큰 도시다.") is True
    assert style.consistent("서울입니다. 큰 도시다.") is False
    assert style.consistent("서울입니다. 서울.") is None, "one level alone cannot change"


def test_script() -> None:
    assert style.non_hangul_share("한글 ABC 1234!") == pytest.approx(3 / 5)
    assert style.non_hangul_share("漢字와 かな") == pytest.approx(4 / 5)
    assert style.non_hangul_share("ㅋㅋ 네") == 0
    assert style.non_hangul_share("1947, 2024.") is None


def test_broken_and_truncated() -> None:
    assert style.broken("한라\ufffd산")
    assert not style.broken("한라산")
    assert style.truncated("서울입니다. 서울은")
    assert style.truncated("")
    assert not style.truncated("서울입니다.")
    assert not style.truncated('그는 "네."')


def test_distinct_by_hand() -> None:
    texts = ["가 나 가", "나 가"]
    assert style.distinct(texts, 1) == pytest.approx(2 / 5)
    assert style.distinct(texts, 2) == pytest.approx(2 / 3)  # 가나, 나가, 나가
    assert style.distinct(["가"], 2) is None


def test_values_are_those_of_the_functions() -> None:
    text = "서울입니다. 큰 도시다. OK"
    assert style.style_values(text) == {
        "polite_rate": False,
        "level_consistency": False,
        "non_hangul_share": pytest.approx(2 / 11),
        "broken_rate": False,
        "truncation_rate": True,
    }
