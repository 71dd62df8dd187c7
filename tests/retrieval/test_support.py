"""Stances by hand over twenty passages; weights against BM25's formula; what an answer claims."""

import math
from pathlib import Path

import pytest

from stages.rlhf.retrieval.support import SUPPORTS, UNRELATED, Support, claim, words_of
from tests.retrieval_fixtures import COUNTRIES, TEXTS

SUPPORT = Support.of(TEXTS)
CAPITAL, MONEY = "프랑스의 수도는 어디인가요?", "프랑스의 화폐는 무엇인가요?"


@pytest.mark.parametrize(
    ("passage", "question", "answer", "phrase", "expected"),
    [
        ("프랑스의 수도는 파리이다.", CAPITAL, "파리입니다.", None, "supports"),
        ("프랑스의 수도는 파리이다.", CAPITAL, "파리입니다.", "파리", "supports"),
        ("프랑스의 수도는 파리이다.", CAPITAL, "네, 거기입니다.", "파리", "supports"),
        ("파리는 프랑스에 있다.", CAPITAL, "프랑스의 수도는 파리입니다.", None, "supports"),
        ("프랑스의 화폐는 유로이다.", CAPITAL, "파리입니다.", None, "other"),
        ("프랑스의 화폐는 유로이다.", CAPITAL, "파리입니다.", "파리", "other"),
        ("일본의 수도는 도쿄이다.", CAPITAL, "파리입니다.", None, "other"),
        ("파리는 패션의 중심이다.", CAPITAL, "파리입니다.", None, "other"),  # of neither subject
        ("독일의 화폐는 유로이다.", MONEY, "유로입니다.", None, "unclear"),  # another's same value
        ("독일의 화폐는 유로이다.", MONEY, "유로입니다.", "유로", "unclear"),
        ("유럽 여러 나라는 유로를 쓴다.", MONEY, "유로입니다.", "유로", "other"),
        ("프랑스의 수도는 파리이다.", CAPITAL, "프랑스의 수도입니다.", None, "unclear"),
        ("프랑스의 수도는 파리이다.", "화성은 어떤가요?", "붉습니다.", "붉", "unclear"),
        ("", CAPITAL, "파리입니다.", None, "other"),
    ],
)
def test_a_stance_by_hand(
    passage: str, question: str, answer: str, phrase: str | None, expected: str
) -> None:
    assert SUPPORT.stance(passage, question, answer, phrase) == expected


def test_no_other_country_s_passage_supports_an_answer() -> None:
    for country, (capital, currency) in COUNTRIES.items():
        for what, value in (("수도", capital), ("화폐", currency)):
            known = f"{country}의 {what}는?", f"{value}입니다."
            for phrase in (None, value):
                supporting = [t for t in TEXTS if SUPPORT.stance(t, *known, phrase) == "supports"]
                (text,) = supporting
                assert text.startswith(f"{country}의 {what}는 {value}")


def test_a_subject_inside_another_s_name_is_another() -> None:
    texts = ["양주는 경기도에 있다.", "남양주는 경기도에 있다.", "청주는 충청북도에 있다."]
    question = "양주는 어느 도에 있나요?"
    assert Support.of(texts).stance(texts[1], question, "경기도에 있습니다.") != "supports"


def test_between_the_thresholds_nothing_can_be_said() -> None:
    answer = "사과 포도 수박 참외입니다."
    words = ("사과", "포도", "수박", "참외")
    equal = Support({"농장/N": 1, **{f"{word}/N": 1 for word in words}}, 9)
    assert claim("농장에는?", answer) == {f"{word}/N" for word in words}
    assert 1 / 4 <= UNRELATED < 2 / 4 < SUPPORTS <= 3 / 4
    found = [
        equal.stance(f"농장에 {' '.join(words[:count])}", "농장에는?", answer) for count in range(5)
    ]
    assert found == ["other", "other", "unclear", "supports", "supports"]


def test_a_rare_word_of_the_claim_counts_more() -> None:
    uneven = Support({"농장/N": 1, "사과/N": 90, "참외/N": 1}, 100)
    known = "농장에는?", "사과 참외입니다."
    assert uneven.stance("농장에 참외가 있다.", *known) == "supports"
    assert uneven.stance("농장에 사과가 있다.", *known) == "other"


def test_a_word_is_counted_once_a_passage_and_weighed_as_bm25_does() -> None:
    made = Support.of(["사과와 사과이다.", "사과와 배이다.", "감이다."])
    assert made.count == 3
    assert made.frequencies["사과/N"] == 2
    assert made.weight("사과/N") == pytest.approx(math.log(1 + (3 - 2 + 0.5) / (2 + 0.5)))
    assert made.weight("감/N") == pytest.approx(math.log(1 + (3 - 1 + 0.5) / (1 + 0.5)))
    assert made.weight("귤/N") == pytest.approx(math.log(1 + 3.5 / 0.5))
    assert Support({"a/S": 5}, 5).weight("a/S") == pytest.approx(math.log(1 + 0.5 / 5.5))


def test_the_subject_is_the_rarest_word_that_passages_have() -> None:
    assert SUPPORT.rarest(CAPITAL) == ["프랑스/N", "수도/N"]
    assert SUPPORT.rarest("프랑스와 화성의 수도와 화폐는?")[0] == "프랑스/N"
    assert SUPPORT.rarest("화성은?") == []
    assert Support({"배/N": 1, "감/N": 1}, 2).rarest("배와 감은?") == ["감/N", "배/N"]


def test_a_passage_on_neither_subject_is_foreign() -> None:
    assert not SUPPORT.foreign("프랑스는 크다.", CAPITAL)
    assert not SUPPORT.foreign("일본의 수도는 도쿄이다.", CAPITAL)
    assert SUPPORT.foreign("일본의 화폐는 엔이다.", CAPITAL)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("파리입니다. 센강이 흐릅니다.", {"파리/N"}),
        ("프랑스의 수도를 물으셨나요? 파리입니다.", {"파리/N"}),
        ("프랑스의 수도는 이렇습니다. 파리입니다.", None),
        ("네. 프랑스의 수도입니다. 파리입니다.", {"파리/N"}),
        ("센강은 어디에 있나요?", set()),
        ("프랑스의 수도입니다.", set()),
        ("", set()),
    ],
)
def test_a_claim_is_what_the_first_sentence_adds(answer: str, words: set[str] | None) -> None:
    found = claim(CAPITAL, answer)
    if words is None:
        assert found == words_of("이렇습니다.") != frozenset()
    else:
        assert found == words


def test_a_greeting_claims_nothing() -> None:
    assert claim(CAPITAL, "안녕하세요! 파리입니다.") == {"파리/N"}


def test_a_word_of_many_questions_is_no_claim() -> None:
    texts = ["기린의 먹이 습성은 초식이다.", "사자의 식성은 육식이다.", "사자의 먹이는 영양이다."]
    question, answer = "기린의 먹이 습성은 무엇인가요?", "기린의 식성은 초식입니다."
    assert Support.of(texts).stance(texts[0], question, answer) == "unclear"
    questions = [f"{name}의 식성은?" for name in ("소", "말", "개")]
    informed = Support.of(texts, questions)
    assert "식성/N" in informed.common
    assert informed.common.isdisjoint({"소/N", "말/N", "개/N"})
    assert informed.stance(texts[0], question, answer) == "supports"
    assert informed.stance(texts[0], question, "기린의 식성은 육식입니다.") == "other"
    assert informed.claim(question, "식성입니다.") == {"식성/N"}  # nothing else is said


def test_a_name_is_one_word_however_it_is_taken_apart() -> None:
    support = Support.of(["케냐의 화폐는 실링이다.", "카르멘의 작곡가는 비제이다."])
    money = "케냐의 돈은?", "실링입니다."
    assert support.stance("케냐에서 쓰는 돈은 실링이다.", *money) == "supports"
    question = "네덜란드 사람들이 쓰는 언어는?"
    assert claim(question, "네덜란드에서 쓰는 말은 네덜란드어입니다.") >= {"네덜란드어/N"}
    known = "카르멘의 작곡가는 누구예요?", "카르멘의 작곡가는 비제이다."
    assert support.stance("카르멘: 작곡가 비제, 나라 프랑스", *known) == "supports"
    assert claim("작은창자의 기능은?", "작은창자는 흡수를 맡습니다.") == {"흡수/N", "맡/V"}


@pytest.mark.parametrize(
    ("text", "words", "found"),
    [
        ("파리와 런던이다.", {"파리/N", "런던/N"}, True),
        ("파리는 도시이다.", {"파리/N", "런던/N"}, False),  # of equal weight: one half
        ("파리이다.", {"파리/N", "수도/N"}, True),  # of many questions
        ("수도이다.", {"파리/N", "수도/N"}, False),
        ("수도이다.", {"수도/N"}, True),
        ("도시이다.", {"수도/N"}, False),
        ("수도이다.", set(), False),
    ],
)
def test_what_a_text_has_of_some_words(text: str, words: set[str], found: bool) -> None:
    support = Support.of(TEXTS, ["프랑스의 수도는?", "일본의 수도는?"])
    assert support.common == {"수도/N"}
    assert support.has(text, frozenset(words)) == found


def test_a_share_is_by_weight() -> None:
    support = Support.of(TEXTS)
    rare, frequent = support.weight("파리/N"), support.weight("수도/N")
    share = support.share(["파리/N"], ["파리/N", "수도/N"])
    assert share == pytest.approx(rare / (rare + frequent))
    assert share > 0.5
    assert support.share([], []) == 1


def test_an_index_of_another_version_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "words.json"
    file.write_text('{"passages": 1, "words": {}}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"words\.json: no 'questions'; expected words, passages"):
        Support.load(tmp_path)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    made = Support.of(TEXTS, ["프랑스의 수도는?", "일본의 수도는?"])
    made.save(tmp_path)
    loaded = Support.load(tmp_path)
    assert (loaded.frequencies, loaded.count, loaded.common) == (
        dict(made.frequencies),
        made.count,
        {"수도/N"},
    )
