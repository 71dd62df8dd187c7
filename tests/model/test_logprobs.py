"""Tiled log-probabilities against gather(log_softmax(logits)), value and gradient."""

import pytest
import torch
from torch import Tensor

from stages.rlhf.model import logprobs
from stages.rlhf.model.logprobs import token_logprobs
from tests.conftest import naming

N, H, V = 10, 16, 37  # rows, hidden size, vocabulary


def naive(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, softcap: float
) -> Tensor:
    logits = (hidden @ weight.T).float()
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.log_softmax(logits / temperature, -1).gather(-1, targets[:, None]).squeeze(-1)


def case(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, generator=generator).to(dtype)
    weight = torch.randn(V, H, generator=generator).to(dtype)
    targets = torch.randint(V, (N,), generator=generator)
    return hidden, weight, targets, torch.randn(N, generator=generator)


@pytest.mark.parametrize("tile", [(3, V), (1, 5), (4, 10), (N, V)], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_tiles_equal_the_whole(
    monkeypatch: pytest.MonkeyPatch,
    tile: tuple[int, int],
    temperature: float,
    softcap: float,
    dtype: torch.dtype,
    near: float,
) -> None:
    monkeypatch.setitem(logprobs.LOGITS_TILE, "cpu", tile)
    hidden, weight, targets, upstream = case(dtype)
    mine, other = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    found = token_logprobs(mine, weight, targets, temperature, softcap)
    expected = naive(other, weight, targets, temperature, softcap)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    assert mine.grad is not None
    assert mine.grad.dtype == dtype
    size = other.grad.abs().max().item()
    torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=near * size)


def test_gradient_check_in_numbers() -> None:
    hidden, weight, targets, _ = case(torch.float32)
    slopes = hidden.clone().requires_grad_()
    token_logprobs(slopes, weight, targets, 0.8, 4.0)[2].backward()
    step = torch.zeros_like(hidden)
    step[2, 5] = 1e-2
    ahead = naive((hidden + step).double(), weight.double(), targets, 0.8, 4.0)[2]
    behind = naive((hidden - step).double(), weight.double(), targets, 0.8, 4.0)[2]
    assert slopes.grad is not None
    assert slopes.grad[2, 5].item() == pytest.approx((ahead - behind).item() / 2e-2, abs=1e-3)
    assert slopes.grad[:2].eq(0).all()


def test_no_logits_are_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(logprobs.LOGITS_TILE, "cpu", (2, V))
    hidden, weight, targets, _ = case(torch.float32)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_logprobs(hidden.requires_grad_(), weight, targets)
    assert kept == [N * H], f"{kept}; logits are {N * V}"


def test_a_head_that_trains_is_refused() -> None:
    hidden, weight, targets, _ = case(torch.float32)
    with pytest.raises(ValueError, match=naming("token_logprobs", "head")):
        token_logprobs(hidden, weight.requires_grad_(), targets)
