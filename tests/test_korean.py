import unicodedata

import pytest

from stages.rlhf.korean import (
    clean,
    clean_line,
    has_placeholder,
    question_key,
    same_text,
    sentence_ends,
)


def sentences(text: str) -> list[str]:
    ends = sentence_ends(text)
    return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def test_decomposed_text_is_composed() -> None:
    nfd = unicodedata.normalize("NFD", "한국의 수도는?")
    assert nfd != "한국의 수도는?"
    assert clean(nfd) == "한국의 수도는?"
    # a zero-width character between the pieces of a syllable does not keep them apart
    assert clean(nfd[0] + "\u200b" + nfd[1:]) == "한국의 수도는?"


@pytest.mark.parametrize(
    "sign",
    ["\ufeff", "\u200b", "\u200d", "\u2060", "\u00ad", "\u202e", "\x00", "\x7f", "\ud800"],
    ids=ascii,
)
def test_invisible_characters_go(sign: str) -> None:
    assert clean(f"{sign}수{sign}도{sign}") == "수도"


def test_white_space_is_folded() -> None:
    assert clean(" \t수도는\u00a0\u3000 서울\u3164입니다. ") == "수도는 서울 입니다."
    assert clean("하나 \r\n\r\n \u2028 둘\n") == "하나\n둘"
    assert clean("하나<[!newline]>둘") == "하나\n둘"
    assert clean_line("하나\n\n둘") == "하나 둘"


@pytest.mark.parametrize(
    "token",
    [
        *("<|endoftext|>", "<|begin_of_text|>", "<|eot_id|>", "<s>", "</s>", "</S>", "<unk>"),
        *("<pad>", "<bos>", "<eos>", "[PAD]", "<unused12>", "<start_of_turn>"),
        *("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    ],
)
def test_special_tokens_go(token: str) -> None:
    assert clean(f"서울{token}입니다.{token}") == "서울입니다."


def test_special_token_left_by_a_removal_goes_too() -> None:
    assert clean("서울<</s>/s>") == "서울"
    assert clean("서울<|end<|x|>oftext|>") == "서울"


@pytest.mark.parametrize("text", ["a < b | c > d", "<html>", "[1] 참고", "2<3", "<|", "List<int>"])
def test_ordinary_signs_stay(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    "text", ["e\u0301 <</s>/s>  x\n\n\u200by ", "가\u1160나", "\u3164\u3164", "<s><s>a</s>\r\n b"]
)
def test_cleaning_twice_changes_nothing(text: str) -> None:
    assert clean(clean(text)) == clean(text)


def test_placeholders() -> None:
    assert has_placeholder("<NAME>씨는 어디 살아요?")
    assert has_placeholder("<name1>은 누구?")
    assert has_placeholder("#@이름#은 누구?")
    assert not has_placeholder("<table> 태그는 무엇인가요?")
    assert not has_placeholder("C#과 F#은?")


def test_key_ignores_spaces_case_width_and_punctuation() -> None:
    assert question_key("서울의  인구는 얼마?") == question_key("서울의 인구는 '얼마'")
    assert question_key("ＧＤＰ란?") == question_key("gdp란")
    assert question_key("?!…") == ""


def test_key_keeps_signs_that_matter() -> None:
    assert len({question_key(q) for q in ("3*4는?", "3/4는?", "3-4는?", "34는?")}) == 4
    assert question_key("C#이란?") != question_key("C이란?")


def test_same_text() -> None:
    assert same_text("수도는 어디?", "수도는  어디")
    assert not same_text("나는 빵, 밥을 먹었다.", "나는 빵 밥을 먹었다.")


def test_sentences_end_at_their_marks() -> None:
    text = '수도는 서울입니다. 맞나요? 네! "좋아요." 끝'
    assert sentences(text) == ["수도는 서울입니다.", " 맞나요?", " 네!", ' "좋아요."']


def test_sentences_end_at_a_line_break_behind_a_final_ending() -> None:
    assert sentences("서울이다\n부산이다\n- 사과\n- 배") == ["서울이다", "\n부산이다"]


def test_sentences_end_where_the_space_was_forgotten() -> None:
    assert sentences("서울입니다.부산도 있어요.끝") == ["서울입니다.", "부산도 있어요."]


@pytest.mark.parametrize(
    "text",
    ["1. 사과", "2024. 3. 1. 토요일", "원주율은 3.14 정도", "Dr. 김", "e.g. 사과", "음... 글쎄"],
)
def test_not_every_full_stop_ends_a_sentence(text: str) -> None:
    assert sentences(text) == []


@pytest.mark.parametrize("text", ["정답은 3.", "답은 A.", "글쎄요…", "서울이다"])
def test_the_end_of_the_text_ends_a_sentence(text: str) -> None:
    assert sentence_ends(text) == [len(text)]
