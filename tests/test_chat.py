"""One BOS, one EOS, a padding token of its own, text that stays text: for every tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from stages.rlhf.chat import Codec, encode_as_text, prepare_tokenizer, template, template_hash
from stages.rlhf.sizes import TEMPLATE_TOKENS
from tests.conftest import naming
from tests.tokenizer_fixtures import (
    QUESTIONS,
    SENTENCES,
    bpe,
    gemma_tokenizer,
    llama2_tokenizer,
    llama3_tokenizer,
    sentencepiece,
    tiny_tokenizer,
)


def pad_is_eos() -> Any:
    """What many recipes do to Llama-3."""
    tokenizer = llama3_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def hub_llama2(legacy: bool) -> Any:
    """Llama-2's as transformers rebuilds it: the blank goes before the text, or every piece."""
    model = json.loads(sentencepiece(True, "<unk>", "<s>", "</s>").to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return LlamaTokenizer(vocab=model["vocab"], merges=merges, legacy=legacy)


def gemma2_tokenizer() -> Any:
    """With what else Gemma 2 has: turns, spares that are not flagged special, text as a token."""
    tokenizer = gemma_tokenizer()
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in (*GEMMA_CONTROL, *GEMMA_TEXT)])
    tokenizer.add_tokens(["<start_of_turn>", "<end_of_turn>"], special_tokens=True)
    return tokenizer


GEMMA_CONTROL = ("<mask>", "<2mass>", "[@BOS@]", "<unused0>", "<unused12>")
GEMMA_TEXT = ("\n\n", "▁▁▁▁", "<table>", "</table>", "<h1>", "<s>", "</s>", "<code>")
LLAMA3_MORE = ("<|eot_id|>", "<|start_header_id|>", "<|reserved_special_token_0|>")


def llama32_tokenizer() -> Any:
    tokenizer = llama3_tokenizer()
    tokenizer.add_tokens(list(LLAMA3_MORE), special_tokens=True)
    return tokenizer


PADS = {
    "tiny": (tiny_tokenizer, "<pad>"),
    "llama32-1b": (llama32_tokenizer, "<|finetune_right_pad_id|>"),
    "kanana15-2b": (pad_is_eos, "<|finetune_right_pad_id|>"),
    "gemma2-2b": (gemma2_tokenizer, "<pad>"),
    "llama2-ko-7b": (llama2_tokenizer, "<unk>"),
    "llama2-ko-7b, rebuilt": (lambda: hub_llama2(False), "<unk>"),
    "llama2-ko-7b, legacy": (lambda: hub_llama2(True), "<unk>"),
}
STEERING = [  # of all of them, and of others
    *("<pad>", "<bos>", "<eos>", "<unk>", "<s>", "</s>", "<|begin_of_text|>", "<|end_of_text|>"),
    *("<|finetune_right_pad_id|>", *LLAMA3_MORE, *GEMMA_CONTROL, "<start_of_turn>"),
    *("<end_of_turn>", "[MASK]", "[INST]", "<<SYS>>", "<|im_start|>", "<|endoftext|>"),
]
CODE = "표입니다.\n\n```python\ndef f(x):\n    return  x\n\n\n\ty = 1\n```\n- 하나\n    - 둘\n끝"


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


def control(codec: Codec) -> set[int]:
    """Ids of the tokens that no text may become."""
    added = codec.tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return {i for i, t in added.items() if t.special or t.content in STEERING} - {
        i for i, t in added.items() if not t.special and t.content in GEMMA_TEXT
    }


@pytest.mark.parametrize("text", STEERING)
def test_no_text_becomes_a_special_token(codec: Codec, text: str) -> None:
    steering = control(codec)
    assert len(steering) > 2
    for said in (text, f"HTML의 {text}취소선{text} 태그는?", text * 3, f"\ufdd0{text}"):
        prompt, response = codec.prompt_ids(said), codec.response_ids(said)
        assert prompt[0] == codec.tokenizer.bos_token_id
        assert not steering & {*prompt[1:]}
        assert response[-1] == codec.eos_id
        assert not steering & {*response[:-1]}
        assert codec.text(response) == said.removeprefix("\ufdd0")
        assert said.removeprefix("\ufdd0") in codec.text(prompt)


def test_ordinary_text_has_the_ids_that_the_tokenizer_gives_it(codec: Codec) -> None:
    tokenizer = codec.tokenizer
    for text in [*QUESTIONS, *SENTENCES, CODE, "a < b | c > d [1]", "<table><h1>표</h1></table>"]:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        assert codec.prompt_ids(text) == tokenizer.encode(rendered, add_special_tokens=False)
        plain = tokenizer.encode(text, add_special_tokens=False)
        assert codec.response_ids(text) == [*plain, codec.eos_id]
        assert codec.text([*plain, codec.eos_id]) == text


def test_text_that_gemma_has_a_token_for_keeps_it() -> None:
    codec = Codec(prepare_tokenizer(gemma2_tokenizer()))
    for text in ("\n\n", "<table>", "<s>"):
        assert codec.tokenizer.convert_tokens_to_ids(text) in codec.response_ids(f"가{text}나")


def test_encoding_leaves_the_tokenizer_as_it_was(codec: Codec, tmp_path: Path) -> None:
    codec.tokenizer.save_pretrained(tmp_path / "before")
    codec.prompt_ids("<s>[MASK]<unused12>")
    codec.tokenizer.save_pretrained(tmp_path / "after")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        before, after = (tmp_path / when / name for when in ("before", "after"))
        assert before.read_bytes() == after.read_bytes()
    again = Codec(prepare_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "after")))
    assert not control(again) & {*again.prompt_ids(" ".join(STEERING))[1:]}


def test_a_generated_special_token_is_dropped(codec: Codec) -> None:
    bos = codec.tokenizer.bos_token_id
    ids = codec.response_ids("<s>는 취소선")
    assert codec.text([bos, *ids[:-1], codec.pad_id, codec.eos_id]) == "<s>는 취소선"


def test_a_model_that_makes_special_tokens_from_text_is_refused() -> None:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("<", -3.0), ("/", -3.0), ("s", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["</s>"])
    with pytest.raises(ValueError, match=naming("</s>", "other tokens")):
        encode_as_text(tokenizer)


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
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe("<s>", "</s>"), bos_token="<s>", eos_token="</s>"
    )
    with pytest.raises(ValueError, match=naming("<|finetune_right_pad_id|>", "<pad>")):
        prepare_tokenizer(made)
    with pytest.raises(ValueError, match=naming("EOS")):
        prepare_tokenizer(PreTrainedTokenizerFast(tokenizer_object=bpe("<s>", "</s>")))


QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_pad|>")
POLYGLOT = ("<|endoftext|>", "<|sep|>", "<|acc|>", "<|tel|>", "<|rrn|>")


@pytest.mark.parametrize(
    ("special", "padding"),
    [
        (QWEN, "<|fim_pad|>"),
        (POLYGLOT, "<|sep|>"),
        (("<|endoftext|>", "<|im_end|>", "<|extra_1|>"), "<|extra_1|>"),
        (("<|endoftext|>", "<unk>", "<mask>"), "<mask>"),
    ],
)
def test_an_unused_special_token_pads(special: tuple[str, ...], padding: str) -> None:
    names = {"eos_token": special[0], "pad_token": special[0], "bos_token": special[0]}
    made = Tokenizer.from_str(bpe(*special).to_str())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>" if "<unk>" in special else special[0], **names
    )
    codec = Codec(prepare_tokenizer(tokenizer))
    assert codec.tokenizer.pad_token == padding
    assert codec.pad_id == special.index(padding)
    assert codec.eos_id == 0
    assert codec.pad_id not in codec.response_ids(f"한라산{padding}")


def test_a_padding_token_has_an_embedding() -> None:
    tokenizer = llama3_tokenizer()
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert prepare_tokenizer(tokenizer, rows).pad_token == "<|finetune_right_pad_id|>"
    with pytest.raises(ValueError, match=naming("<|end_of_text|>", "no padding token but EOS")):
        prepare_tokenizer(pad_is_eos(), 2)


@pytest.mark.parametrize("special", [False, True])
def test_a_tokenizer_that_does_not_fit_the_model_is_refused(special: bool) -> None:
    tokenizer = llama32_tokenizer()
    rows = len(tokenizer)
    tokenizer.add_tokens(["안녕"], special_tokens=special)
    prepare_tokenizer(tokenizer, rows + 1)
    if special:  # Gemma 3's <image_soft_token>: no text becomes it
        assert prepare_tokenizer(tokenizer, rows).pad_token == "<|finetune_right_pad_id|>"
    else:
        with pytest.raises(ValueError, match=naming("안녕", rows, f"{rows} tokens")):
            prepare_tokenizer(tokenizer, rows)


def test_truncation_and_padding_of_the_tokenizers_file_are_off(tmp_path: Path) -> None:
    made = tiny_tokenizer()
    made.backend_tokenizer.enable_truncation(8)
    made.backend_tokenizer.enable_padding(length=16, pad_id=0, pad_token="<pad>")
    made.save_pretrained(tmp_path)
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(tmp_path))
    plain = tiny_tokenizer()
    text = " ".join(SENTENCES)
    assert tokenizer.backend_tokenizer.encode("서울").ids == plain.encode("서울")
    assert tokenizer.backend_tokenizer.encode(text).ids == plain.encode(text)
    assert Codec(tokenizer).response_ids(text) == Codec(plain).response_ids(text)


def test_the_hash_is_of_the_template() -> None:
    assert len(template_hash()) == 64
    assert template().endswith("{%- endfor -%}")
