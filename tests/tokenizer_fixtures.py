"""Korean sentences, and small tokenizers trained on them: ours, and twins of the hub's."""

import json
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from stages.rlhf.chat import prepare_tokenizer

SENTENCES = [
    "한라산의 높이는 1947m입니다.",
    "서울은 대한민국의 수도입니다.",
    "질문: 경주는 어느 도에 있나요?\n답변:\n경주는 경상북도에 있습니다.",
    "세종대왕은 훈민정음을 만들었습니다.",
]
QUESTIONS = [
    "한라산의 높이는?",
    "서울은 어느 나라의 수도인가요?",
    "경주는 어느 도에 있나요?",
    "훈민정음은 누가 만들었나요?",
    "제주도는?",
    "부산은 어떤 도시인지 자세히 설명해 주세요.",
    "독도는 어디에 있나요?",
    "김치는?",
]
SIXTY_FOUR = [  # short in every tokenizer
    f"{name}{end}"
    for name in ("서울", "부산", "경주", "김치", "독도", "한라산", "제주도", "훈민정음")
    for end in ("?", "은?", "의 높이", " 1947m", " 알려 줘.", "입니다", " 수도?", "에 있나요?")
]


@cache
def bpe(*special: str) -> Tokenizer:
    """A byte-level BPE of some 320 tokens; `special` have the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def tiny_tokenizer() -> Any:
    """As stage base makes it: <pad>, <bos>, <eos>."""
    made = Tokenizer.from_str(bpe("<pad>", "<bos>", "<eos>").to_str())
    return prepare_tokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
        )
    )


LLAMA3_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>")


def llama3_tokenizer() -> Any:
    """A twin of Llama-3's: BOS put in by the post-processor, no padding token named."""
    made = Tokenizer.from_str(bpe(*LLAMA3_SPECIAL).to_str())
    made.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        clean_up_tokenization_spaces=True,
    )


KANANA_SPECIAL = (*LLAMA3_SPECIAL, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA3_SPLIT = (  # of Llama-3's tokenizer.json; llama.cpp calls it llama-bpe
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def kanana15_tokenizer() -> Any:
    """A twin of kanana-1.5's: Llama-3's kind and split, with turns, a template, EOS for padding."""
    made = Tokenizer.from_str(bpe(*KANANA_SPECIAL).to_str())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|end_of_text|>",
        chat_template="{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}"
        "<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>{% endfor %}",
    )


BYTES = tuple(f"<0x{i:02X}>" for i in range(256))


@cache
def sentencepiece(prefix: bool, *special: str) -> Tokenizer:
    """A BPE as SentencePiece's become in tokenizers: blanks are ▁, unknown characters are bytes.

    `prefix`: a blank is put before the text, as Llama-2 does and Gemma does not.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    before = [normalizers.Prepend("▁")] if prefix else []
    after = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=[*special, *BYTES], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    plain = json.loads(tokenizer.to_str())
    plain["added_tokens"] = [t for t in plain["added_tokens"] if t["content"] not in BYTES]
    made = Tokenizer.from_str(json.dumps(plain))
    bos = "<s>" if "<s>" in special else "<bos>"
    made.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, special.index(bos))]
    )
    return made


def llama2_tokenizer() -> Any:
    """A twin of Llama-2's: SentencePiece with a blank before the text, no padding token."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(sentencepiece(True, "<unk>", "<s>", "</s>").to_str()),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    )


def gemma_tokenizer() -> Any:
    """A twin of Gemma's: SentencePiece without a blank before the text."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(
            sentencepiece(False, "<pad>", "<eos>", "<bos>", "<unk>").to_str()
        ),
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
    )
