"""What a run would take on GPUs that are not here: pure arithmetic, from a card's data sheet.

Seconds are the larger of arithmetic and memory traffic, each at a share of the data sheet's figure,
plus what the processes exchange. Every GPU has a process (`KOQA_PROCESSES`) with all weights, or,
where those do not fit, with a share of the layers', spread over the cards of its machine. What
gathering them costs is not counted.

N parameters of the layers, A of an adapter, V words, H hidden size, T tokens of a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from stages.rlhf.config.whole import Params
from stages.rlhf.plan.fits import PROCESS, SHARD, Fit, fit, needed
from stages.rlhf.plan.footprint import (
    GIB,
    Shape,
    linear_size,
    memory,
    shardable,
    spread,
    weight_size,
)
from stages.rlhf.sizes import RECOMPUTED_FROM

REACHED = {"arithmetic": 0.4, "traffic": 0.6, "links": 0.7}  # of the data sheet; aims, not measured
ANSWERS = 5  # of a ranked group


@dataclass(frozen=True)
class Card:
    """A data sheet: dense bfloat16, memory, and bandwidths in bytes a second and direction."""

    flops: float
    memory: float  # GiB
    traffic: float  # of its own memory
    link: float  # to another card of the machine
    network: float  # to another machine, per card


CARDS = {  # NVIDIA's data sheets, SXM; networks of 400 Gb/s per card (200 for A100)
    "a100": Card(312e12, 80.0, 2.04e12, 300e9, 25e9),
    "h100": Card(989e12, 79.6, 3.35e12, 450e9, 50e9),
    "h200": Card(989e12, 140.4, 4.8e12, 450e9, 50e9),
}


@dataclass(frozen=True)
class Cluster:
    """Cards of one kind, as many on each machine."""

    card: Card
    gpus: int  # on a machine
    hosts: int = 1

    @property
    def size(self) -> int:
        """All cards."""
        return self.gpus * self.hosts

    def exchange(self, sent: float) -> float:
        """Seconds of a ring all-reduce of so many bytes; between hosts by all cards' networks."""
        slowest = self.card.link
        if self.hosts > 1:
            slowest = min(slowest, self.gpus * self.card.network)
        return 2 * (self.size - 1) / self.size * sent / (slowest * REACHED["links"])


class Seconds(NamedTuple):
    """Of one optimiser step, or of one update of PPO, on every card at once."""

    arithmetic: float
    traffic: float
    links: float
    busy: float  # of arithmetic and traffic, which overlap within a phase, the longer one

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(("arithmetic", "traffic", "links"), key=lambda name: getattr(self, name))

    @property
    def total(self) -> float:
        """The exchange comes after the rest."""
        return self.busy + self.links

    def __add__(self, other: object) -> "Seconds":
        """One after the other."""
        assert isinstance(other, Seconds)
        return Seconds(*(one + two for one, two in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Passes:
    """Passes of one model over the tokens of one card."""

    shape: Shape
    cluster: Cluster
    size: float  # bytes of a weight
    r: int
    linear_size: float | None = None  # of a linear layer's weight; None: the same

    def forward(self, tokens: float, scored: float, row: float) -> float:
        """FLOPs of a forward: 2 N, attention, 2 V H for a scored token."""
        shape = self.shape
        products = tokens * 2.0 * shape.decoder + scored * 2.0 * shape.embedding
        return products + self.attention(tokens, row)

    def attention(self, tokens: float, row: float) -> float:
        """FLOPs of a forward's scores and sums, causal: over half of T."""
        return tokens * 2.0 * row * self.shape.heads * self.shape.head_dim * self.shape.layers

    def adapter(self, tokens: float) -> float:
        """FLOPs of a forward of the adapter alone: 2 A."""
        return tokens * 2.0 * self.shape.lora(self.r)

    def read(self, tokens: float, scored: float, row: float) -> Seconds:
        """A forward without gradients."""
        return self._seconds(self.forward(tokens, scored, row) + self.adapter(tokens), 0.0)

    def train(
        self, tokens: float, scored: float, row: float, full: bool = False, again: bool = False
    ) -> Seconds:
        """Forward and backward, and a sum of gradients over all cards.

        The backward takes a forward's FLOPs for the activations, twice attention's, and as many as
        a forward for the weights that learn: all of them, or an adapter's. `again`: the forward is
        run twice, to save memory.
        """
        attention = self.attention(tokens, row)
        flops = (self.forward(tokens, scored, row) - attention) * (2.0 + again + full)
        flops += attention * (3 + again) + self.adapter(tokens) * (0 if full else 3 + again)
        learned = self.shape.parameters if full else self.shape.lora(self.r)
        return self._seconds(flops, 0.0, self.cluster.exchange(4.0 * learned))

    def decode(self, rows: float, prompt: float, answer: float, batch: int) -> Seconds:
        """Answers, `batch` at once: a step of a batch reads all weights, and its cache so far."""
        shape, size = self.shape, self.size
        linear = shape.linear * (size if self.linear_size is None else self.linear_size)
        read = size * (shape.decoder - shape.linear + shape.embedding) + linear
        weights = ceil(rows / batch) * read
        cache = rows * (prompt + answer / 2) * self.shape.cache(self.size)
        flops = self.forward(rows * (prompt + answer), rows * answer, prompt + answer)
        return self._seconds(flops, answer * (weights + cache))

    def _seconds(self, flops: float, read: float, links: float = 0.0) -> Seconds:
        card = self.cluster.card
        arithmetic = flops / (card.flops * REACHED["arithmetic"])
        traffic = read / (card.traffic * REACHED["traffic"])
        return Seconds(arithmetic, traffic, links, max(arithmetic, traffic))


class Step(NamedTuple):
    """A stage's optimiser step, or an update of PPO: tokens on all cards, seconds of each."""

    tokens: float
    seconds: Seconds


def steps(shape: Shape, params: Params, cluster: Cluster) -> dict[str, Step]:
    """By stage; rows are as long as the model's caps allow, so the figures are the worst case."""
    model, ppo = params.base_model, params.ppo
    passes = Passes(shape, cluster, weight_size(model), model.lora.r, linear_size(model))
    room = params.rag.passage_tokens if params.rag.enabled else 0
    prompt, answer = float(model.max_prompt_tokens + room), float(model.max_answer_tokens)

    def step(rows: float, scored: float, full: bool = False, again: bool = False) -> Step:
        own, row = rows / cluster.size, prompt + scored
        return Step(rows * row, passes.train(own * row, own * scored, row, full, again))

    how = model.sft.method == "full", shape.decoder >= RECOMPUTED_FROM
    found = {"sft": step(model.sft.batch_size, answer, *how)}
    for stage, settings in {"rm": model.rm, "judge": model.judge}.items():
        found[stage] = step(settings.batch_size, ANSWERS * answer)  # packed behind one prompt
    size = model.ppo.batch_size
    own, row, trained = size / cluster.size, prompt + answer, 2 if ppo.advantage == "gae" else 1
    update = passes.decode(own, prompt, answer, model.generate.batch_size)
    for _ in range(1 + trained + params.rm.members):  # reference; policy, value; reward model
        update += passes.read(own * row, own * answer, row)
    once = own / model.ppo.minibatches
    learn = passes.train(once * row, once * answer, row)
    if trained == 2:
        learn += passes.train(once * row, 0, row)  # a value needs no word's probability
    for _ in range(ppo.epochs * model.ppo.minibatches):
        update += learn
    return found | {"ppo": Step(size * row, update)}


def report(shape: Shape, params: Params, cluster: Cluster, card: str) -> str:
    """A line per stage: GiB on a card by purpose, tokens a second of all, what bounds it."""
    size, found = weight_size(params.base_model), steps(shape, params, cluster)
    needs = {k: v for k, v in memory(shape, params, "cuda", cluster.size).items() if k in found}
    kinds = list(dict.fromkeys(kind for parts in needs.values() for kind in parts))
    machines = f"{cluster.hosts} machines of {cluster.gpus}" if cluster.hosts > 1 else cluster.gpus
    lines = [f"{params.model} on {machines} x {card}, {cluster.card.memory:.0f} GiB each"]
    header = [*kinds, "all", "sharded", "tokens/s", "bound by", "links"]
    lines.append(f"{'GiB':10}" + "".join(f"{kind:>13}" for kind in header))
    for stage, parts in needs.items():
        step, least = found[stage], "–"
        if cluster.gpus > 1 and shardable(params):
            least = f"{needed(spread(parts, shape, size, cluster.gpus), PROCESS['cuda']):.1f}"
        cells = [f"{parts[kind] / GIB:.1f}" if kind in parts else "–" for kind in kinds]
        cells += [f"{needed(parts, PROCESS['cuda']):.1f}", least]
        cells += [f"{step.tokens / step.seconds.total:,.0f}", step.seconds.bound]
        cells += [f"{step.seconds.links / step.seconds.total:.1%}"]
        lines.append(f"{stage:10}" + "".join(f"{cell:>13}" for cell in cells))
    those = cluster.card.memory, cluster.size, cluster.gpus
    fits = {stage: fit(stage, shape, params, *those) for stage in needs}
    shares = ", ".join(f"{share:.0%} of its {name}" for name, share in REACHED.items())
    lines.append(
        f"{verdict(fits)} From the data sheet, at {shares}; rows as long as the caps allow."
    )
    return "\n".join(lines)


def verdict(fits: Mapping[str, Fit]) -> str:
    """Which stages fit with all weights on every card, which with a share, and which do not."""
    sharded = ", ".join(stage for stage, found in fits.items() if found.how == SHARD)
    unfit = ", ".join(stage for stage, found in fits.items() if found.problem)
    if not sharded and not unfit:
        return "All fit."
    kinds = {"Fit sharded": sharded, "Do not fit": unfit}
    return " ".join(f"{kind}: {names}." for kind, names in kinds.items() if names)
