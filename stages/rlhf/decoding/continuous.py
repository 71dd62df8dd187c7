"""Decoding by transformers' continuous batching, for entries whose `generate.engine` asks for it.

A row that is done makes room for another at once, and keys and values are in pages: meant for
flash-attn, and answers that differ much in length. Different from this library's own decoding:
tokens are sampled by a generator for the whole call, so that a response depends on the
others; the same call gives the same responses. And because another forward samples than the one
that trains, each call compares the two on some of its rows. B rows, R response tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.utils import is_flash_attn_2_available

from stages.rlhf.chat import Codec
from stages.rlhf.model.sequences import collate, decoder_of, hidden_states, response_logprobs
from stages.rlhf.runs.sharding import is_sharded
from stages.rlhf.runtime import derive_seed

PAGE = 256  # tokens, as flash-attn wants them
LEAST_TOKENS = 1024  # of a pass, so that several prompts are read by one
CHECKED = 8  # rows of a call whose log-probabilities are compared
# Root mean square of the differences allowed between the engine's and the trainer's, by dtype.
# Rounding came to 5e-7 and .008 on twins.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}


def generate(
    model: Any,
    prompts: list[list[int]],
    codec: Codec,
    max_new_tokens: int,
    rows: int,
    temperature: float = 0.0,
    uniforms: Tensor | None = None,
) -> list[list[int]]:
    """Prompt ids -> response ids, at most `rows` at once; the uniforms (B, R) give the seed.

    Raises ValueError for a model that the engine would compute wrongly, or where it fails.
    """
    if not prompts:
        return []
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=codec.eos_id,
        pad_token_id=codec.pad_id,
        **({"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}),
    )
    pages = -(-(max(map(len, prompts)) + max_new_tokens) // PAGE)
    batching = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=rows * pages,
        max_batch_tokens=max(rows, LEAST_TOKENS),
        max_requests_per_batch=rows,
        return_logprobs=True,
        seed=0 if uniforms is None else derive_seed("engine", *uniforms[:, 0].tolist()),
        auto_switch_to_flash=_flashes(model),
        disable_nccl_graph_mixing=False,
    )
    cards = [model.device] if model.device.type == "cuda" else []
    with _attention(base), torch.random.fork_rng(cards):  # it seeds the global generators
        outputs = _outputs(base, prompts, settings, batching)
    responses = [output.generated_tokens for output in outputs]
    spread = range(0, len(prompts), -(-len(prompts) // CHECKED))
    sampled = [(prompts[i], responses[i], outputs[i].logprobs) for i in spread]
    check(model, sampled, codec.pad_id, temperature)
    return responses


def _flashes(model: Any) -> bool:
    """Whether the engine may use flash-attn, which takes no float32."""
    return is_flash_attn_2_available() and model.dtype == torch.bfloat16


@contextmanager
def _attention(base: Any) -> Iterator[None]:
    """An attention that the engine has, and that is the model's own."""
    given, kind = base.config._attn_implementation, base.config.model_type
    if torch.is_autocast_enabled(base.device.type):
        raise ValueError(
            f"model_type {kind!r}: generate.engine 'transformers' decodes in a thread of its own,"
            " without the bfloat16 products of dtype: mixed; expected 'koqa', or another dtype"
        )
    if is_sharded(decoder_of(base)):
        raise ValueError(
            f"model_type {kind!r}: its layers are spread over processes, which generate.engine"
            " 'transformers' cannot decode; expected 'koqa'"
        )
    if given == "eager" and not _flashes(base):
        raise ValueError(
            f"model_type {kind!r}: generate.engine 'transformers' would replace its attention by a"
            " plain one, without a soft-cap; expected 'koqa', or flash-attn to be installed"
        )
    try:
        yield
    finally:
        base.set_attn_implementation(given)


@torch.no_grad()
def _outputs(
    base: Any,
    prompts: list[list[int]],
    settings: GenerationConfig,
    batching: ContinuousBatchingConfig,
) -> list[Any]:
    """The engine's output for each prompt.

    All are queued before it starts, so that its batches do not depend on how fast it is.
    """
    manager = base.init_continuous_batching(settings, batching)
    found: dict[str, Any] = {}
    try:
        names = manager.add_requests(prompts, max_new_tokens=settings.max_new_tokens)
        manager.start()
        while len(found) < len(prompts):
            output = manager.get_result(timeout=1)
            if output is not None:
                found[output.request_id] = output
            elif not manager.is_running():
                break
        failed = manager.background_thread_status.fatal_error
    finally:
        manager.stop()
        manager.destroy()
    errors = [output.error for output in found.values() if output.error]
    if errors or len(found) < len(prompts):
        reason = (str(failed or (errors or ["it stopped"])[0]).strip()).splitlines()[0]
        raise ValueError(f"generate.engine 'transformers' failed: {reason}")
    return [found[name] for name in names]


@torch.no_grad()
def check(
    model: Any,
    sampled: list[tuple[list[int], list[int], list[float]]],
    pad_id: int,
    temperature: float,
) -> None:
    """Compare the engine's log-probabilities of responses with those that PPO would train on.

    `sampled` are prompts, responses, and the engine's log-probabilities of their tokens. Raises
    ValueError, with the largest difference, where they differ by more than rounding.
    """
    prompts, responses, engines = (list(column) for column in zip(*sampled, strict=True))
    rows = collate(prompts, responses, pad_id, model.device)
    own = response_logprobs(model, hidden_states(model, rows), rows, temperature or 1.0)
    flat = torch.tensor([one for engine in engines for one in engine], device=own.device)
    off = flat - own[rows.response_mask]
    found, most = off.square().mean().sqrt().item(), TOLERANCE[model.dtype]
    if not found <= most:
        raise ValueError(
            f"generate.engine 'transformers': its log-probabilities of {len(responses)} responses"
            f" differ from the trainer's by up to {off.abs().max().item():.2g}, {found:.2g} in root"
            f" mean square; expected at most {most} in {model.dtype}, or engine 'koqa'"
        )
