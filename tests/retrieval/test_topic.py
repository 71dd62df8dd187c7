"""What is left of a question to search for, when the words that ask are cut off."""

import pytest

from stages.rlhf.retrieval.tokens import topic


@pytest.mark.parametrize(
    ("question", "left"),
    [
        ("일본의 수도가 어디인지 아시나요?", "일본의 수도"),
        ("파이썬 3.12에서 새로 추가된 기능을 알려 주세요.", "파이썬 3.12에서 새로 추가된 기능"),
        ("아폴로 11은 무엇인가요?", "아폴로 11"),
        ("해리 포터를 누가 썼나요?", "해리 포터를 누가 썼"),  # 쓰 and 었 are one syllable
        ("'어린 왕자'의 작가는 누구인가요?", "'어린 왕자'의 작가"),
        ("광합성이 무엇인지 설명해 줄 수 있나요?", "광합성"),
        ("한라산의 높이가 몇 미터인지 궁금합니다.", "한라산의 높이가 몇 미터"),
        ("윈도우 11과 윈도우 10의 차이를 말해 줘", "윈도우 11과 윈도우 10의 차이"),
        ("BTS의 멤버는 몇 명이야?", "BTS의 멤버는 몇 명"),
        ("전화를 처음 발명한 사람이 누군지 알고 싶어요.", "전화를 처음 발명한 사람"),
        ("경복궁은 어디에 있나요?", "경복궁"),
        ("GPT-4", "GPT-4"),
    ],
)
def test_the_topic_of_a_question(question: str, left: str) -> None:
    assert topic(question) == left


@pytest.mark.parametrize("question", ["무엇인지 알려 주세요.", "뭐예요?", "?", ""])
def test_asking_words_alone_are_all_there_is_to_search(question: str) -> None:
    assert topic(question) == question


@pytest.mark.parametrize(
    ("question", "left"),
    [
        ("윤동주의 시는?", "윤동주의 시"),
        ("타조의 알은?", "타조의 알"),
        ("행성의 수는 몇인가요?", "행성의 수"),
        ("워싱턴 주는 어디에 있나요?", "워싱턴 주"),
        ("C++은 무엇인가요?", "C++"),
    ],
)
def test_a_noun_that_looks_like_an_asking_word_stays(question: str, left: str) -> None:
    assert topic(question) == left
