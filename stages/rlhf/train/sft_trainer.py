"""Supervised fine-tuning with TRL's SFTTrainer: rows in, model trained in place, losses out.

Different here: TRL receives tokenized input_ids and labels, so that only `chat` turns text into
ids; training can have a second phase with its own schedule; and Trainer's checkpoints, which are
not written atomically, get a manifest: one without a complete manifest is not resumed from. Of
several processes each takes its share of every micro-batch, so that their number changes no step.
"""

import json
import pickle
import shutil
from functools import partial
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
from stages.rlhf.model.sequences import decoder_of
from stages.rlhf.precision import WEIGHTS, autocasts
from stages.rlhf.records import SftRow
from stages.rlhf.runs import signals
from stages.rlhf.runs.checkpoints import Timer, note
from stages.rlhf.runs.notice import notice
from stages.rlhf.runs.process_group import SINGLE_PROCESS, ProcessGroup
from stages.rlhf.runs.sharding import is_sharded
from stages.rlhf.runs.signals import Interrupted
from stages.rlhf.train.sampling import ShardCollator, SortedBatches
from stages.rlhf.train.tiled_head import recomputes, use_tiles


class Phase(NamedTuple):
    """One phase of SFT: its rows, epochs and seed."""

    rows: list[SftRow]
    epochs: int
    seed: int


def encoded(rows: list[SftRow], codec: Codec) -> Dataset:
    """Rows as a tokenized dataset: input_ids, and labels with the prompt masked."""
    prompts = [codec.prompt_ids(row.message) for row in rows]
    responses = [codec.response_ids(row.answer) for row in rows]
    return Dataset.from_dict(
        {
            "input_ids": [p + r for p, r in zip(prompts, responses, strict=True)],
            "labels": [[-100] * len(p) + r for p, r in zip(prompts, responses, strict=True)],
        }
    )


def trainer_config(
    params: SftParams, folder: Path, phase: Phase, recompute: bool = False, processes: int = 1
) -> SFTConfig:
    """SFTConfig for the base model; no truncation, because preprocess enforces length limits.

    A "device batch" is what all `processes` take at once, a micro-batch each at most.
    """
    base_model = params.base_model
    size, micro = base_model.sft.batch_size, base_model.sft.micro_batch_size
    at_once = max(n for n in range(1, micro * processes + 1) if size % n == 0)
    steps = phase.epochs * -(-len(phase.rows) // base_model.sft.batch_size)
    config = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=phase.epochs,
        per_device_train_batch_size=at_once,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=size // at_once,
        learning_rate=base_model.sft.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(params.sft.warmup_share * steps),
        weight_decay=params.sft.weight_decay,
        bf16=WEIGHTS[base_model.dtype] == torch.bfloat16 or autocasts(base_model.dtype),
        use_cpu=not torch.cuda.is_available(),  # as load_causal_lm; Trainer rejects bf16 without it
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        activation_checkpointing=recompute,
        dataloader_pin_memory=False,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_on_each_node=True,  # the main process of each machine
        save_total_limit=3,  # the newest (no manifest yet), the best, the previous one
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        logging_steps=1,  # a run resumed within an epoch needs all of its losses
        report_to="none",
        seed=phase.seed % 2**32,
        full_determinism=False,
    )
    config._n_gpu = min(config.n_gpu, 1)  # of several that are visible, the first: no DataParallel
    return config


class ManifestCallback(TrainerCallback):
    """Writes manifests, triggers saves by time or signal, ends on a signal; shows progress."""

    def __init__(
        self, timer: Timer, best: Path | None = None, group: ProcessGroup = SINGLE_PROCESS
    ) -> None:
        self.timer, self.best, self.group = timer, best, group
        self.progress = tqdm(desc="sft", mininterval=5, disable=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Start the progress bar at the resumed step, whose best epoch is next to it."""
        state.best_model_checkpoint = str(self.best) if self.best else None
        self.progress = tqdm(
            desc="sft", total=state.max_steps, initial=state.global_step, mininterval=5
        )

    def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Show the validation loss."""
        loss = next(x["eval_loss"] for x in reversed(state.log_history) if "eval_loss" in x)
        self.progress.set_postfix(eval_loss=f"{loss:.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Close the progress bar."""
        self.progress.close()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Save when it is due or a stop is requested, except at the end of an epoch.

        Trainer saves there itself, and does not evaluate an epoch resumed from its last step.
        """
        self.progress.update()
        if state.global_step % (state.max_steps // args.num_train_epochs):
            due = self.group.is_main and self.timer.due()
            control.should_save |= self.group.any(due or signals.stop_requested())

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Write the new checkpoint's manifest; end if a stop is requested."""
        folder = Path(args.output_dir)
        if self.group.is_main:
            files.write_manifest(folder / f"checkpoint-{state.global_step}")
            note(folder, "saved", state.global_step)
            self.timer.saved()
        if self.group.any(signals.stop_requested()):
            raise Interrupted(f"after step {state.global_step} ({args.output_dir})")


class ManifestTrainer(SFTTrainer):
    """SFTTrainer with our head, and rows of like length in a micro-batch.

    Raises a ValueError if a checkpoint cannot be written.
    """

    data_collator: Any

    def __init__(
        self,
        *given: Any,
        sorts: bool = True,
        group: ProcessGroup = SINGLE_PROCESS,
        **named: Any,
    ) -> None:
        """`sorts`: an optimiser step has several micro-batches, of one process."""
        super().__init__(*given, **named)
        use_tiles(self.model)
        self.sorts, self.group = sorts, group
        self.sharded = is_sharded(decoder_of(self.model))
        if self.sharded:  # DDP takes no shares of weights, and accelerate refuses them
            self.accelerator.prepare_model = partial(
                self.accelerator.prepare_model, evaluation_mode=True
            )

    def training_step(self, *given: Any, **named: Any) -> Any:
        """A micro-batch; after a step's last one the processes' gradients are averaged."""
        loss = super().training_step(*given, **named)
        if self.sharded and self.accelerator.sync_gradients:  # as DDP does
            trained = [p for p in self.model.parameters() if p.requires_grad]
            self.group.sum_gradients(trained)
            for parameter in trained:
                parameter.grad /= self.group.size
        return loss

    def _get_dataloader(self, *given: Any, is_training: bool = False, **named: Any) -> Any:
        """All micro-batches for each process; of those for training, its share of the rows."""
        if self.group.size == 1:
            return super()._get_dataloader(*given, is_training=is_training, **named)
        whole = self.data_collator
        if is_training:
            self.data_collator = ShardCollator(whole, self.group)
        try:
            loader = super()._get_dataloader(*given, is_training=is_training, **named)
        finally:
            self.data_collator = whole
        batches = loader.batch_sampler  # accelerate's, which would deal them out
        batches.num_processes, batches.process_index, batches.even_batches = 1, 0, False
        batches.sampler = batches.batch_sampler.sampler  # looked for here when an epoch is resumed
        return loader

    def evaluate(self, *given: Any, **named: Any) -> dict[str, float]:
        """The first process's figures, by which all choose the same epoch."""
        return self.group.broadcast(super().evaluate(*given, **named))

    def evaluation_loop(self, *given: Any, **named: Any) -> Any:
        """By each process, of all rows: nothing is gathered, and the last batch cut as there."""

        def own(losses: Any) -> Any:
            state = self.accelerator.gradient_state
            last = state.end_of_dataloader and state.remainder > 0
            return losses[: state.remainder] if last else losses

        if self.group.size > 1:
            self.gather_function = own
        return super().evaluation_loop(*given, **named)

    def _save_rng_state(self, output_dir: str) -> None:
        if self.args.should_save:  # else a file that the manifest may miss
            super()._save_rng_state(output_dir)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        if not self.sorts:
            return super()._get_train_sampler(train_dataset)
        rows = train_dataset or self.train_dataset
        lengths = [len(ids) for ids in rows["input_ids"]]
        size = self.args.gradient_accumulation_steps * self.args.train_batch_size
        return SortedBatches(lengths, size, self.args.seed)

    def _save_checkpoint(self, *given: Any, **named: Any) -> None:
        try:
            super()._save_checkpoint(*given, **named)
        except (OSError, RuntimeError, SafetensorError) as error:
            folder = self.args.output_dir
            raise ValueError(f"{folder}: no checkpoint could be written: {error}") from error


def newest(folder: Path) -> Path | None:
    """The newest intact checkpoint whose best epoch, by its name in `folder`, is intact too.

    Later ones would pass for the newest once training goes on: damaged ones are removed, an intact
    one whose best epoch is lost is renamed to `unused-*`.
    """
    found = sorted(folder.glob("checkpoint-*"), key=step_of)
    while found:
        checkpoint = found.pop()
        problem = files.verify_manifest(checkpoint)
        if problem:
            notice(f"{checkpoint}: {problem}; using the one before it")
            shutil.rmtree(checkpoint)
            continue
        best = best_of(checkpoint)
        problem = files.verify_manifest(best) if best else None
        if not problem:
            return checkpoint
        notice(f"{checkpoint}: its best epoch, {best}: {problem}; using the one before it")
        aside = folder / f"unused-{checkpoint.name}"
        shutil.rmtree(aside, ignore_errors=True)  # of the same step, so the same bits
        checkpoint.rename(aside)
    return None


def best_of(checkpoint: Path) -> Path | None:
    """The best epoch's checkpoint, next to this one; the path that Trainer noted may have moved."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    best = state["best_model_checkpoint"]
    return checkpoint.parent / Path(best).name if best else None


def agreed(folder: Path, group: ProcessGroup) -> Path | None:
    """The newest checkpoint that every machine has, or None. One process of each tidies `folder`.

    Raises ValueError where this machine has not the newest one of another.
    """
    found = newest(folder) if group.is_main else None
    group.any(False)  # all wait
    found = found or newest(folder)
    step = group.least(step_of(found))
    if step == step_of(found):
        return found
    older = folder / f"checkpoint-{step}"
    if step and files.verify_manifest(older):
        raise ValueError(
            f"{older}: not whole, and the newest of another machine; delete {folder} on all of"
            " them to begin anew"
        )
    return older if step else None


def step_of(checkpoint: Path | None) -> int:
    """The step of a checkpoint of Trainer's; 0 for none."""
    return int(checkpoint.name.split("-")[1]) if checkpoint else 0


def fit(
    model: Any,
    codec: Codec,
    params: SftParams,
    phase: Phase,
    validation: Dataset,
    folder: Path,
    group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, float]:
    """Train in place with its own warm-up and cosine decay; keep the best epoch on `validation`.

    Checkpoints are written to `folder`; resumes from the newest one there.
    """
    sft = params.base_model.sft
    group.check_rows(sft.batch_size, "sft.batch_size")
    last = agreed(folder, group)
    trainer = ManifestTrainer(
        model=model,
        args=trainer_config(params, folder, phase, recomputes(model), group.size),
        train_dataset=encoded(phase.rows, codec),
        eval_dataset=validation,
        processing_class=codec.tokenizer,
        callbacks=[ManifestCallback(Timer(), best_of(last) if last else None, group)],
        sorts=sft.batch_size > sft.micro_batch_size,
        group=group,
    )
    trainer.remove_callback(PrinterCallback)  # prints a line per step
    if group.is_main:
        note(folder, "from", step_of(last))
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except pickle.UnpicklingError as error:  # Trainer loads its own files with weights_only
        raise ValueError(f"{last}: holds more than tensors and plain values: {error}") from error
    log = trainer.state.log_history
    losses = [entry["loss"] for entry in log if "loss" in entry]
    epoch = losses[-(len(losses) // phase.epochs) :]
    least = min(entry["eval_loss"] for entry in log if "eval_loss" in entry)
    return group.broadcast({"loss": sum(epoch) / len(epoch), "eval_loss": least})
