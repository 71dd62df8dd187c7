"""A SentenceTransformer as the hub has them, in a millisecond: the mean of its bytes' vectors."""

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers


def static_embedder(dimensions: int = 4) -> SentenceTransformer:
    """Random vectors for the 256 bytes, the same every time."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    weights = torch.randn(256, dimensions, generator=torch.Generator().manual_seed(0))
    return SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu"
    )
