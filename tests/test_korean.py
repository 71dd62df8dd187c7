import unicodedata

import pytest

from stages.rlhf.keys import is_blank, question_key
from stages.rlhf.korean import clean, clean_line, has_placeholder, same_text, sentence_ends


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


@pytest.mark.parametrize(
    "emoji", ["👨\u200d👩\u200d👧\u200d👦", "❤️\u200d🔥", "👩🏽\u200d💻"], ids=ascii
)
def test_emoji_stay_joined(emoji: str) -> None:
    assert clean(f"\u200d가족 {emoji}\u200d {emoji}\n\u200d끝") == f"가족 {emoji} {emoji}\n끝"


def test_white_space_is_folded() -> None:
    assert clean(" \t수도는\u00a0\u3000 서울\u3164입니다. ") == "수도는 서울 입니다."
    assert clean("하나 \r\n 둘\u2028셋\n") == "하나\n 둘\n셋"
    assert clean("하나<[!newline]>둘") == "하나\n둘"
    assert clean_line("하나\n\n \u2028\t둘") == "하나 둘"


@pytest.mark.parametrize(
    ("text", "right"),
    [
        # an indented block, blank lines, a nested list
        ("합:\n\n    def f(x):\n        return x\n", "합:\n\n    def f(x):\n        return x"),
        ("문단\n\n\n  \n문단", "문단\n\n문단"),
        ("1. 하나\r\n   - 둘  \r\n\t- 셋", "1. 하나\n   - 둘\n\t- 셋"),
        # a table: blanks within a line are one, in code they stay
        ("| 가   | 나\t|\n|---|---|", "| 가 | 나 |\n|---|---|"),
        ("```\na  = 1\n\n\n\tb\n```\n\n\n가  나", "```\na  = 1\n\n\n\tb\n```\n\n가 나"),
        ("- ```sql\n  a   b\n  ```\n- 가  나", "- ```sql\n  a   b\n  ```\n- 가 나"),
        ("````\n```\na  b\n```\nc  d\n````\ne  f", "````\n```\na  b\n```\nc  d\n````\ne f"),
        ("```열린 채\na  b", "```열린 채\na  b"),
        ("``` 한 줄 ```  아님\na  b", "``` 한 줄 ``` 아님\na b"),
        # blanks of the web are blanks of code
        ("예:\n\u00a0\u00a0x\n\u3000문단", "예:\n  x\n 문단"),
        # no text begins with a blank: the lines that share the first one's indentation lose it
        ("    def f():\n        return 1\n\n설명\n    x", "def f():\n    return 1\n\n설명\n    x"),
        ("  - 하나\n    - 둘", "- 하나\n  - 둘"),
        (" 문단\n```\n  x\n```", "문단\n```\n  x\n```"),
        ("\n\n  하나  둘\n\n", "하나 둘"),
        ("\u200b\n \n", ""),
    ],
)
def test_a_text_keeps_its_lines(text: str, right: str) -> None:
    assert clean(text) == right
    assert clean(right) == right
    assert clean_line(text) == " ".join(right.split())


@pytest.mark.parametrize(
    "text",
    [
        "HTML에서 <s>취소선</s> 태그와 BERT의 [MASK] 토큰은?",
        "<|endoftext|>는 무엇인가요?",
        "[INST]와 <<SYS>>를 쓰는 모델은?",
        "<<start_of_turn>start_of_turn>",
        "C 코드 a[UNK]</S>",
    ],
)
def test_what_looks_like_a_special_token_is_text(text: str) -> None:
    assert clean(text) == text
    assert clean_line(text) == text


@pytest.mark.parametrize("text", ["a < b | c > d", "<html>", "[1] 참고", "2<3", "<|", "List<int>"])
def test_ordinary_signs_stay(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("기체입니다.<|endoftext|>", "기체입니다."),
        ("서울입니다. </s><pad><pad>\n", "서울입니다."),
        ("서울</s>", "서울"),
        ("가\n\n나.\n<|im_end|>", "가\n\n나."),
        ("</s>", ""),
        ("<s> </s>", ""),
        ("<s>취소선</s>", "<s>취소선</s>"),
        ("GPT-2의 끝은 <|endoftext|>", "GPT-2의 끝은 <|endoftext|>"),
        ("</s> 태그는?", "</s> 태그는?"),
    ],
)
def test_eos_after_the_end_of_a_text_goes(text: str, right: str) -> None:
    assert clean(text) == right
    assert clean_line(text) == " ".join(right.split())


@pytest.mark.parametrize(
    "text",
    [
        "e\u0301 <</s>/s>  x\n\n\u200by ",
        "가\u1160나",
        "\u3164\u3164",
        " \n  a\n\n b\r\n b",
        "\n```\n",
    ],
)
def test_cleaning_twice_changes_nothing(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "<NAME>씨는 어디 살아요?",
            "<name1>은 누구?",
            "#@이름#은 누구?",
            "김<NAME>에게",
            "<DATE>에",
        ),
        *(
            "<전화번호>로 전화",
            "전화번호<NUMBER>",
            "<이름>은 누구?",
            "<ADDRESS_2>의 날씨는?",
            "<name>씨는?",
        ),
        *("<Name> 님께", "<b>굵게</b> 쓴 <NAME>"),
    ],
)
def test_a_redacted_name_is_a_placeholder(text: str) -> None:
    assert has_placeholder(text)


@pytest.mark.parametrize(
    "text",
    [
        *("HTML의 <address> 태그는?", "pom.xml의 <name>, <url>", "<table> 태그는 무엇인가요?"),
        *(
            "C#과 F#은?",
            "List<ID>를 정렬하려면?",
            "Map<NUMBER>란?",
            "<ADDRESS> 태그는?",
            "<이름> 요소",
        ),
        *("<NAME>홍길동</NAME>을 읽으려면?", "<address1>서울</address1>", "<Name>과 <Url/>은?"),
        *("git clone <url>", "2 < 3"),
    ],
)
def test_a_tag_or_a_type_is_no_placeholder(text: str) -> None:
    assert not has_placeholder(text)


def test_key_ignores_spaces_case_width_and_punctuation() -> None:
    assert question_key("서울의  인구는 얼마?") == question_key("서울의 인구는 '얼마'")
    assert question_key("ＧＤＰ란?") == question_key("gdp란")
    assert question_key("?!…") == ""


def test_key_keeps_signs_that_matter() -> None:
    assert len({question_key(q) for q in ("3*4는?", "3/4는?", "3-4는?", "34는?")}) == 4
    assert question_key("C#이란?") != question_key("C이란?")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("3.5 + 1은?", "35 + 1은?"), ("3²은?", "32은?"), ("5!은?", "5은?"), ("12:30", "1230")),
        *(("x²이란?", "x2이란?"), ("1.5", "15"), ("-3", "3"), ("3~5", "35"), ("3–5일", "35일")),
        *(
            ("½", "12"),
            ("1½", "11/2"),
            ("2/3", "23"),
            ("2 3/4", "23/4"),
            ("①②", "12"),
            ("①2", "12"),
        ),
        *(("1:1", "11"), ("3>2", "3<2"), ("5‰", "5"), (".5", "5"), ("3.10", "3.1"), ("−3", "3")),
        *(("C++은?", "C은?"), (".NET이란?", "NET이란?"), ("\\n과 n", "n과 n"), ("a_b", "ab")),
        *(
            ("(3+4)*2는?", "3+4*2는?"),
            ("2(3)", "23"),
            ("(-3)²", "-3²"),
            ("n!", "n"),
            ("a != b", "a = b"),
        ),
        *(("log₂8", "log28"), ("1010₂", "10102"), ("10³", "103"), ("10⁻³", "10-3"), ("㎡", "m2")),
        *(
            ("1, 2, 3의 합", "123의 합"),
            ("3 4의 곱", "34의 곱"),
            ("3·1운동", "31운동"),
            ("f'(x)", "f(x)"),
        ),
    ],
)
def test_keys_of_different_questions_differ(one: str, other: str) -> None:
    assert question_key(one) != question_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(
            ("1,000원", "1000원"),
            ("1,234,567", "1234567"),
            ("１，０００", "1000"),
            ("１２시", "12시"),
        ),
        *(("H₂O는?", "H2O는?"), ("A.I.란?", "AI란?"), ("Node.js", "Nodejs"), ("①은?", "1은?")),
        *(
            ("안녕하세요?", "안녕하세요!"),
            ("Hello, world!", "hello world"),
            ("정답은 3.", "정답은 3"),
        ),
        *(
            ("㎡", "m²"),
            ("x^10", "x¹⁰"),
            ("½", "1/2"),
            ("1½", "1 1/2"),
            ("−3", "-3"),
            ("10⁻³", "10^-3"),
        ),
        *(("2024. 3. 1.", "2024.3.1"), ("12 ： 30", "12:30"), ("'35'의 뜻", "35의 뜻")),
        *(("서울(수도)의 인구", "서울 수도의 인구"), ("와이파이(Wi-Fi)", "와이파이 Wi-Fi")),
        *(("빈칸 ___에", "빈칸에"), ("음...AI란", "음 AI란"), ("가\n\n  나", "가 나")),
    ],
)
def test_keys_of_one_question_are_equal(one: str, other: str) -> None:
    assert question_key(one) == question_key(other)


def test_a_text_of_punctuation_is_blank() -> None:
    for text in ("", "?!…", "\u3000。", "「」", "5"):
        assert is_blank(text) == (question_key(text) == "")
    assert is_blank("?!…")
    assert not is_blank("5")


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


@pytest.mark.parametrize("text", ["서울입니다.\n\n    부산이다\n\n- 대구예요"])
def test_sentences_end_at_paragraphs_and_items(text: str) -> None:
    assert sentences(text) == ["서울입니다.", "\n\n    부산이다", "\n\n- 대구예요"]


def test_a_block_of_code_is_no_sentence_and_its_end_is_one() -> None:
    code = "```python\n# 더한다.\nx += 1\n```"
    assert sentences(f"이렇게:\n{code}\n됩니다. 끝") == [f"이렇게:\n{code}", "\n됩니다."]
    assert sentences(f"{code}\n{code}") == [code, f"\n{code}"]
    assert sentence_ends("네.\n```\n# 더한다") == [len("네.")]
