"""Both sides of the benchmark of decoding give the same tokens and end where they are to end."""

from pathlib import Path

import pytest
import torch

from stages.rlhf.chat import Codec
from stages.rlhf.model.store import load_causal_lm, load_tokenizer
from tests.benchmarks import decode_vs_generate as benchmark
from tests.model_fixtures import random_ids, save_base


def test_both_sides_decode_the_same_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path)
    model, codec = load_causal_lm(base, "float32").eval(), Codec(load_tokenizer(base))
    monkeypatch.setattr(benchmark, "ROWS", 8)
    prompts = random_ids(8, 3, 12, model.config.vocab_size, seed=1)
    ends = torch.tensor([5, 1, 7, 2, 7, 3, 1, 6])
    found = benchmark.ours(model, codec, prompts, ends, new=8)
    assert [len(answer) for answer in found] == (ends + 1).tolist()
    assert all(answer.index(codec.eos_id) == len(answer) - 1 for answer in found)
    assert found == benchmark.theirs(model, codec, prompts, ends, new=8)
