"""The loss of SFT, from the answers' tokens alone and without (B, T, V) logits.

Different here: TRL's own fused head scores every position on a CPU, prompts and padding too. B
rows, T tokens, N tokens of answers, V vocabulary.
"""

import functools
import types
from typing import Any

from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from stages.rlhf.model.logprobs import token_scores
from stages.rlhf.model.quantized import shape_of
from stages.rlhf.model.sequences import decoder_of, head_of
from stages.rlhf.sizes import RECOMPUTED_FROM


def use_tiles(model: Any) -> None:
    """Give a causal language model, adapters or not, the head that SFTTrainer asks for.

    SFTTrainer calls it with `fused_lm_head` and reads FusedCausalLMOutput, from which it takes
    loss, entropy and mean_token_accuracy; without that, the model's forward is as before.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    whole = causal.forward

    @functools.wraps(type(causal).forward)
    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        **more: Any,
    ) -> Any:
        if not fused_lm_head or labels is None:
            return whole(*args, **more, **({} if labels is None else {"labels": labels}))
        states = decoder_of(self)(*args, **more).last_hidden_state[:, :-1]
        counts = labels[:, 1:] != -100  # (B, T - 1)
        head = head_of(self)
        found = token_scores(
            states[counts], head.weight, labels[:, 1:][counts], *head.settings(temperature=1.0)
        )
        logprobs, entropy, top1 = (
            values.new_zeros(counts.shape).masked_scatter(counts, values) for values in found
        )
        return FusedCausalLMOutput(
            log_probs=logprobs, entropy=entropy, is_top1=top1, label_mask=counts
        )

    causal.forward = types.MethodType(forward, causal)


def recomputes(model: Any) -> bool:
    """Whether activations are recomputed in the backward pass, which costs a third of the time.

    By the decoder's parameters without embeddings, not by the machine's memory: a run is the same
    everywhere.
    """
    embeddings = model.get_input_embeddings().weight.numel()
    found = sum(shape_of(p).numel() for p in decoder_of(model).parameters()) - embeddings
    return bool(found >= RECOMPUTED_FROM)
