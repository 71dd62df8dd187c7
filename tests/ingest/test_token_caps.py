"""Lengths of text alone, and clips that end where a sentence does and break no block of code."""

import pytest
from tokenizers import Tokenizer

from stages.rlhf.chat import Codec
from stages.rlhf.ingest.token_caps import Caps
from stages.rlhf.sizes import TEMPLATE_TOKENS
from tests.tokenizer_fixtures import bpe, tiny_tokenizer


def raw() -> Tokenizer:
    return Tokenizer.from_str(bpe("<pad>", "<bos>", "<eos>").to_str())


def clipped(answer: str, spared: str) -> str | None:
    """The answer as clipped to the tokens of `spared`, which it begins with."""
    cap = len(raw().encode(spared).ids) + 1
    return Caps(raw(), TEMPLATE_TOKENS + 1, cap, "clip").fit_answer(answer, "sft_answer")


@pytest.mark.parametrize("text", ["<bos>" * 9, "가<eos>나", "<pad>"])
def test_what_looks_like_a_special_token_counts_as_the_text_it_is(text: str) -> None:
    length = len(Codec(tiny_tokenizer()).response_ids(text)) - 1
    for room, fits in ((length, True), (length - 1, False)):
        caps = Caps(raw(), TEMPLATE_TOKENS + room, 99, "drop")
        assert caps.question_fits(text) is fits
        assert Caps(raw(), 99, room + 1, "drop").fit_answer(text, "sft_answer") == (
            text if fits else None
        )


def test_truncation_and_padding_of_the_file_are_off() -> None:
    tokenizer = raw()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    caps = Caps(tokenizer, 64, 64, "drop")
    assert not caps.question_fits("가" * 2000)
    assert caps.question_fits("가")
    assert caps.percentiles()["question"]["p50"] == len(raw().encode("가").ids)


CODE = "```python\n# 1을 더한다.\nx += 1\n```"


def test_a_clip_keeps_lines_and_paragraphs() -> None:
    first = "서울입니다.\n\n- 하나예요.\n    - 둘이에요."
    assert clipped(f"{first}\n- 셋이고 넷", first) == first


def test_a_clip_never_leaves_a_block_of_code_open() -> None:
    answer = f"이렇게 합니다.\n\n{CODE}\n\n끝으로 실행합니다."
    assert clipped(answer, answer[: answer.index("x += 1")]) == "이렇게 합니다."
    assert clipped(answer, answer[: answer.index("\n\n끝") + 3]) == f"이렇게 합니다.\n\n{CODE}"
