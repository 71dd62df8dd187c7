"""Packing: a prompt with its K responses in one row, so that the prompt is encoded once.

    [prompt][response 1][response 2]...[response K]

A response attends to the prompt and itself, and its positions continue the prompt's, so results
equal those of a row per response. Only the decoders below accept a custom mask.

G prompts, T tokens of the longest row, B responses in all, R response tokens, H hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.rlhf.model.sequences import decoder_of, logprobs_of
from stages.rlhf.precision import SDPA_FLOAT32

# config.model_type of decoders that take the mask of a packed row as it is given: one for all
# layers, one narrowed to the sliding window, or one for each kind of layer; the rest: README.md
ONE_MASK = {
    *("apertus", "arcee", "aria_text", "axk1", "bert-generation", "biogpt", "bitnet", "codegen"),
    *("cohere", "ctrl", "dbrx", "deepseek_v2", "deepseek_v3", "diffllama", "ernie4_5"),
    *("ernie4_5_moe", "flex_olmo", "gemma", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "gpt2"),
    *("gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "gptj", "granite", "granitemoe"),
    *("granitemoeshared", "helium", "hrm_text", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3"),
    *("hyperclovax", "internlm3", "iquestcoder", "jais2", "jetmoe", "llama", "longcat_flash"),
    *("minicpm3", "minimax_m2", "nanochat", "nemotron", "olmo", "olmo2", "olmoe", "opt"),
    *("persimmon", "phi", "qwen3_moe", "seed_oss", "solar_open", "stablelm", "xglm", "youtu"),
}
ONE_WINDOW = {"ministral3", "mistral", "mixtral", "phi3", "phimoe", "starcoder2"}
MASK_PER_LAYER_TYPE = {
    *("afmoe", "beam", "cohere2", "cohere2_moe", "cohere_compass_text", "cwm", "dots1"),
    *("exaone4", "exaone_moe", "flint", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text"),
    *("gemma4_unified_text", "gpt_oss", "granite_swa", "granitemoe_swa", "kolibri1", "laguna"),
    *("mellum", "mimo_v2_flash", "ministral", "olmo3", "qwen2", "qwen2_moe", "qwen3", "smollm3"),
    *("vaultgemma",),
}
LAYER_TYPES = {"full_attention", "sliding_attention"}
ATTENTIONS = {"eager", "sdpa", SDPA_FLOAT32}  # flash and flex attention accept no (T, T) mask
MAX_ROW = 4096  # tokens; a row's mask is T x T: 64 MiB in float32


@dataclass(frozen=True)
class PackedGroups:
    """G prompts with their B responses, right-padded; indices are into the (G * T) tokens."""

    ids: Tensor  # (G, T)
    positions: Tensor  # (G, T) each response's continue from the prompt's last
    owner: Tensor  # (G, T) 0 = prompt, k = response k of the prompt, -1 = padding
    response: Tensor  # (B, R) ids
    response_mask: Tensor  # (B, R) bool
    predicts: Tensor  # (B, R) index of the state that predicts each response token
    last: Tensor  # (B,) index of the response's last token


def pack(
    prompts: list[list[int]], responses: list[list[list[int]]], pad_id: int, device: Any = "cpu"
) -> PackedGroups:
    """G prompts and the responses to each -> one padded batch; the B responses stay in order.

    Raises ValueError naming a prompt or a response without tokens, or a prompt without responses.
    """
    for g, (prompt, own) in enumerate(zip(prompts, responses, strict=True)):
        if not prompt:
            raise ValueError(f"prompt {g} has 0 tokens; expected >= 1")
        if not own:
            raise ValueError(f"prompt {g} has 0 responses; expected >= 1")
        for k, tokens in enumerate(own):
            if not tokens:
                raise ValueError(f"response {k} of prompt {g} has 0 tokens; expected >= 1")
    width = max(row_length(p, r) for p, r in zip(prompts, responses, strict=True))
    longest = max(len(tokens) for own in responses for tokens in own)
    ids, positions, owner, response, counts, predicts, last = [], [], [], [], [], [], []
    for g, (prompt, own) in enumerate(zip(prompts, responses, strict=True)):
        row, steps, owners = list(prompt), list(range(len(prompt))), [0] * len(prompt)
        for k, tokens in enumerate(own):
            start = g * width + len(row)
            # the prompt's last state predicts the first token, the response's states the others
            predictors = [g * width + len(prompt) - 1, *range(start, start + len(tokens) - 1)]
            padding = longest - len(tokens)
            response.append(tokens + [pad_id] * padding)
            counts.append(len(tokens))
            predicts.append(predictors + [0] * padding)
            last.append(start + len(tokens) - 1)
            row += tokens
            steps += range(len(prompt), len(prompt) + len(tokens))
            owners += [k + 1] * len(tokens)
        padding = width - len(row)
        ids.append(row + [pad_id] * padding)
        positions.append(steps + [0] * padding)
        owner.append(owners + [-1] * padding)
    mask = torch.arange(longest)[None] < torch.tensor(counts)[:, None]
    tensors = (torch.tensor(rows) for rows in (ids, positions, owner, response))
    indices = (torch.tensor(rows) for rows in (predicts, last))
    return PackedGroups(*(t.to(device) for t in (*tensors, mask, *indices)))


def visible(groups: PackedGroups, window: int | None = None) -> Tensor:
    """(G, T, T) bool, keys last: a query sees the prompt and its own response, up to itself.

    `window`: sliding window, by position in a row with this response only. Padding sees the prompt
    and padding, so that no query attends to nothing.
    """
    owner, positions = groups.owner, groups.positions
    seen = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
    seen = seen & torch.ones(seen.shape[1:], dtype=torch.bool, device=seen.device).tril()
    if window is not None:
        seen = seen & (positions[:, :, None] - positions[:, None, :] < window)
    return seen


def can_pack(model: Any) -> bool:
    """Whether this model's decoder and attention accept the mask of a packed row."""
    config = model.config
    known = config.model_type in ONE_MASK | ONE_WINDOW or (
        config.model_type in MASK_PER_LAYER_TYPE and {*config.layer_types} <= LAYER_TYPES
    )
    return known and config._attn_implementation in ATTENTIONS


def worth_packing(prompt: list[int], responses: list[list[int]], hidden_size: int) -> bool:
    """Whether one row costs less than K rows of prompt and response, padded to the longest.

    Per token and layer, linear layers take about 12 H^2 multiplications and attention 2 H T, so a
    row costs T (1 + T / 6 H). Long responses to a short prompt are cheaper unpacked.
    """
    packed = row_length(prompt, responses)
    single = len(prompt) + max(map(len, responses))
    unpacked = len(responses) * single * (1 + single / (6 * hidden_size))
    return packed <= MAX_ROW and packed * (1 + packed / (6 * hidden_size)) < unpacked


def row_length(prompt: list[int], responses: list[list[int]]) -> int:
    """Tokens in the packed row."""
    return len(prompt) + sum(map(len, responses))


def by_length(lengths: list[int], tokens: int) -> list[list[int]]:
    """Batches of rows of similar length, each at most `tokens` tokens including padding.

    A row longer than `tokens` is a batch of its own.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def packed_states(model: Any, groups: PackedGroups) -> Tensor:
    """(G * T, H) last hidden states, without the LM head. Requires `can_pack(model)`."""
    decoder = decoder_of(model)

    def additive(window: int | None = None) -> Tensor:
        """(G, 1, T, T): eager adds its mask, and sdpa would convert a bool one in each layer."""
        seen = visible(groups, window)[:, None]
        hide = torch.finfo(decoder.dtype).min
        return torch.zeros(seen.shape, dtype=decoder.dtype, device=seen.device).masked_fill_(
            ~seen, hide
        )

    config = decoder.config
    mask: Any
    if config.model_type in MASK_PER_LAYER_TYPE:
        windows = {"full_attention": None, "sliding_attention": config.sliding_window}
        mask = {kind: additive(windows[kind]) for kind in {*config.layer_types}}
    else:
        mask = additive(config.sliding_window if config.model_type in ONE_WINDOW else None)
    states: Tensor = decoder(
        input_ids=groups.ids, attention_mask=mask, position_ids=groups.positions, use_cache=False
    ).last_hidden_state
    return states.flatten(0, 1)


def last_states(hidden: Tensor, groups: PackedGroups) -> Tensor:
    """(G * T, H) -> (B, H): the state at each response's last token."""
    return hidden[groups.last]


def packed_response_states(hidden: Tensor, groups: PackedGroups) -> Tensor:
    """(G * T, H) -> (N, H): the states at the N tokens of all responses, row by row."""
    mask = groups.response_mask
    first = groups.last - (mask.sum(-1) - 1)
    return hidden[(first[:, None] + torch.arange(mask.shape[1], device=mask.device))[mask]]


def packed_response_logprobs(
    model: Any, hidden: Tensor, groups: PackedGroups, rows: Any = slice(None)
) -> Tensor:
    """(G * T, H) -> (B, R) fp32 log-probabilities of the responses' tokens; 0 on padding.

    `rows`: indices of the responses wanted; all by default.
    """
    mask = groups.response_mask[rows]
    states = hidden[groups.predicts[rows][mask]]
    return logprobs_of(model, states, groups.response[rows][mask], mask)
