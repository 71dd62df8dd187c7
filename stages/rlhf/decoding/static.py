"""Decoding on a GPU: a KV cache of fixed size, and each step one CUDA graph.

A step of a small model is a thousand short kernels, and launching them takes longer than they do.
Here a step reads and writes the same tensors each time, so that it is captured once for a number of
rows, and then replayed. Its code is the same without a GPU, where it is called instead.

Different here: all layers keep all columns, also those with a window, whose mask hides what is too
old: no branch depends on how long a row is. Numbers of rows are halved, so that few graphs do for a
batch whose rows finish one by one. What is done is looked up every few steps only, as the CPU then
waits for the GPU. B rows, C columns of prompt and response together, R response tokens.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import AttentionMaskInterface, DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer
from transformers.masking_utils import sdpa_mask

from stages.rlhf.chat import Codec
from stages.rlhf.decoding.tokens import choose, cut_after, pad_left
from stages.rlhf.model.families import ROUNDING, probe_ids
from stages.rlhf.model.sequences import decoder_of, next_logits
from stages.rlhf.runs.notice import notice
from stages.rlhf.runs.sharding import is_sharded

GRAPHS = "KOQA_CUDA_GRAPHS"  # 0: the growing cache on a GPU, too
FEWEST = 8  # rows of the smallest graph
LOOK_EVERY = 8  # steps between two looks at which rows are done

Step = Callable[[], None]
_usable: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # by decoder: what `usable` found


def _eager_mask(*, dtype: torch.dtype = torch.float32, **given: Any) -> Tensor | None:
    """transformers' mask for eager attention (Gemma 2's), by an operation that a graph can hold.

    `torch.where` would bring its number from the CPU.
    """
    mask = sdpa_mask(**{**given, "allow_is_causal_skip": False})
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~mask, torch.finfo(dtype).min
    )


AttentionMaskInterface.register("eager", _eager_mask)


def decoder_for(
    model: Any,
    codec: Codec,
    prompts: list[list[int]],
    rows: int,
    max_new_tokens: int,
    temperature: float,
) -> "StaticDecoder | None":
    """What decodes these prompts by CUDA graphs, at most `rows` at once; None where nothing can.

    Raises ValueError for a value of KOQA_CUDA_GRAPHS that is neither 0 nor 1.
    """
    given = os.environ.get(GRAPHS, "1")
    if given not in ("0", "1"):
        raise ValueError(f"{GRAPHS} is {given!r}; expected 0 or 1")
    if given == "0" or model.device.type != "cuda" or not prompts or not usable(model):
        return None
    at_once, columns = min(rows, len(prompts)), max(map(len, prompts)) + max_new_tokens
    sizes = at_once, columns, max_new_tokens
    capture = partial(captured, decoder_of(model), torch.cuda.graph_pool_handle())
    return StaticDecoder(model, codec.pad_id, codec.eos_id, *sizes, temperature, capture)


def called(step: Step) -> Step:
    """Take the step; what takes it again is itself."""
    step()
    return step


def captured(decoder: Any, pool: Any, step: Step) -> Step:
    """Take the step, and capture it as a CUDA graph, which takes it again.

    The first time is on the stream of the capture, so that libraries set themselves up before it.
    Graphs may share a pool of memory as long as one of them lives: none leaves a result in it, and
    they are replayed one after another. A step that cannot be captured is called instead, a line on
    stderr says so, and `usable` is false from then on.
    """
    if not _usable.get(decoder, True):
        return called(step)
    side, current = _side_stream(), torch.cuda.current_stream()
    side.wait_stream(current)
    again, graph = step, torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        step()
        try:
            with torch.cuda.graph(graph, pool, side, "thread_local"):
                step()
            again = graph.replay
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a capture that failed fails, too
            _give_up(decoder, f"a step cannot be captured: {_first_line(cause)}")
            with suppress(RuntimeError):  # else the allocator goes on as within a capture
                torch._C._cuda_endAllocateToPool(decoder.device.index or 0, pool)
    current.wait_stream(side)
    return again


@cache
def _side_stream() -> Any:  # one: cuBLAS keeps a workspace for each stream there ever was
    return torch.cuda.Stream()


def _give_up(decoder: Any, reason: str) -> None:
    _usable[decoder] = False
    notice(f"model_type {decoder.config.model_type!r}: decoding without CUDA graphs: {reason}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Columns(StaticLayer):
    """One layer's keys and values in a cache whose columns are all of its rows' tokens."""

    def __init__(self, keys: Tensor, values: Tensor, column: Tensor) -> None:
        super().__init__(keys.shape[2])
        self.keys, self.values, self.is_initialized = keys, values, True
        self.cumulative_length = column  # of all layers: `StaticDecoder.step` moves it on

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (B, heads, 1, size) keys and values to the present column; all of both."""
        with unordered():
            at = self.cumulative_length[None]
            # under autocast a layer may give values in bfloat16 next to keys in float32
            self.keys.index_copy_(2, at, key_states.to(self.keys.dtype))
            self.values.index_copy_(2, at, value_states.to(self.values.dtype))
        return self.keys, self.values


@contextmanager
def unordered() -> Iterator[None]:
    """For writes of one column, which need no order: deterministic mode would sort them first."""
    mode = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warns)


class StaticDecoder:
    """Decodes batches of at most `rows` prompts, each with its response in `columns` columns.

    `capture` takes a step and gives what takes it again, for `captured`, or `called`. The model
    must not be changed, nor its role, as long as this is used.
    """

    def __init__(
        self,
        model: Any,
        pad_id: int,
        eos_id: int,
        rows: int,
        columns: int,
        max_new_tokens: int,
        temperature: float,
        capture: Callable[[Step], Step],
    ) -> None:
        self.model, self.pad_id, self.eos_id = model, pad_id, eos_id
        self.temperature, self.capture = temperature, capture
        self.sizes = [rows]
        while self.sizes[-1] > FEWEST:
            self.sizes.append(max(self.sizes[-1] // 2, FEWEST))
        whole = partial(torch.zeros, dtype=torch.long, device=model.device)
        self.ids, self.positions, self.owners = whole(rows, 1), whole(rows, 1), whole(rows)
        self.mask = whole(rows, columns).bool()
        self.done = whole(rows).bool()
        self.uniforms = whole(rows, max_new_tokens).float() if temperature else None
        self.responses = whole(rows, max_new_tokens)
        self.column, self.now = whole(()), whole(())  # the next one of the cache, of the response
        self.layers: list[tuple[Tensor, Tensor]] = []  # keys and values, of all rows and columns
        self.steps: dict[int, Step] = {}  # by number of rows

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    def generate(self, prompts: list[list[int]], uniforms: Tensor | None) -> list[list[int]]:
        """What `generation.generate` gives for these prompts and (B, R) uniforms."""
        if not prompts:
            return []
        found = torch.full(
            (len(prompts) + 1, self.responses.shape[1]), self.eos_id, device=self.model.device
        )  # and one for the rows that fill a size up
        rows = self._size_for(len(prompts))
        self._prefill(prompts, uniforms, rows)
        for step in range(1, self.responses.shape[1]):
            if (step - 1) % LOOK_EVERY == 0:
                living = int((~self.done[:rows]).sum())
                if living == 0:
                    break
                rows = self._compact(found, rows, self._size_for(living))
            if rows in self.steps:
                self.steps[rows]()
            else:
                self.steps[rows] = self.capture(partial(self.step, rows))
        found[self.owners[:rows]] = self.responses[:rows]
        return [cut_after(row, self.eos_id) for row in found[:-1].tolist()]

    def step(self, rows: int) -> None:
        """One more token of the first so many rows; reads and writes only this object's tensors."""
        layers = [Columns(keys[:rows], values[:rows], self.column) for keys, values in self.layers]
        kind = self.model.device.type
        in_use, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        with torch.autocast(kind, dtype, in_use, cache_enabled=False):  # no cast outlives the step
            states = decoder_of(self.model)(
                input_ids=self.ids[:rows],
                attention_mask=self.mask[:rows],
                position_ids=self.positions[:rows],
                past_key_values=Cache(layers),
                use_cache=True,
            ).last_hidden_state
            self._choose(states[:, -1], rows)
        self.column.add_(1)

    def _choose(self, states: Tensor, rows: int) -> None:
        """(B, H): write the next token of each row."""
        logits = next_logits(self.model, states, self.temperature or 1.0)
        now, own = self.now[None], None
        if self.uniforms is not None:
            own = self.uniforms[:rows].index_select(1, now)[:, 0]
        chosen = choose(logits, own).masked_fill(self.done[:rows], self.eos_id)
        with unordered():
            self.responses[:rows].index_copy_(1, now, chosen[:, None])
        self.done[:rows].logical_or_(chosen == self.eos_id)
        self.ids[:rows].copy_(chosen[:, None])
        self.positions[:rows].add_(1)
        self.now.add_(1)

    def _prefill(self, prompts: list[list[int]], uniforms: Tensor | None, rows: int) -> None:
        """Read the prompts by the ordinary forward, and choose the first token of each."""
        ids, mask, positions = pad_left(prompts, self.pad_id, self.model.device)
        held = DynamicCache(config=self.model.config)
        states = decoder_of(self.model)(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=held,
            use_cache=True,
        ).last_hidden_state
        count, width = ids.shape
        self._keep(held, count, width)
        self.mask.fill_(True)  # columns to come are hidden by their being later
        self.mask[:count, :width] = mask
        self.positions.zero_()
        self.positions[:count] = positions[:, -1:]
        self.responses.fill_(self.eos_id)
        self.done[:count], self.done[count:] = False, True
        torch.arange(rows, out=self.owners[:rows]).clamp_(max=count)
        if self.uniforms is not None and uniforms is not None:
            self.uniforms[:count] = uniforms.to(self.uniforms.device)
        self.column.fill_(width)
        self.now.zero_()
        self._choose(states[:, -1], count)

    def _keep(self, held: DynamicCache, count: int, width: int) -> None:
        """Copy a growing cache, of which a layer with a window has dropped what is too old."""
        for i, layer in enumerate(held.layers):
            if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
                raise TypeError(
                    f"layer {i} keeps more than keys and values: {type(layer).__name__}"
                )
            given = layer.keys, layer.values
            if i == len(self.layers):
                rows, columns = self.mask.shape
                made = (one.new_zeros(rows, one.shape[1], columns, one.shape[3]) for one in given)
                self.layers.append((next(made), next(made)))
            for own, one in zip(self.layers[i], given, strict=True):
                own[:count, :, width - one.shape[2] : width] = one

    def _size_for(self, count: int) -> int:
        return min(size for size in self.sizes if size >= count)

    def _compact(self, found: Tensor, rows: int, fewer: int) -> int:
        """Move the living rows, and some that are done, to the front; the number of rows then."""
        if fewer == rows:
            return rows
        found[self.owners[:rows]] = self.responses[:rows]
        keep = self.done[:rows].byte().argsort(stable=True)[:fewer]
        whole = [self.ids, self.positions, self.owners, self.mask, self.done, self.responses]
        whole += [] if self.uniforms is None else [self.uniforms]
        for own in [*whole, *(one for pair in self.layers for one in pair)]:
            own[:fewer] = own[keep]
        return fewer


def usable(model: Any) -> bool:
    """Whether steps with a static cache come to the logits of whole rows, found out once a model.

    Not where a decoder is spread over processes, whose steps are counted together.
    """
    decoder = decoder_of(model)
    if decoder not in _usable:
        _usable[decoder] = True
        if reason := "its layers are spread over processes" if is_sharded(decoder) else _off(model):
            _give_up(decoder, reason)
    return _usable[decoder]


@torch.no_grad()
def _off(model: Any) -> str | None:
    """Why a static cache is not for this model, of whose steps a few are compared."""
    ids = probe_ids(model)[0].tolist()
    prompts, new = [ids[:-2], ids[::-1]], 4
    recorded: list[Tensor] = []

    class Recorded(StaticDecoder):
        def _choose(self, states: Tensor, rows: int) -> None:
            recorded.append(next_logits(self.model, states))
            super()._choose(states, rows)

    decoder = Recorded(model, 0, -1, 2, len(ids) + new, new, 0.0, called)
    try:
        found = decoder.generate(prompts, None)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        return _first_line(error)
    steps = torch.stack(recorded, 1)  # (2, new, V)
    own = []
    for prompt, response in zip(prompts, found, strict=True):
        row = torch.tensor([prompt + response[:-1]], device=model.device)
        states = decoder_of(model)(input_ids=row, use_cache=False).last_hidden_state
        own.append(next_logits(model, states[0, -new:]))
    whole = torch.stack(own)
    kind, dtype = model.device.type, model.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    off, most = ((steps - whole).square().mean().sqrt() / whole.std()).item(), ROUNDING[dtype][1]
    if not off <= most:
        return f"logits differ by {off:.2g} standard deviations, expected at most {most}"
    return None
