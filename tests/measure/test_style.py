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
        ("행사를 추진합시다.", POLITE),
        ("같이 읽읍시다!", POLITE),
        ("저는 못 갔고요.", POLITE),
        ("아직 안 왔는데요.", POLITE),
        ("그야 비쌌으니까요.", POLITE),
        ("문이 열렸습니까?", POLITE),
        ("시간이 없다 보니까.", None),  # because: joins clauses, and no level
        ("여기가 한반도에서 가장 큰 섬 가운데 하나이다.", PLAIN),
        ("고래는 물고기가 아니다.", PLAIN),
    ],
)
def test_speech_level(sentence: str, level: str | None) -> None:
    assert style.speech_level(sentence) == level


PLAIN_ENDINGS = (
    *("나도 그 노래를 들어.", "정말 고마워!", "네가 와서 기뻐.", "매일 책을 읽어.", "문 좀 닫아."),
    *("이 방은 너무 추워.", "숙제를 잊어.", "친구를 믿어.", "머리가 아파.", "창밖을 봐."),
    *("벌써 배가 고파.", "글씨를 잘 써.", "물을 마셔.", "소리가 들려.", "산이 보여."),
    *("물가는 왜 오르는가?", "무엇이 중요한가?", "값이 싸더라고.", "집에 있더라.", "어디 가냐?"),
    *("내일은 온대.", "누가 왔나?", "이건 뭐야?", "내 것이 아니야.", "이리 와 앉아라."),
    *("이제 밥 먹자.", "곧 전화할게.", "꽤 넓구나.", "밖에 눈 왔거든."),
)


@pytest.mark.parametrize("sentence", PLAIN_ENDINGS)
def test_plain_after_every_stem(sentence: str) -> None:
    assert style.speech_level(sentence) == PLAIN


@pytest.mark.parametrize(
    "noun",
    [
        *(
            "언어",
            "상어",
            "한국어",
            "단어",
            "술어",
            "주어",
            "발아",
            "유아",
            "아시아",
            "파워",
            "타워",
        ),
        *("타워", "아빠", "군대", "현대", "장군", "분야", "시야", "케냐", "카메라", "나라", "콜라"),
        *("사자", "모자", "꽃게", "전문가", "물가", "참여", "급여", "배려", "고려", "어머니"),
        *("언니", "강아지", "올해", "필요", "중요", "수요"),
    ],
)
def test_a_noun_that_ends_like_a_verb_has_no_level(noun: str) -> None:
    assert style.speech_level(f"둘째로 {noun}.") is None


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


def test_code_in_an_answer_has_no_speech_level() -> None:
    code = "```python\n# 둘을 더한다.\nx + y  # 더한다\n```"
    assert style.levels(f"이렇게 합니다.\n\n{code}\n\n쉽죠?") == [POLITE, POLITE]
    assert not style.truncated(f"이렇게 합니다.\n\n{code}")
    assert style.levels(f"이렇게 합니다.\n\n{code[:-4]}") == [POLITE]
    assert style.truncated(f"이렇게 합니다.\n\n{code[:-4]}")


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
