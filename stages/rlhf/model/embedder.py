"""The embedder: a SentenceTransformer that measures the similarity of responses to references.

From the hub, or trained here: the mean of learned token vectors (StaticEmbedding), trained
contrastively with in-batch negatives; positives are two halves of a text, or a question and its
answer. Vectors are initialised by smooth inverse frequency (Arora et al. 2017), so that names and
values weigh more than endings and particles.
Different here: it has its own tokenizer and seed, so that similarities do not depend on the base
model or the global seed; a Normalize layer is removed, so that distances are on raw embeddings.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from stages.rlhf.config.measure import EmbedderConfig
from stages.rlhf.files import RUN, folder_hash
from stages.rlhf.hub import POINTER, follow_pointer, refuse_pickles
from stages.rlhf.korean import sentence_ends
from stages.rlhf.runtime import derive_seed

Pair = tuple[str, str]
SIF = 1e-3  # token frequency at which the initial vector has half its length
WINDOW = 200  # characters of a text in a training pair; bounds the time per pair


def halves(text: str) -> Pair | None:
    """A text split near its middle, at a sentence end or else a space; None for a single word."""
    cuts = [end for end in sentence_ends(text) if end < len(text)]
    if not cuts:
        cuts = [i for i, char in enumerate(text) if char.isspace()]
    if not cuts:
        return None
    cut = min(cuts, key=lambda i: abs(i - len(text) / 2))
    return text[:cut].strip()[-WINDOW:], text[cut:].strip()[:WINDOW]


def training_pairs(corpus: Sequence[str], questions: Sequence[Pair]) -> list[Pair]:
    """Halves of each document and answer, and each question with its answer; deduplicated.

    An answer of one word has no halves, but still pairs with its question.
    """
    texts = [*corpus, *(answer for _, answer in questions)]
    split = [pair for pair in map(halves, texts) if pair is not None]
    answered = [(question[-WINDOW:], answer[:WINDOW]) for question, answer in questions]
    return list(dict.fromkeys([*split, *answered]))


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE: no unknown tokens, and frequent words and numbers are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def initial_weights(
    tokenizer: Tokenizer, texts: Sequence[str], config: EmbedderConfig
) -> torch.Tensor:
    """(V, D) normal vectors, scaled by SIF / (SIF + p) for a token of frequency p."""
    counts = torch.ones(tokenizer.get_vocab_size())
    for encoded in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        ids = torch.tensor(encoded.ids, dtype=torch.long)
        counts += torch.bincount(ids, minlength=len(counts))
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "embedder"))
    vectors = torch.randn(len(counts), config.dimensions, generator=generator)
    return vectors * (SIF / (SIF + counts / counts.sum()))[:, None]


def train(
    corpus: Sequence[str], questions: Sequence[Pair], config: EmbedderConfig
) -> SentenceTransformer:
    """A StaticEmbedding model from training texts and training (question, answer) pairs.

    Its vocabulary is smaller than `config.vocab_size` if the texts have too few words. Without two
    different pairs there is nothing to contrast: the initial vectors stay.
    """
    pairs = training_pairs(corpus, questions)
    texts = [*corpus, *(text for pair in questions for text in pair)]
    tokenizer = train_tokenizer(texts, config.vocab_size)
    static = StaticEmbedding(tokenizer, embedding_weights=initial_weights(tokenizer, texts, config))
    model = SentenceTransformer(modules=[static], device="cpu")
    if len(pairs) > 1:
        _fit(model, pairs, config)
    return model.eval()


def _fit(model: SentenceTransformer, pairs: Sequence[Pair], config: EmbedderConfig) -> None:
    left, right = zip(*pairs, strict=True)
    with tempfile.TemporaryDirectory() as unused:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=unused,
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            seed=derive_seed(config.seed, "embedder", "batches") % 2**32,
            use_cpu=True,  # the same embedder on every machine
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
        )
        SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict({"anchor": left, "positive": right}),
            loss=MultipleNegativesRankingLoss(model),
        ).train()


def save(model: SentenceTransformer, folder: Path) -> None:
    """Write weights, tokenizer and config; no model card, which contains time and paths."""
    model.save(str(folder), create_model_card=False)


def load(folder: Path) -> SentenceTransformer:
    """The embedder in `folder`, or the one its pointer names, producing raw embeddings.

    Raises ValueError if there is neither, if weights are pickled, or the hub cache lacks them.
    """
    if (folder / POINTER).is_file():
        weights, device = follow_pointer(folder), None
    elif (folder / "modules.json").is_file():
        weights, device = folder, "cpu"
    else:
        raise ValueError(f"{folder}: neither modules.json nor {POINTER}; no embedder here")
    refuse_pickles(weights)
    try:
        model = SentenceTransformer(
            str(weights),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{weights}: not a usable embedder: {cause}") from error
    for index in reversed([i for i, module in enumerate(model) if isinstance(module, Normalize)]):
        del model[index]
    if isinstance(model.tokenizer, Tokenizer):
        model.tokenizer.encode_special_tokens = True  # [MASK] in a response is text
    else:
        model.tokenizer.split_special_tokens = True
    return model.eval()


def encode(model: SentenceTransformer, texts: Sequence[str]) -> NDArray[np.float32]:
    """N texts -> (N, D) embeddings, not normalised; an empty text may give a zero vector."""
    made = model.encode(
        list(texts), convert_to_numpy=True, normalize_embeddings=False, show_progress_bar=False
    )
    return np.asarray(made, dtype=np.float32)


def embedder_hash(folder: Path) -> str:
    """sha256 of weights or pointer; similarities are comparable only with equal hashes."""
    return folder_hash(folder, without={RUN})
