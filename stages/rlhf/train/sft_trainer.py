"""Supervised fine-tuning with TRL's SFTTrainer: rows in, the model trained in place, losses out.

Different here: TRL gets its batches ready-made, input_ids and labels, so that text becomes ids by
`chat` alone; training may go on in a second phase with a schedule of its own; and Trainer's own
checkpoints, which it writes in place, are sealed: one without a whole manifest is not gone on from.
"""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from stages.rlhf import files
from stages.rlhf.chat import Codec
from stages.rlhf.config.sft import SftParams
from stages.rlhf.precision import autocasts
from stages.rlhf.records import SftRow
from stages.rlhf.runs import signals
from stages.rlhf.runs.checkpoints import Timer, note
from stages.rlhf.runs.notice import notice
from stages.rlhf.runs.signals import Interrupted


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


def trainer_config(params: SftParams, folder: Path, phase: Phase) -> SFTConfig:
    """SFTConfig for the chosen model; nothing is truncated here, preprocess has seen to length."""
    base_model = params.base_model
    steps = phase.epochs * -(-len(phase.rows) // base_model.sft.batch_size)
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=phase.epochs,
        per_device_train_batch_size=base_model.sft.micro_batch_size,
        per_device_eval_batch_size=base_model.sft.micro_batch_size,
        gradient_accumulation_steps=base_model.sft.batch_size // base_model.sft.micro_batch_size,
        learning_rate=base_model.sft.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(params.sft.warmup_share * steps),
        weight_decay=params.sft.weight_decay,
        bf16=base_model.dtype == "bfloat16" or autocasts(base_model.dtype),
        use_cpu=not torch.cuda.is_available(),  # as load_causal_lm; Trainer refuses bf16 without
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        activation_checkpointing=base_model.hub is not None,
        dataloader_pin_memory=False,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=3,  # the newest, not yet sealed, the best, and the one before
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        logging_steps=1,  # so that a run that goes on inside an epoch knows its losses
        report_to="none",
        seed=phase.seed % 2**32,
        full_determinism=False,
    )


class ManifestCallback(TrainerCallback):
    """Seals what Trainer saves, has it save when it is time, ends it when asked; shows progress."""

    def __init__(self, timer: Timer) -> None:
        self.timer = timer
        self.progress = tqdm(desc="sft", mininterval=5, disable=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Begin where it goes on."""
        self.progress = tqdm(
            desc="sft", total=state.max_steps, initial=state.global_step, mininterval=5
        )

    def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Show the loss on validation."""
        loss = next(x["eval_loss"] for x in reversed(state.log_history) if "eval_loss" in x)
        self.progress.set_postfix(eval_loss=f"{loss:.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """All steps are done."""
        self.progress.close()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Save where it is time, or the process is asked to end; an epoch's end saves by itself.

        Trainer would not evaluate an epoch whose last step it goes on from.
        """
        self.progress.update()
        if state.global_step % (state.max_steps // args.num_train_epochs):
            control.should_save |= self.timer.due() or signals.stop_requested()

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Give the new checkpoint its manifest; end where the process is asked to."""
        folder = Path(args.output_dir)
        files.write_manifest(folder / f"checkpoint-{state.global_step}")
        note(folder, "saved", state.global_step)
        self.timer.saved()
        if signals.stop_requested():
            raise Interrupted(f"after step {state.global_step} ({args.output_dir})")


class ManifestTrainer(SFTTrainer):
    """TRL's, which says in a sentence where a checkpoint cannot be written."""

    def _save_checkpoint(self, *given: Any, **named: Any) -> None:
        try:
            super()._save_checkpoint(*given, **named)
        except (OSError, RuntimeError, SafetensorError) as error:
            folder = self.args.output_dir
            raise ValueError(f"{folder}: no checkpoint could be written: {error}") from error


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint whose best epoch is whole too; all after it are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    while found:
        place = found.pop()
        problem = files.verify_manifest(place)
        if problem is None:
            told = json.loads((place / "trainer_state.json").read_text(encoding="utf-8"))
            best = told["best_model_checkpoint"]
            problem = best and files.verify_manifest(Path(best))
        if problem is None:
            return place
        notice(f"{place}: {problem}; the checkpoint before it is used")
        shutil.rmtree(place)
    return None


def fit(
    model: Any, codec: Codec, params: SftParams, phase: Phase, held: Dataset, folder: Path
) -> dict[str, float]:
    """Train in place with a warm-up and cosine of its own, keep the epoch best on `held`.

    Checkpoints lie in `folder`; where some lie there already, it goes on from the newest.
    """
    trainer = ManifestTrainer(
        model=model,
        args=trainer_config(params, folder, phase),
        train_dataset=encoded(phase.rows, codec),
        eval_dataset=held,
        processing_class=codec.tokenizer,
        callbacks=[ManifestCallback(Timer())],
    )
    trainer.remove_callback(PrinterCallback)  # a line for every step
    last = newest(folder)
    note(folder, "from", int(last.name.split("-")[1]) if last else 0)
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except pickle.UnpicklingError as error:  # Trainer loads its own files with weights_only
        raise ValueError(f"{last}: holds more than tensors and plain values: {error}") from error
    log = trainer.state.log_history
    losses = [entry["loss"] for entry in log if "loss" in entry]
    epoch = losses[-(len(losses) // phase.epochs) :]
    return {
        "loss": sum(epoch) / len(epoch),
        "eval_loss": min(entry["eval_loss"] for entry in log if "eval_loss" in entry),
    }
