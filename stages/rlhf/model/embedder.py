"""The ruler: a SentenceTransformer whose cosine says how near an answer is to its reference.

From the hub, or made here: the mean of learned token vectors (StaticEmbedding), trained so that two
halves of one text, or a question and its answer, are nearer than any other two of the batch. The
vectors start short where a token is frequent (smooth inverse frequency, Arora et al. 2017), so that
names and values, not endings and particles, decide.
Different here: it has a tokenizer and a seed of its own, so that no change of model or seed moves
the ruler, and its Normalize layer, if it has one, is taken off: distances are on raw embeddings.
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
SIF = 1e-3  # the frequency from which a token's vector starts short
WINDOW = 200  # characters of a text that a training pair shows; it bounds the time per pair


def halves(text: str) -> Pair | None:
    """A text cut in two near its middle: at a sentence end, else between words; null for a word."""
    cuts = [end for end in sentence_ends(text) if end < len(text)]
    if not cuts:
        cuts = [i for i, sign in enumerate(text) if sign.isspace()]
    if not cuts:
        return None
    cut = min(cuts, key=lambda place: abs(place - len(text) / 2))
    return text[:cut].strip()[-WINDOW:], text[cut:].strip()[:WINDOW]


def training_pairs(corpus: Sequence[str], questions: Sequence[Pair]) -> list[Pair]:
    """Halves of each document and of each answer, and each question with its answer; no pair twice.

    A text of one word has no halves, but its question still has it.
    """
    texts = [*corpus, *(answer for _, answer in questions)]
    split = [pair for pair in map(halves, texts) if pair is not None]
    asked = [(question[-WINDOW:], answer[:WINDOW]) for question, answer in questions]
    return list(dict.fromkeys([*split, *asked]))


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE: no text is unknown to it, and frequent words and numbers are one token."""
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


def first_weights(
    tokenizer: Tokenizer, texts: Sequence[str], knobs: EmbedderConfig
) -> torch.Tensor:
    """(V, D) normal vectors, that of a token of frequency p scaled by SIF / (SIF + p)."""
    counts = torch.ones(tokenizer.get_vocab_size())
    for encoded in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        ids = torch.tensor(encoded.ids, dtype=torch.long)
        counts += torch.bincount(ids, minlength=len(counts))
    generator = torch.Generator().manual_seed(derive_seed(knobs.seed, "embedder"))
    vectors = torch.randn(len(counts), knobs.dimensions, generator=generator)
    return vectors * (SIF / (SIF + counts / counts.sum()))[:, None]


def train(
    corpus: Sequence[str], questions: Sequence[Pair], knobs: EmbedderConfig
) -> SentenceTransformer:
    """A StaticEmbedding model from training texts and (question, answer) pairs of training.

    Raises ValueError where there are fewer than two pairs to tell apart.
    """
    pairs = training_pairs(corpus, questions)
    if len(pairs) < 2:
        raise ValueError(
            f"the embedder needs at least 2 different pairs of texts, not {len(pairs)}"
        )
    texts = [*corpus, *(text for pair in questions for text in pair)]
    tokenizer = train_tokenizer(texts, knobs.vocab_size)
    static = StaticEmbedding(tokenizer, embedding_weights=first_weights(tokenizer, texts, knobs))
    model = SentenceTransformer(modules=[static], device="cpu")
    _fit(model, pairs, knobs)
    return model.eval()


def _fit(model: SentenceTransformer, pairs: Sequence[Pair], knobs: EmbedderConfig) -> None:
    left, right = zip(*pairs, strict=True)
    with tempfile.TemporaryDirectory() as nowhere:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=nowhere,
            num_train_epochs=knobs.epochs,
            per_device_train_batch_size=knobs.batch_size,
            learning_rate=knobs.learning_rate,
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            seed=derive_seed(knobs.seed, "embedder", "batches") % 2**32,
            use_cpu=True,  # the same ruler on every machine
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
    """Write weights, tokenizer and configuration; no model card, which names time and place."""
    model.save(str(folder), create_model_card=False)


def load(folder: Path) -> SentenceTransformer:
    """The ruler that lies in `folder`, or that its pointer names, giving raw embeddings.

    Raises ValueError where neither lies there, where a pickle does, or the hub's cache has lost it.
    """
    if (folder / POINTER).is_file():
        weights, device = follow_pointer(folder), None
    elif (folder / "modules.json").is_file():
        weights, device = folder, "cpu"
    else:
        raise ValueError(f"{folder}: neither modules.json nor {POINTER}; no embedder lies there")
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
        raise ValueError(f"{weights}: no embedder that can be used: {cause}") from error
    for place in reversed([i for i, module in enumerate(model) if isinstance(module, Normalize)]):
        del model[place]
    return model.eval()


def encode(model: SentenceTransformer, texts: Sequence[str]) -> NDArray[np.float32]:
    """N texts -> (N, D) embeddings, not normalised; an empty text may give zeros."""
    made = model.encode(
        list(texts), convert_to_numpy=True, normalize_embeddings=False, show_progress_bar=False
    )
    return np.asarray(made, dtype=np.float32)


def embedder_hash(folder: Path) -> str:
    """What a cosine must name to be compared with another: sha256 of weights or pointer."""
    return folder_hash(folder, without={RUN})
