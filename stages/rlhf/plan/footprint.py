"""Estimates of each stage's memory: pure arithmetic.

From a model's shape and its settings. Activations are counted per token and layer of a Llama with
LoRA on every linear layer; tests/plan/test_footprint.py compares with measured peaks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.rlhf.config.models import Architecture
from stages.rlhf.config.whole import Model, Params
from stages.rlhf.sizes import LOGITS_TILE, RECOMPUTED_FROM, SCORING_TOKENS

GIB = 2**30
# Values per token and layer, in multiples of the widths, at the peak of a forward and a backward
# pass, temporaries included. Fitted to peaks of a CPU process.
WORKED = {"hidden": 20, "keys": 4, "intermediate": 4}
WORKED_BESIDES = 2500  # independent of the widths: masks, statistics, low-rank products
# Bytes of a 4-bit weight: an 8-bit scale for 64 of them, a float32 scale for 256 of those.
NF4_SIZE = 0.5 + 1 / 64 + 4 / (64 * 256)
DECODED_COPIES = 4  # of [B, V] while a token is sampled: logits, probabilities, float64 sums

Bytes = dict[str, float]  # by purpose


@dataclass(frozen=True)
class Shape:
    """The shape of a decoder-only model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    norms: int = 2  # per layer; Gemma-2 has four

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape":
        """From a transformers config.json. Raises ValueError naming missing keys."""
        needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        lost = [key for key in (*needed, "vocab_size") if key not in config]
        if lost:
            kind = config.get("model_type", "no model_type")
            raise ValueError(f"config.json ({kind}): no {', '.join(lost)}, which the plan needs")
        heads = config["num_attention_heads"]
        return cls(
            config["hidden_size"],
            config["intermediate_size"],
            config["num_hidden_layers"],
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or config["hidden_size"] // heads,
            config["vocab_size"],
            config.get("tie_word_embeddings", config.get("model_type") == "gemma2"),
            4 if config.get("model_type") == "gemma2" else 2,
        )

    @classmethod
    def made(cls, architecture: Architecture) -> "Shape":
        """The shape of a Llama trained by stage base."""
        return cls(
            architecture.hidden_size,
            architecture.intermediate_size,
            architecture.layers,
            architecture.heads,
            architecture.heads,
            architecture.hidden_size // architecture.heads,
            architecture.vocab_size,
            tied=True,
        )

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's linear modules."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        wide = (self.hidden, self.intermediate)
        return [
            (self.hidden, queries),
            (self.hidden, keys),
            (self.hidden, keys),
            (queries, self.hidden),
            wide,
            wide,
            (self.intermediate, self.hidden),
        ]

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding."""
        return self.vocab * self.hidden

    @property
    def decoder(self) -> int:
        """Parameters of the layers and the last norm: all but embedding and head."""
        layer = sum(i * o for i, o in self.linears) + self.norms * self.hidden
        return self.layers * layer + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters; a tied head counts once."""
        return self.embedding * (1 if self.tied else 2) + self.decoder

    @property
    def linear(self) -> int:
        """Parameters of the layers' linear modules."""
        return self.layers * sum(i * o for i, o in self.linears)

    def stored(self, size: float, linear_size: float) -> float:
        """Bytes of all weights; those of `linears` have a size of their own."""
        return size * (self.parameters - self.linear) + linear_size * self.linear

    def lora(self, r: int) -> int:
        """Parameters of one adapter."""
        return self.layers * sum(r * (i + o) for i, o in self.linears)

    def worked(self, size: float, recomputed: bool = False) -> float:
        """Bytes per token at the peak of a forward and a backward pass.

        `recomputed`: of one layer at a time, and of the others their inputs alone.
        """
        keys = self.kv_heads * self.head_dim
        widths = {"hidden": self.hidden, "keys": keys, "intermediate": self.intermediate}
        layer = sum(times * widths[name] for name, times in WORKED.items()) + WORKED_BESIDES
        return size * (layer + self.layers * self.hidden if recomputed else self.layers * layer)

    def cache(self, size: float) -> float:
        """Bytes of a token in the KV cache."""
        return 2 * size * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Work:
    """Amount of data: rows, and tokens per prompt and answer."""

    sft: int
    groups: int
    judge_groups: int
    prompts: int  # of the gate
    test: int
    validation: int  # of SFT
    held_groups: int  # that choose the reward model's epoch
    answers: int  # per group
    prompt: float
    answer: float
    longest: float  # answer of a batch that is decoded together


def weight_size(model: Model) -> int:
    """Bytes per weight that is not in 4 bits, and per activation."""
    return 2 if model.dtype in ("bfloat16", "nf4") else 4


def linear_size(model: Model) -> float:
    """Bytes per weight of the layers' linear modules."""
    return NF4_SIZE if model.dtype == "nf4" else weight_size(model)


def trained(numbers: float) -> float:
    """Bytes of gradients and Adam's two moments, all float32."""
    return 12.0 * numbers


def shardable(params: Params) -> bool:
    """Whether the cards of a machine can share the layers' weights.

    What SFT trains stays whole, and so do 4-bit weights.
    """
    return params.base_model.sft.method == "lora" and params.base_model.dtype != "nf4"


def spread(parts: Bytes, shape: Shape, size: float, cards: int) -> Bytes:
    """A stage's bytes on each of the cards that share the layers' weights, `size` bytes each.

    Embeddings and head stay whole; two layers at a time are gathered.
    """
    layers = size * shape.decoder
    own = layers / cards + 2 * layers / shape.layers
    return {**parts, "weights": parts["weights"] - layers + own}


def memory(shape: Shape, params: Params, device: str, processes: int = 1) -> dict[str, Bytes]:
    """Peak bytes of each stage that loads a model, by purpose, of one of so many processes.

    As if a stage decoded and trained at once.
    """
    model, size = params.base_model, weight_size(params.base_model)
    adapter = shape.lora(model.lora.r)
    room = params.rag.passage_tokens if params.rag.enabled else 0
    row = model.max_prompt_tokens + room + model.max_answer_tokens
    worked, weights = shape.worked(size), shape.stored(size, linear_size(model))
    rows, columns = LOGITS_TILE.get(device, LOGITS_TILE["cuda"])
    tile = 3.0 * 4 * rows * columns
    sft_adapters = 1 if model.sft.method == "lora" else 0

    def decoding(batch: int) -> float:
        return batch * (row * shape.cache(size) + DECODED_COPIES * 4 * shape.vocab)

    sft_tokens = model.sft.micro_batch_size * row
    whole = model.sft.method == "full"
    learned = shape.parameters if whole else adapter
    buckets = 4.0 * learned if processes > 1 else 0.0  # DDP's copy of the gradients
    recomputed = shape.decoder >= RECOMPUTED_FROM
    found: dict[str, Bytes] = {
        "sft": {
            "weights": weights,
            "training": trained(learned) + buckets,
            "adapters": 0.0 if whole else 4.0 * adapter,
            "activations": sft_tokens * shape.worked(size, recomputed),
            "tile": tile + (4.0 * shape.embedding if whole else 0.0),  # the head's gradient
            "decoding": decoding(model.generate.batch_size),  # of its answers to validation
        }
    }
    adapters = {"rm": params.rm.members + sft_adapters, "judge": 1}
    for stage, settings in {"rm": model.rm, "judge": model.judge}.items():
        found[stage] = {
            "weights": weights,
            "adapters": 4.0 * adapter * adapters[stage],
            "training": trained(adapter),
            "activations": max(settings.micro_batch_tokens, row) * worked,
            "tile": tile,
        }
    found["rm"]["decoding"] = decoding(model.generate.batch_size)  # for the scale of its scores
    found["gate"] = {
        "weights": weights * (2 if whole else 1),  # SFT, and the base model for the judge
        "adapters": 4.0 * adapter * (1 + params.rm.members + sft_adapters),
        "activations": 6.0 * SCORING_TOKENS * shape.hidden * size,
        "decoding": decoding(model.generate.batch_size),
    }
    ppo, own = model.ppo, 2 if params.ppo.advantage == "gae" else 1  # policy, value model
    found["ppo"] = {
        "weights": weights * (2 if whole else 1),  # SFT, and the base model for the judge
        "adapters": 4.0 * adapter * (1 + own + params.rm.members + sft_adapters),
        "training": trained(own * adapter),
        "activations": max(ppo.micro_batch_tokens, row) * worked,
        "tile": tile,
        "decoding": decoding(min(ppo.batch_size, model.generate.batch_size)),
    }
    found["evaluate"] = {
        "weights": weights * (2 if whole else 1),
        "adapters": 4.0 * adapter * (2 + params.rm.members + sft_adapters),
        "activations": 6.0 * SCORING_TOKENS * shape.hidden * size,
        "decoding": decoding(model.generate.batch_size),
    }
    return found
