"""Supervised fine-tuning with TRL's SFTTrainer: rows in, the model trained in place, losses out.

Different here: TRL gets its batches ready-made, input_ids and labels, so that text becomes ids by
`chat` alone; and training may go on in a second phase with a schedule of its own.
"""

import tempfile
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from stages.rlhf.chat import Codec
from stages.rlhf.config import Params
from stages.rlhf.precision import autocasts
from stages.rlhf.records import SftRow


class Phase(NamedTuple):
    """Rows that SFT trains on, and for how long."""

    rows: list[SftRow]
    epochs: int
    seed: int


def encoded(rows: list[SftRow], codec: Codec) -> Dataset:
    """Rows as TRL takes them ready-made: input_ids, and labels that leave the prompt out."""
    prompts = [codec.prompt_ids(row.question) for row in rows]
    answers = [codec.answer_ids(row.answer) for row in rows]
    return Dataset.from_dict(
        {
            "input_ids": [p + a for p, a in zip(prompts, answers, strict=True)],
            "labels": [[-100] * len(p) + a for p, a in zip(prompts, answers, strict=True)],
        }
    )


def trainer_config(params: Params, folder: str, phase: Phase) -> SFTConfig:
    """SFTConfig for the chosen model; nothing is truncated here, preprocess has seen to length."""
    chosen = params.chosen
    steps = phase.epochs * -(-len(phase.rows) // chosen.sft.batch_size)
    return SFTConfig(
        output_dir=folder,
        num_train_epochs=phase.epochs,
        per_device_train_batch_size=chosen.sft.micro_batch_size,
        per_device_eval_batch_size=chosen.sft.micro_batch_size,
        gradient_accumulation_steps=chosen.sft.batch_size // chosen.sft.micro_batch_size,
        learning_rate=chosen.sft.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(params.sft.warmup_share * steps),
        weight_decay=params.sft.weight_decay,
        bf16=chosen.dtype == "bfloat16" or autocasts(chosen.dtype),
        use_cpu=not torch.cuda.is_available(),  # as load_causal_lm; Trainer refuses bf16 without
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        activation_checkpointing=chosen.hub is not None,
        dataloader_pin_memory=False,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_only_model=True,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        logging_strategy="epoch",
        report_to="none",
        seed=phase.seed % 2**32,
        full_determinism=False,
    )


def fit(model: Any, codec: Codec, params: Params, phase: Phase, held: Dataset) -> dict[str, float]:
    """Train in place with a warm-up and cosine of its own, keep the epoch best on `held`."""
    with tempfile.TemporaryDirectory(prefix="koqa-sft-") as folder:
        trainer = SFTTrainer(
            model=model,
            args=trainer_config(params, folder, phase),
            train_dataset=encoded(phase.rows, codec),
            eval_dataset=held,
            processing_class=codec.tokenizer,
        )
        trainer.train()
    log = trainer.state.log_history
    return {
        "loss": [entry["loss"] for entry in log if "loss" in entry][-1],
        "eval_loss": min(entry["eval_loss"] for entry in log if "eval_loss" in entry),
    }
