"""A frozen backbone whose layers are spread over the processes of a machine: PyTorch's FSDP2.

Each process holds a share of every layer's weights, and for a moment of each pass one layer whole.
So a pass by one process is a pass by all: who has no rows left passes over nothing, until all are
through. Embeddings, the last norm and the LM head stay whole, and adapters, so that a checkpoint
holds no share of anything, and what is trained is summed as without sharding.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed import ReduceOp, all_reduce, get_rank, get_world_size

from stages.rlhf.runs.notice import notice

SHARD = "KOQA_SHARD"  # 1: shard; 0: never; unset: where the plan says that it does not fit
_CARDS = "koqa_cards"  # attribute of a decoder that is sharded: the processes of this machine

Part = TypeVar("Part")


def wanted() -> bool:
    """Whether backbones are to be sharded. Raises ValueError where one process would be alone."""
    given = os.environ.get(SHARD, "0")
    if given not in ("0", "1"):
        raise ValueError(f"{SHARD} is {given!r}; expected 0 or 1")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if given == "1" and here == 1:
        raise ValueError(
            f"{SHARD} is 1, but one process runs here; expected KOQA_PROCESSES=2 or more"
        )
    return given == "1"


def shard(model: Any, decoder: Any, device: str) -> None:
    """Move a frozen model to `device`, its decoder's layers spread over this machine's processes.

    A layer at a time: a card never holds all of them. Raises ValueError for a decoder without a
    list of `num_hidden_layers` layers.
    """
    from torch.distributed.device_mesh import init_device_mesh  # a second, for the few who shard
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    count = decoder.config.num_hidden_layers
    lists = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        kind = decoder.config.model_type
        raise ValueError(
            f"model_type {kind!r}: its {count} layers are in no list; it cannot be sharded"
        )
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    shape = get_world_size() // here, here
    # peft takes shares of weights for tensor parallelism's unless the mesh has this name
    cards = init_device_mesh(device, shape, mesh_dim_names=("hosts", "fsdp"))["fsdp"]
    for layer in lists[0]:
        fully_shard(layer, mesh=cards)
    layers = {p for layer in lists[0] for p in layer.parameters()}
    fully_shard(decoder, mesh=cards, ignored_params={*decoder.parameters()} - layers)
    for whole in (*model.parameters(), *model.buffers()):
        if not isinstance(whole, DTensor):
            whole.data = whole.data.to(device)
    setattr(decoder, _CARDS, cards.get_group())
    idle(decoder)  # by all: who cannot pass over nothing fails here, not in the middle of a run
    if get_rank() == 0:
        notice(f"model_type {decoder.config.model_type!r}: layers spread over {here} processes")


def is_sharded(decoder: Any) -> bool:
    """Whether `shard` was called on it."""
    return hasattr(decoder, _CARDS)


def in_step(decoder: Any, parts: Sequence[Part], gradients: int = 0) -> Iterator[Part]:
    """The parts, a pass over each; then passes over nothing until all processes are through theirs.

    `gradients`: passes of each part that have a backward one. 0: one pass, without.
    """
    missing = most(decoder, len(parts)) - len(parts)
    yield from parts
    for _ in range(missing * max(gradients, 1)):
        idle(decoder, gradients > 0)


def most(decoder: Any, own: int) -> int:
    """The largest of the processes' numbers; one's own where the decoder is not sharded."""
    if not is_sharded(decoder):
        return own
    found = torch.tensor([own])
    all_reduce(found, ReduceOp.MAX, group=getattr(decoder, _CARDS))
    return int(found)


def going_on(decoder: Any, own: bool) -> bool:
    """Whether any process has a pass to make: before each of one's own, and until nobody has."""
    return most(decoder, own) > 0


def wait(decoder: Any) -> None:
    """Make the others' passes with them until nobody has one left."""
    while going_on(decoder, False):
        idle(decoder)


def idle(decoder: Any, gradients: bool = False) -> None:
    """A pass over one state of zeros, without a result, for the sake of the other processes."""
    weight = decoder.get_input_embeddings().weight
    states = weight.new_zeros(1, 1, decoder.config.hidden_size, requires_grad=gradients)
    with torch.set_grad_enabled(gradients):
        out = decoder(inputs_embeds=states, use_cache=False).last_hidden_state
        if gradients:
            out.backward(torch.zeros_like(out))
