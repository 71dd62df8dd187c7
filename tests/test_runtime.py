"""Seeds by use, and figures of a run."""

import json
from pathlib import Path

import pytest
import torch

from stages.rlhf.runtime import Clock, derive_seed, start


def test_each_use_has_a_seed_of_its_own_and_always_the_same() -> None:
    assert derive_seed(0, "sft") == 5243201029038482398  # sha256sum of 0/sft, halved
    uses = [(0, "sft"), (1, "sft"), (0, "rm"), (0, "ppo", "draws", 1), (0, "ppo", "draws", 11)]
    seeds = [derive_seed(*use) for use in uses]
    assert len(set(seeds)) == len(uses)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_start_fixes_what_a_stage_draws() -> None:
    threads = torch.get_num_threads()
    draws = []
    for use in ("sft", "sft", "rm"):
        start(threads, 0, use)
        draws.append(torch.rand(3))
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])
    assert torch.are_deterministic_algorithms_enabled()


def test_products_on_a_gpu_are_summed_in_float32() -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    start(torch.get_num_threads(), 0, "sft")
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction


def test_processes_of_a_machine_share_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    try:
        for size, expected in {"1": 4, "3": 1, "2": 2, "9": 1}.items():
            monkeypatch.setenv("LOCAL_WORLD_SIZE", size)
            start(4, 0, "sft")
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(threads)


def test_the_clock_writes_phases_total_and_memory(tmp_path: Path) -> None:
    clock = Clock()
    clock.lap("generate")
    clock.lap("score")
    clock.lap("generate")
    clock.write(tmp_path / "x.json", samples_per_second=2.0)
    found = json.loads((tmp_path / "x.json").read_text())
    names = {"generate_s", "score_s", "total_s", "peak_memory_mib", "samples_per_second"}
    assert set(found) == names
    assert found["total_s"] >= found["generate_s"] + found["score_s"] > 0
    assert found["peak_memory_mib"] > 10
