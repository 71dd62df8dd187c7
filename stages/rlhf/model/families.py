"""Whether a decoder is one whose numbers this library computes rightly.

Different here: no list of supported families decides it. Log-probabilities come from hidden states
and the LM head, without the model's own forward, in padded rows, and decoding keeps a KV cache of
left-padded ones. All of that is compared with the model's own logits on a few tokens whenever a
model is loaded, so that a family nobody tried, or a setting nobody met, is refused by name instead
of being trained on wrong numbers. What came of it for each family of transformers: README.md.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, DynamicCache

from stages.rlhf.model.sequences import decoder_of, next_logits

_LENGTH = 6  # tokens of the probe
# Root mean square of the differences allowed, over the standard deviation of the logits: what a
# dtype rounds in the LM head, and in all layers. What is computed wrongly is off by .1, and by .7.
ROUNDING = {torch.float32: (1e-3, 1e-3), torch.bfloat16: (0.02, 0.2)}


def check_config(folder: Path) -> None:
    """Refuse a model by its config.json alone, before its weights are read.

    Raises ValueError, in one sentence, naming the file and the family, for an architecture that
    transformers does not have, that needs code of its own, or that is no decoder of text.
    """
    file = folder / "config.json"
    plain = json.loads(file.read_text(encoding="utf-8"))
    family = plain.get("model_type")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        named = ", ".join(sorted({str(name) for name in plain.get("auto_map", {}).values()}))
        code = f"; the custom code that auto_map names ({named}) is never run" if named else ""
        raise ValueError(
            f"{file}: model_type is {family!r}; expected an architecture of transformers{code}"
        ) from error
    if reason := refusal(config):
        raise ValueError(f"{file}: model_type {family!r} {reason}")


def refusal(config: Any) -> str | None:
    """Why no model of this config can be used, as the end of a sentence; None if it may be."""
    if any(part.startswith(("text_", "vision_", "audio_")) for part in config.sub_configs):
        return "also reads images or sounds; expected a model of text alone"
    if config.is_encoder_decoder:
        return "has an encoder; expected a decoder alone"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "has no causal language model; expected a decoder"
    made = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    kinds = {*(getattr(config, "layer_types", None) or [])}
    if made._is_stateful or any("attention" not in kind or "linear" in kind for kind in kinds):
        return "keeps a recurrent state, which padding changes; expected attention in every layer"
    return None


@torch.no_grad()
def check_model(model: Any) -> None:
    """Compare what this library computes with the model's own logits, on a few tokens.

    Raises ValueError naming the family, and by how much it is off.
    """
    name = f"model_type {model.config.model_type!r}"
    ids = probe_ids(model)
    own = model(input_ids=ids, use_cache=False).logits[0].float()
    in_head, in_all = ROUNDING[model.dtype]
    for claim, compute, most in (
        ("the LM head's product, scaled and soft-capped as the config says", _head, in_head),
        ("the same whatever stands after a token", _right_padded, in_all),
        ("those of a KV cache of left-padded rows", _decoded, in_all),
    ):
        try:
            steps, found = compute(model, ids)
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{name}: its logits must be {claim}, but: {cause}") from error
        off = ((found - own[steps]).square().mean().sqrt() / own.std()).item()
        if not off <= most:
            raise ValueError(
                f"{name}: its logits must be {claim}; they differ by {off:.2g} standard"
                f" deviations, expected at most {most}"
            )


def _pad_id(model: Any) -> int:
    return getattr(model.config, "pad_token_id", None) or 0


def probe_ids(model: Any) -> Tensor:
    """(1, _LENGTH) distinct ids all over the vocabulary, none of them padding."""
    rows, pad = model.get_input_embeddings().weight.shape[0], _pad_id(model)
    spread = [(2 * k + 1) * rows // (2 * _LENGTH) for k in range(_LENGTH)]
    chosen = [i + 1 if i == pad else i for i in spread]
    return torch.tensor([chosen], device=model.device)


def _head(model: Any, ids: Tensor) -> tuple[list[int], Tensor]:
    """Our logits of the model's states, at every step. Raises ValueError for states of a width
    that is not hidden_size, for which the heads of reward and value models are made.
    """
    states = decoder_of(model)(input_ids=ids, use_cache=False).last_hidden_state
    if states.shape[-1] != model.config.hidden_size:
        raise ValueError(
            f"its states have {states.shape[-1]} features, hidden_size is"
            f" {model.config.hidden_size}"
        )
    return list(range(_LENGTH)), next_logits(model, states[0])


def _right_padded(model: Any, ids: Tensor) -> tuple[list[int], Tensor]:
    """Of the first half, with padding in place of the rest, next to another row."""
    half = _LENGTH // 2
    rows = torch.cat([ids, ids.flip(-1)])
    rows[0, half:] = _pad_id(model)
    mask = torch.ones_like(rows, dtype=torch.bool)
    mask[0, half:] = False
    states = decoder_of(model)(
        input_ids=rows, attention_mask=mask, use_cache=False
    ).last_hidden_state
    return list(range(half)), next_logits(model, states[0, :half])


def _decoded(model: Any, ids: Tensor) -> tuple[list[int], Tensor]:
    """As `generation.generate` does: a short row next to a longer one, which then leaves the cache.

    Of the short row's last token, and of one more.
    """
    short, longer = ids[:, :-2], ids.flip(-1)
    padding = torch.full_like(ids[:, :2], _pad_id(model))
    rows = torch.cat([torch.cat([padding, short], 1), longer])
    mask = torch.ones_like(rows, dtype=torch.bool)
    mask[0, :2] = False
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    decoder = decoder_of(model)

    def states(rows: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        out = decoder(
            input_ids=rows,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        last: Tensor = out.last_hidden_state[:1, -1]
        return last

    found = [states(rows, mask, positions)]
    cache.batch_select_indices(torch.tensor([0], device=ids.device))
    mask = torch.cat([mask[:1], mask[1:, :1]], 1)
    found.append(states(ids[:, -2:-1], mask, positions[:1, -1:] + 1))
    return [_LENGTH - 3, _LENGTH - 2], next_logits(model, torch.cat(found))
