"""Make tests/golden/trl_ppo.json: one rollout and four loss steps of TRL 1.12's own PPOTrainer.

Needs a venv of its own (the project has TRL 1.16, which has no PPO any more):
    python3 -m venv /tmp/venv12
    /tmp/venv12/bin/pip install torch==2.13.0 trl==1.12.0 'transformers<5.24'
    /tmp/venv12/bin/python tests/benchmarks/make_trl_ppo_golden.py

Nothing is transcribed: PPOTrainer.train runs as it is, and the two helpers that it calls at the
right places (masked_whiten, masked_mean) are wrapped to read the tensors of the calling frame.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

OUT = Path(__file__).parents[1] / "golden" / "trl_ppo.json"
SEED = 7
ACCUMULATION = 2
PAD, EOS, VOCAB = 0, 1, 12
WORDS = ["<pad>", "<eos>", *(f"w{i}" for i in range(VOCAB - 2))]
KNOBS = {
    "kl_coef": 0.2,
    "gamma": 0.97,
    "lam": 0.9,
    "cliprange": 0.1,
    "cliprange_value": 0.15,
    "vf_coef": 0.1,
    "missing_eos_penalty": 0.7,
}
ROLLOUT = (
    "logprobs",
    "ref_logprobs",
    "values",
    "scores",
    "sequence_lengths",
    "contain_eos_token",
    "rewards",
    "returns",
)
STEP = ("new_logprobs", "vpred")


def tokenizer() -> PreTrainedTokenizerFast:
    """Twelve words."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def network(kind: Any, seed: int, **more: Any) -> Any:
    """A tiny Llama whose outputs differ much from token to token."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.5,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
        **more,
    )
    model = kind(config)
    if kind is LlamaForCausalLM:
        with torch.no_grad():
            model.lm_head.weight[PAD] = 0  # rarely sampled: TRL would take it for the end
            model.lm_head.weight[EOS] *= 2  # often sampled
    return model


def plain(value: Tensor) -> list[Any]:
    """Nested lists; floats to 9 digits, which is all of fp32."""
    value = value.detach()
    if value.is_floating_point():
        flat = [float(f"{x:.9g}") for x in value.float().flatten().tolist()]
        return np.array(flat, dtype=object).reshape(value.shape).tolist()
    return value.tolist()


class Capture:
    """Wraps TRL's helpers; what it has seen of PPOTrainer.train."""

    def __init__(self) -> None:
        self.rollout: dict[str, Any] = {}
        self.steps: list[dict[str, Any]] = []
        self.calls = 0
        self.whiten, self.mean = ppo_trainer.masked_whiten, ppo_trainer.masked_mean

    def masked_whiten(self, values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
        """Called once in each update, on the advantages."""
        seen = sys._getframe(1).f_locals
        whitened = self.whiten(values, mask, shift_mean)
        self.rollout = {name: plain(seen[name]) for name in ROLLOUT}
        self.rollout["mask"] = plain(~seen["padding_mask"])
        self.rollout["mask_p1"] = plain(~seen["padding_mask_p1"])
        self.rollout["advantages"] = plain(values)
        self.rollout["whitened"] = plain(whitened.masked_fill(seen["padding_mask"], 0))
        return whitened

    def masked_mean(self, values: Tensor, mask: Tensor) -> Tensor:
        """Called four times in each micro-batch: value loss and clip, policy loss and clip."""
        found = self.mean(values, mask)
        frame = sys._getframe(1)
        if frame.f_code.co_name != "train":  # masked_whiten and masked_var use it too
            return found
        seen, place = frame.f_locals, self.calls % 4
        self.calls += 1
        if place == 0:
            seen["new_logprobs"].retain_grad()
            seen["vpred"].retain_grad()
            self.steps.append({"rows": seen["micro_batch_inds"].tolist()})
            self.steps[-1].update({name: plain(seen[name]) for name in STEP})
            self.steps[-1]["vf_loss"] = 0.5 * found.item()
        elif place == 1:
            self.steps[-1]["vf_clipfrac"] = found.item()
        elif place == 2:
            self.steps[-1]["pg_loss"] = found.item()
        else:  # after the backward pass
            self.steps[-1]["pg_clipfrac"] = found.item()
            self.steps[-1]["loss"] = seen["loss"].item()
            self.steps[-1]["grad_logprobs"] = plain(seen["new_logprobs"].grad)
            self.steps[-1]["grad_values"] = plain(seen["vpred"].grad)
        return found


def main() -> None:
    """Run one update of two epochs with two micro-batches each, and write what it did."""
    torch.set_num_threads(1)
    capture = Capture()
    ppo_trainer.masked_whiten = capture.masked_whiten
    ppo_trainer.masked_mean = capture.masked_mean
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, VOCAB, size=4).tolist() for _ in range(8)]
    words = tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=ACCUMULATION,
            total_episodes=8,
            num_ppo_epochs=2,
            response_length=7,
            stop_token="eos",
            temperature=1.0,
            learning_rate=0.02,
            local_rollout_forward_batch_size=8,
            num_sample_generations=0,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            seed=SEED,
            **KNOBS,
        )
        np.random.seed(0)
        PPOTrainer(
            args=config,
            processing_class=words,
            model=network(LlamaForCausalLM, 1),
            ref_model=network(LlamaForCausalLM, 2),
            reward_model=network(LlamaForSequenceClassification, 3, num_labels=1),
            value_model=network(LlamaForSequenceClassification, 4, num_labels=1),
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
        ).train()
    ended, mask = capture.rollout["contain_eos_token"], capture.rollout["mask"]
    assert 2 <= sum(ended) <= 6, f"{sum(ended)} of 8 answers end; another seed shows more"
    assert all(all(row) for row, end in zip(mask, ended, strict=True) if not end), "PAD was sampled"
    golden = {
        "made_by": "tests/benchmarks/make_trl_ppo_golden.py",
        "versions": {"trl": trl.__version__, "torch": torch.__version__},
        "knobs": KNOBS,
        "gradient_accumulation_steps": ACCUMULATION,
        "rollout": capture.rollout,
        "steps": capture.steps,
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
