"""A question with its K ranked answers as one row, so that the prompt is encoded once.

    [prompt][answer 1][answer 2]...[answer K]

An answer attends the prompt and itself, and its positions go on from the prompt's, so every number
is what the answer's own row would have given. Only the decoders below take a mask made elsewhere.

G questions, T tokens of the longest row, B answers of all questions, R response tokens, H hidden
size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.rlhf.model.sequences import decoder_of, logprobs_of
from stages.rlhf.precision import SDPA_FLOAT32

ONE_MASK, MASK_PER_LAYER_TYPE = {"llama"}, {"gemma2"}  # config.model_type; tests/test_packing.py
ATTENTIONS = {"eager", "sdpa", SDPA_FLOAT32}  # flash and flex attention take no (T, T) mask
MAX_ROW = 4096  # tokens; a row's mask is T x T: 64 MiB in float32


@dataclass(frozen=True)
class PackedGroups:
    """G questions with their B answers, padded on the right; places are in the (G * T) tokens."""

    ids: Tensor  # (G, T)
    positions: Tensor  # (G, T) each answer's go on from the prompt's last
    owner: Tensor  # (G, T) 0 = prompt, k = answer k of its question, -1 = padding
    response: Tensor  # (B, R) ids
    response_mask: Tensor  # (B, R) bool
    predicts: Tensor  # (B, R) place of the state that predicts each response token
    last: Tensor  # (B,) place of the answer's last token


def pack(
    prompts: list[list[int]], answers: list[list[list[int]]], pad_id: int, device: Any = "cpu"
) -> PackedGroups:
    """G prompts and the answers of each -> one padded batch; the B answers in the given order.

    Raises ValueError naming a prompt or an answer without tokens, or a prompt without answers.
    """
    for g, (prompt, given) in enumerate(zip(prompts, answers, strict=True)):
        if not prompt:
            raise ValueError(f"prompt {g} has 0 tokens; expected >= 1")
        if not given:
            raise ValueError(f"prompt {g} has 0 answers; expected >= 1")
        for k, answer in enumerate(given):
            if not answer:
                raise ValueError(f"answer {k} of prompt {g} has 0 tokens; expected >= 1")
    width = max(row_length(p, a) for p, a in zip(prompts, answers, strict=True))
    longest = max(len(answer) for given in answers for answer in given)
    ids, positions, owner, response, counts, predicts, last = [], [], [], [], [], [], []
    for g, (prompt, given) in enumerate(zip(prompts, answers, strict=True)):
        row, steps, owners = list(prompt), list(range(len(prompt))), [0] * len(prompt)
        for k, answer in enumerate(given):
            start = g * width + len(row)
            # the prompt's last state says the first token, the answer's own states the others
            said_by = [g * width + len(prompt) - 1, *range(start, start + len(answer) - 1)]
            padding = longest - len(answer)
            response.append(answer + [pad_id] * padding)
            counts.append(len(answer))
            predicts.append(said_by + [0] * padding)
            last.append(start + len(answer) - 1)
            row += answer
            steps += range(len(prompt), len(prompt) + len(answer))
            owners += [k + 1] * len(answer)
        padding = width - len(row)
        ids.append(row + [pad_id] * padding)
        positions.append(steps + [0] * padding)
        owner.append(owners + [-1] * padding)
    mask = torch.arange(longest)[None] < torch.tensor(counts)[:, None]
    tensors = (torch.tensor(rows) for rows in (ids, positions, owner, response))
    places = (torch.tensor(rows) for rows in (predicts, last))
    return PackedGroups(*(t.to(device) for t in (*tensors, mask, *places)))


def visible(groups: PackedGroups, window: int | None = None) -> Tensor:
    """(G, T, T) bool: which keys (last) a query sees: the prompt and its own answer, up to itself.

    `window` counts the tokens of a row with this answer alone. Padding sees the prompt and padding,
    so that no query sees nothing.
    """
    owner, positions = groups.owner, groups.positions
    seen = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
    seen = seen & torch.ones(seen.shape[1:], dtype=torch.bool, device=seen.device).tril()
    if window is not None:
        seen = seen & (positions[:, :, None] - positions[:, None, :] < window)
    return seen


def can_pack(model: Any) -> bool:
    """Whether this model's decoder and attention take the mask that a packed row needs."""
    config = model.config
    known = config.model_type in ONE_MASK | MASK_PER_LAYER_TYPE
    return known and config._attn_implementation in ATTENTIONS


def worth_packing(prompt: list[int], answers: list[list[int]], hidden_size: int) -> bool:
    """Whether one row costs less than K rows of prompt and answer, padded to the longest.

    Per token and layer, the linear layers take about 12 H^2 multiplications and attention 2 H T,
    so a row costs T (1 + T / 6 H). Long answers to a short prompt are better left apart.
    """
    packed = row_length(prompt, answers)
    alone = len(prompt) + max(map(len, answers))
    apart = len(answers) * alone * (1 + alone / (6 * hidden_size))
    return packed <= MAX_ROW and packed * (1 + packed / (6 * hidden_size)) < apart


def row_length(prompt: list[int], answers: list[list[int]]) -> int:
    """Tokens of a question's packed row."""
    return len(prompt) + sum(map(len, answers))


def by_length(lengths: list[int], tokens: int) -> list[list[int]]:
    """Rows of like length together: parts of at most `tokens` tokens, padding counted.

    A row above `tokens` is a part of its own.
    """
    parts: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if parts and (len(parts[-1]) + 1) * lengths[parts[-1][0]] <= tokens:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts


def packed_states(model: Any, groups: PackedGroups) -> Tensor:
    """(G * T, H): the decoder's last states; the head is not computed. Needs `can_pack(model)`."""
    decoder = decoder_of(model)

    def additive(window: int | None = None) -> Tensor:
        """(G, 1, T, T): eager adds its mask, and sdpa would make a bool one so at each layer."""
        seen = visible(groups, window)[:, None]
        hide = torch.finfo(decoder.dtype).min
        return torch.zeros(seen.shape, dtype=decoder.dtype, device=seen.device).masked_fill_(
            ~seen, hide
        )

    mask: Any = additive()
    if decoder.config.model_type in MASK_PER_LAYER_TYPE:
        window = decoder.config.sliding_window
        mask = {"full_attention": mask, "sliding_attention": additive(window)}
    states: Tensor = decoder(
        input_ids=groups.ids, attention_mask=mask, position_ids=groups.positions, use_cache=False
    ).last_hidden_state
    return states.flatten(0, 1)


def last_states(hidden: Tensor, groups: PackedGroups) -> Tensor:
    """(G * T, H) -> (B, H): the state at each answer's last token."""
    return hidden[groups.last]


def answer_states(hidden: Tensor, groups: PackedGroups) -> Tensor:
    """(G * T, H) -> (N, H): the states at the N tokens of all answers, answer by answer."""
    mask = groups.response_mask
    first = groups.last - (mask.sum(-1) - 1)
    return hidden[(first[:, None] + torch.arange(mask.shape[1], device=mask.device))[mask]]


def answer_logprobs(
    model: Any, hidden: Tensor, groups: PackedGroups, answers: Any = slice(None)
) -> Tensor:
    """(G * T, H) -> (B, R) fp32 log-probabilities of the answers' tokens; 0 on padding.

    `answers` are the ones wanted, all unless given: of B or fewer.
    """
    mask = groups.response_mask[answers]
    states = hidden[groups.predicts[answers][mask]]
    return logprobs_of(model, states, groups.response[answers][mask], mask)
