"""Groups of ranked answers as ids and as tensors: training data of the reward model.

G groups, K answers per group, N answers in a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from stages.rlhf.chat import Codec
from stages.rlhf.records import RmRow
from stages.rlhf.reward.hard_negatives import LAST, HardNegative
from stages.rlhf.reward.losses import balance, better, rank_gap


@dataclass(frozen=True)
class EncodedGroup:
    """A question's answers as ids, their known order, and the row they come from."""

    prompt: list[int]
    answers: list[list[int]]  # those of the row, then the hard negative, if any
    pairs: Tensor  # (K, K) bool: answer i is known to be better than answer j
    gaps: Tensor  # (K, K) dense rank of answer j minus that of answer i
    best: int
    row: RmRow


def encode_groups(
    rows: Sequence[RmRow],
    codec: Codec,
    window: int,
    extras: Sequence[HardNegative | None] | None = None,
) -> list[EncodedGroup]:
    """Rows, some with hard negatives -> ids.

    Answers with the same ids form no pair. Raises ValueError naming a row that does not have 2 or
    more answers with a rank each, or has more tokens than the model's context window.
    """
    negatives = extras or [None] * len(rows)
    return [_encode(row, codec, window, extra) for row, extra in zip(rows, negatives, strict=True)]


def _encode(row: RmRow, codec: Codec, window: int, extra: HardNegative | None) -> EncodedGroup:
    count = len(row.answers)
    if count < 2 or len(row.ranks) != count:
        raise ValueError(
            f"row {row.id}: {count} answers with {len(row.ranks)} ranks;"
            " expected 2 or more answers with a rank each"
        )
    prompt, ranks = codec.prompt_ids(row.message), list(row.ranks)
    answers = [codec.response_ids(text) for text in row.answers]
    if extra is not None:
        answers.append(extra.response_ids(codec))
        ranks.append(max(ranks) + 1)
    longest = len(prompt) + max(map(len, answers))
    if longest > window:
        raise ValueError(
            f"row {row.id}: prompt and answer have {longest} tokens, more than the model's"
            f" window, max_position_embeddings ({window})"
        )
    present = torch.ones(1, len(answers), dtype=torch.bool)
    table = torch.tensor([ranks])
    pairs = better(table, present)[0]
    if extra is not None and extra.kind not in LAST:  # not comparable with the others
        known = table[0] <= ranks[extra.original]
        pairs[:, -1] &= known
    same = torch.tensor([[one == other for other in answers] for one in answers])
    return EncodedGroup(prompt, answers, pairs & ~same, rank_gap(table, present)[0], row.best, row)


def as_pairs(groups: Sequence[EncodedGroup]) -> list[EncodedGroup]:
    """Every pair as a group of two, the better answer first (the ablation rm.elements: pairs)."""
    first_wins = torch.tensor([[False, True], [False, False]])
    return [
        EncodedGroup(
            group.prompt,
            [group.answers[i], group.answers[j]],
            first_wins,
            group.gaps[i, j] * torch.tensor([[0.0, 1.0], [-1.0, 0.0]]),
            0,
            group.row,
        )
        for group in groups
        for i, j in group.pairs.nonzero().tolist()
    ]


@dataclass(frozen=True)
class GroupBatch:
    """G groups as tensors, padded to K answers; `present` is False on padding."""

    present: Tensor  # (G, K) bool
    pairs: Tensor  # (G, K, K) bool
    gaps: Tensor  # (G, K, K)
    lengths: Tensor  # (G, K) tokens, EOS included
    best_rows: Tensor  # (G,) index of each group's best answer among the N
    counts: Tensor  # (G,) multiplicity of each group in the bootstrap sample


def batch_groups(groups: Sequence[EncodedGroup], counts: Sequence[int], device: Any) -> GroupBatch:
    """G groups and their multiplicities -> tensors."""
    sizes = [len(g.answers) for g in groups]
    widest = max(sizes)

    def square(table: Tensor) -> Tensor:
        return pad(table, (0, widest - len(table)) * 2)

    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return GroupBatch(
        torch.tensor([[k < n for k in range(widest)] for n in sizes]).to(device),
        torch.stack([square(g.pairs) for g in groups]).to(device),
        torch.stack([square(g.gaps) for g in groups]).to(device),
        torch.tensor(
            [[len(a) for a in g.answers] + [0] * (widest - len(g.answers)) for g in groups],
            dtype=torch.float32,
        ).to(device),
        torch.tensor([s + g.best for s, g in zip(starts, groups, strict=True)]).to(device),
        torch.tensor(counts, dtype=torch.float32).to(device),
    )


def prompts_with_responses(
    groups: Sequence[EncodedGroup],
) -> list[tuple[list[int], list[list[int]]]]:
    """The prompts and answers of these groups, as input of `RewardModel`."""
    return [(group.prompt, group.answers) for group in groups]


def length_balance(groups: Sequence[EncodedGroup]) -> tuple[float, float]:
    """`losses.balance` over all pairs of a training set, each weighted 1 / pairs of its group."""
    longer = shorter = 0.0
    for group in groups:
        lengths = torch.tensor([len(a) for a in group.answers])
        gaps = (lengths[:, None] - lengths[None, :])[group.pairs]
        longer += int((gaps > 0).sum()) / max(1, len(gaps))
        shorter += int((gaps < 0).sum()) / max(1, len(gaps))
    return balance(longer, shorter)
