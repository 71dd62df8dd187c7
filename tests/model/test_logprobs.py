"""Tiled log-probabilities against gather(log_softmax(logits)), value and gradient."""

import pytest
import torch
from torch import Tensor

from stages.rlhf.model import logprobs
from stages.rlhf.model.logprobs import token_logprobs, token_scores

N, H, V = 10, 16, 37  # rows, hidden size, vocabulary


def naive(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, softcap: float
) -> Tensor:
    logits = hidden.float() @ weight.float().T
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


@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_a_bias_is_part_of_the_logits(monkeypatch: pytest.MonkeyPatch, softcap: float) -> None:
    monkeypatch.setitem(logprobs.LOGITS_TILE, "cpu", (3, 5))
    hidden, weight, targets, upstream = case(torch.float32)
    bias = torch.randn(V, generator=torch.Generator().manual_seed(1))
    mine, other = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    found = token_logprobs(mine, weight, targets, 0.6, softcap, bias)
    logits = other @ weight.T + bias
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    expected = torch.log_softmax(logits / 0.6, -1).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-5)


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


@pytest.mark.parametrize("tile", [(3, V), (4, 10), (N, V)], ids=str)
@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_a_head_that_trains_gets_its_gradient(
    monkeypatch: pytest.MonkeyPatch,
    tile: tuple[int, int],
    softcap: float,
    dtype: torch.dtype,
    near: float,
) -> None:
    monkeypatch.setitem(logprobs.LOGITS_TILE, "cpu", tile)
    hidden, weight, targets, upstream = case(dtype)
    bias = torch.linspace(-1, 1, V)
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    exact = [x.double().requires_grad_() for x in (hidden, weight, bias)]
    logits = exact[0] @ exact[1].T + exact[2]
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    expected = torch.log_softmax(logits / 0.7, -1).gather(-1, targets[:, None]).squeeze(-1)
    found = token_logprobs(*leaves[:2], targets, 0.7, softcap, leaves[2])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for leaf, other in zip(leaves, exact, strict=True):
        assert leaf.grad.dtype == leaf.dtype
        size = other.grad.abs().max().item()
        torch.testing.assert_close(leaf.grad.double(), other.grad, rtol=0, atol=near * size)


def test_the_heads_gradient_in_numbers() -> None:
    hidden, weight, targets, _ = case(torch.float32)
    slopes = weight.clone().requires_grad_()
    token_logprobs(hidden, slopes, targets, 0.8, 4.0).sum().backward()
    row = int(targets[2])
    step = torch.zeros_like(weight)
    step[row, 5] = 1e-2
    ends = [naive(hidden.double(), (weight + s).double(), targets, 0.8, 4.0) for s in (step, -step)]
    expected = float(ends[0].sum() - ends[1].sum()) / 2e-2
    assert slopes.grad[row, 5].item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("tile", [(3, V), (4, 10), (N, V)], ids=str)
def test_entropy_and_the_first_of_equal_tokens(
    monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int]
) -> None:
    monkeypatch.setitem(logprobs.LOGITS_TILE, "cpu", tile)
    hidden, weight, targets, _ = case(torch.float32)
    weight[30] = weight[12]
    logits = 3 * hidden @ weight.T
    targets[:5] = logits[:5].argmax(-1)
    hidden[5:7] = 2 * weight[12]  # 12 and 30 are both the most likely, and 12 comes first
    targets[5], targets[6] = 12, 30
    hidden[7] = 0  # all are equal
    targets[7] = 0
    logits = hidden @ weight.T / 0.6
    found = token_scores(hidden, weight, targets, 0.6)
    entropy = torch.distributions.Categorical(logits=logits.double()).entropy()
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=0, atol=1e-5)
    assert found.top1.tolist() == (logits.argmax(-1) == targets).tolist()
    assert found.top1[5:8].tolist() == [True, False, True]
    assert found.logprobs.equal(token_logprobs(hidden, weight, targets, 0.6))


def test_a_bfloat16_heads_sums_are_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 640, generator=generator).bfloat16()
    weight = torch.randn(512, 640, generator=generator).bfloat16()
    targets = torch.arange(64)
    expected = naive(hidden.double(), weight.double(), targets, 1.0, 0.0)
    found = token_logprobs(hidden, weight, targets)  # rounded logits would be off by up to .25
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-4)
