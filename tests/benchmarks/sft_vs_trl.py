"""SFT: the stage's own training step against TRL's SFTTrainer as shipped.

    python -m tests.benchmarks.sft_vs_trl BASE              # a folder with a base model
    python -m tests.benchmarks.sft_vs_trl BASE --rounds 1 --steps 2

16 rows of 190 random tokens a step, 128 of them the answer; LoRA of rank 16 on every linear layer,
bfloat16, two threads. TRL keeps its defaults: micro-batches of 8, activations recomputed, its fused
head; ours are of 2, which takes less memory. Both train by `Trainer.train`, in processes of their
own that take turns; a step's seconds run from the end of the step before, the first warms up.
Memory is the process's peak above that before the model is loaded. Both sides say loss, entropy and
accuracy of the first batch.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from stages.rlhf.config.models import Lora
from stages.rlhf.config.whole import Params, load_params
from stages.rlhf.model.roles import Roles
from stages.rlhf.model.store import load_causal_lm, load_tokenizer
from stages.rlhf.precision import device
from stages.rlhf.records import SftRow
from stages.rlhf.train.sft_trainer import ManifestTrainer, Phase, trainer_config
from stages.rlhf.train.tiled_head import recomputes
from tests.benchmarks.device_memory import held, most, seconds_are_over
from tests.model_fixtures import random_ids

ROWS, PROMPT, ANSWER = 16, 62, 128
MICRO = {"trl": 8, "ours": 2}  # rows of a micro-batch
RATE = 1e-4
SAID = ("loss", "entropy", "mean_token_accuracy")


class AfterStep(TrainerCallback):
    """The seconds of each step."""

    def __init__(self) -> None:
        self.since, self.seconds = time.perf_counter(), list[float]()

    def on_step_end(self, *args: Any, **more: Any) -> None:
        """One more."""
        seconds_are_over()
        self.seconds.append(time.perf_counter() - self.since)
        self.since = time.perf_counter()


def rows(steps: int, vocab: int) -> Dataset:
    """Rows of all steps, loss on the answer alone."""
    ids = random_ids(ROWS * steps, PROMPT + ANSWER, PROMPT + ANSWER, vocab, seed=0)
    labels = [[-100] * PROMPT + row[PROMPT:] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def settings() -> Params:
    """params.yaml with a bfloat16 model of those batches."""
    params, name = load_params(), "llama32-1b"
    sft = params.models[name].sft.model_copy(
        update={"batch_size": ROWS, "micro_batch_size": MICRO["ours"], "learning_rate": RATE}
    )
    entry = params.models[name].model_copy(update={"sft": sft, "lora": Lora(r=16, alpha=32)})
    return params.model_copy(update={"model": name, "models": {**params.models, name: entry}})


def our_trainer(base: Path, data: Dataset, folder: str) -> SFTTrainer:
    """As stage sft makes it."""
    params = settings()
    roles = Roles(load_causal_lm(base, "bfloat16"), params.base_model.lora)
    roles.add("default")
    roles.model.set_adapter("default")
    row = SftRow(id="", question="", answer="")
    phase = Phase([row] * len(data), epochs=1, seed=0)
    args = trainer_config(params, Path(folder), phase, recomputes(roles.model))
    args.save_strategy, args.eval_strategy, args.load_best_model_at_end = "no", "no", False
    return ManifestTrainer(
        model=roles.model, args=args, train_dataset=data, processing_class=load_tokenizer(base)
    )


def trl_trainer(base: Path, data: Dataset, folder: str) -> SFTTrainer:
    """TRL with its own defaults."""
    args = SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=MICRO["trl"],
        gradient_accumulation_steps=ROWS // MICRO["trl"],
        num_train_epochs=1,
        learning_rate=RATE,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        use_cpu=device() == "cpu",
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    return SFTTrainer(
        model=load_causal_lm(base, "bfloat16"),
        args=args,
        train_dataset=data,
        processing_class=load_tokenizer(base),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )


def measure(side: str, base: Path, steps: int) -> dict[str, Any]:
    """One side alone in this process."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    data, start = rows(steps, config["vocab_size"]), held()
    with tempfile.TemporaryDirectory() as folder:
        trainer = (our_trainer if side == "ours" else trl_trainer)(base, data, folder)
        timer = AfterStep()
        trainer.add_callback(timer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    first = trainer.state.log_history[0]
    said = {key: float(first[key]) for key in SAID}
    return {"seconds": timer.seconds[1:], "mib": most() - start, "said": said}


def in_a_process(side: str, base: Path, steps: int) -> dict[str, Any]:
    """`measure` in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.sft_vs_trl", str(base), "--side", side]
    done = subprocess.run(
        [*command, "--steps", str(steps)], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print both sides' figures and their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="of a process; the first warms up")
    parser.add_argument("--side", choices=["trl", "ours"], help="used by this itself")
    given = parser.parse_args()
    torch.set_num_threads(2)
    logging.set_verbosity_error()
    disable_progress_bars()
    if given.side:
        print(json.dumps(measure(given.side, given.base, given.steps)))
        return
    seconds: dict[str, list[float]] = {"trl": [], "ours": []}
    peak: dict[str, float] = {}
    for _ in range(given.rounds):
        for side, spent in seconds.items():
            found = in_a_process(side, given.base, given.steps)
            spent += found["seconds"]
            peak[side] = max(peak.get(side, 0.0), found["mib"])
            print(side, [round(s, 2) for s in found["seconds"]], "s;", found["said"], flush=True)
    middle = {side: statistics.median(spent) for side, spent in seconds.items()}
    for side, spent in middle.items():
        print(f"{side:4s}: {ROWS / spent:.2f} rows a second, {peak[side]:.0f} MiB at its peak")
    print(f"ours: {middle['trl'] / middle['ours']:.2f} times the rows of TRL,", end=" ")
    print(f"{peak['ours'] / peak['trl']:.2f} of its memory")


if __name__ == "__main__":
    main()
