"""Which dtype a machine multiplies in, by what its processor does itself."""

from types import SimpleNamespace

import pytest
import torch

from stages.rlhf.precision import autocasts, check_gpu, device
from tests.conftest import naming


@pytest.mark.parametrize(
    ("capability", "native"),
    [((6, 1), False), ((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)],
)
def test_a_gpu_that_emulates_bfloat16_multiplies_in_float32(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], native: bool
) -> None:
    properties = SimpleNamespace(major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    # what the emulation looks like from outside, and a processor that does not matter here
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert device() == "cuda"
    assert autocasts("mixed") is native
    assert not autocasts("float32")
    assert not autocasts("bfloat16")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    check_gpu("mixed")
    for dtype in ("bfloat16", "nf4"):
        if native:
            check_gpu(dtype)
        else:
            with pytest.raises(ValueError, match=naming(dtype, "Tesla T4", "mixed or float32")):
                check_gpu(dtype)


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("avx512", [True, False])
def test_a_cpu_needs_one_of_two_instruction_sets(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert device() == "cpu"
    assert autocasts("mixed") is (amx or avx512)
