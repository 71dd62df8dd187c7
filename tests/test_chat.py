"""One BOS, one EOS, a padding token of its own: the same for every tokenizer."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from stages.rlhf.chat import Codec, prepare_tokenizer, template, template_hash
from stages.rlhf.sizes import TEMPLATE_TOKENS
from tests.conftest import naming
from tests.tokenizer_fixtures import QUESTIONS, SENTENCES, bpe, llama3_tokenizer, tiny_tokenizer


def llama2_tokenizer() -> Any:
    """A twin of Llama-2's: sentencepiece with byte fallback, <unk>, and no padding token."""
    text = "".join(SENTENCES + QUESTIONS)
    signs = sorted({c if c != " " else "▁" for c in text} - {"\n"})
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *bytes_, "▁", *signs])}
    made = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def pad_is_eos() -> Any:
    """What many recipes do to Llama-3."""
    tokenizer = llama3_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


PADS = {
    "tiny": (tiny_tokenizer, "<pad>"),
    "llama3": (llama3_tokenizer, "<|finetune_right_pad_id|>"),
    "llama3, pad == eos": (pad_is_eos, "<|finetune_right_pad_id|>"),
    "llama2": (llama2_tokenizer, "<unk>"),
}


@pytest.fixture(params=list(PADS))
def codec(request: pytest.FixtureRequest) -> Codec:
    make, pad = PADS[request.param]
    tokenizer = prepare_tokenizer(make())
    assert tokenizer.pad_token == pad
    return Codec(tokenizer)


def test_padding_is_never_eos(codec: Codec) -> None:
    assert codec.pad_id != codec.eos_id
    assert codec.tokenizer.padding_side == "right"


def test_a_prompt_has_a_single_bos_and_no_eos(codec: Codec) -> None:
    for question in QUESTIONS:
        ids = codec.prompt_ids(question)
        assert ids[0] == codec.tokenizer.bos_token_id
        assert ids.count(codec.tokenizer.bos_token_id) == 1
        assert codec.eos_id not in ids
        assert codec.pad_id not in ids


def test_an_answer_has_a_single_eos_at_its_end_and_no_bos(codec: Codec) -> None:
    for answer in SENTENCES:
        ids = codec.response_ids(answer)
        assert ids[-1] == codec.eos_id
        assert ids.count(codec.eos_id) == 1
        assert codec.tokenizer.bos_token_id not in ids


def test_text_comes_back_as_it_was(codec: Codec) -> None:
    odd = ["3.5 km 는 3,500 m 인가요 ?", "I 'm . 네 , 그렇습니다 !", "가\n나", "😀 이모지"]
    for answer in [*SENTENCES, *odd]:
        assert codec.text(codec.response_ids(answer)) == answer
    assert codec.text([codec.pad_id, *codec.response_ids(" 네 "), codec.pad_id]) == "네"


def test_prompt_and_answer_make_the_templates_whole_conversation(codec: Codec) -> None:
    question, answer = QUESTIONS[0], "1947m입니다."
    whole = codec.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        tokenize=False,
    )
    tokenizer = codec.tokenizer
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    assert whole == f"{bos}질문: {question}\n답변:\n{answer}{eos}"
    prompt = tokenizer.decode(codec.prompt_ids(question)).replace(f"{bos} ", bos)
    assert prompt == f"{bos}질문: {question}\n답변:\n"


def test_the_template_fits_into_the_room_left_for_it() -> None:
    codec = Codec(tiny_tokenizer())
    for question in QUESTIONS:
        alone = codec.tokenizer.encode(question, add_special_tokens=False)
        extra = len(codec.prompt_ids(question)) - len(alone)
        assert extra <= TEMPLATE_TOKENS, f"{extra} tokens, room for {TEMPLATE_TOKENS}"


def test_no_token_to_pad_with_is_refused() -> None:
    made = PreTrainedTokenizerFast(tokenizer_object=bpe("<s>", "</s>"), eos_token="</s>")
    with pytest.raises(ValueError, match=naming("<|finetune_right_pad_id|>", "<pad>")):
        prepare_tokenizer(made)
    with pytest.raises(ValueError, match=naming("EOS")):
        prepare_tokenizer(PreTrainedTokenizerFast(tokenizer_object=bpe("<s>", "</s>")))


def test_the_hash_is_of_the_template() -> None:
    assert len(template_hash()) == 64
    assert template().endswith("{%- endfor -%}")
