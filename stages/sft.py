"""Stage `sft`: supervised fine-tuning with TRL's SFTTrainer, loss on the answer alone.

python -m stages.sft --base data/base --rows data/preprocess/sft --out data/sft
    --metrics metrics/sft.json
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from stages.rlhf import runtime
from stages.rlhf.chat import Codec
from stages.rlhf.config import Params, load_params
from stages.rlhf.generation import answer_questions
from stages.rlhf.models import Roles, load_causal_lm, load_tokenizer, save_card
from stages.rlhf.precision import autocasts
from stages.rlhf.records import SftRow, read_rows, write_metrics

ROLE = "default"  # any other name, and Trainer cannot find the best epoch's checkpoint again


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


def trainer_config(params: Params, folder: str, rows: int) -> SFTConfig:
    """SFTConfig for the chosen model; nothing is truncated here, preprocess has seen to length."""
    chosen = params.chosen
    steps = chosen.sft.epochs * -(-rows // chosen.sft.batch_size)
    return SFTConfig(
        output_dir=folder,
        num_train_epochs=chosen.sft.epochs,
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
        seed=runtime.derive_seed(params.seed, "sft") % 2**32,
        full_determinism=False,
    )


def train(params: Params, base: Path, rows: Path, out: Path) -> dict[str, Any]:
    """Train, keep the epoch with the least validation loss, save, and measure on validation."""
    chosen = params.chosen
    codec = Codec(load_tokenizer(base))
    backbone = load_causal_lm(base, chosen.dtype)
    roles = Roles(backbone, chosen.lora)
    if chosen.sft.method == "lora":
        roles.add(ROLE)
        roles.model.set_adapter(ROLE)
    else:
        backbone.requires_grad_(True)
    training = read_rows(rows / "train.jsonl", SftRow)
    validation = read_rows(rows / "validation.jsonl", SftRow)
    with tempfile.TemporaryDirectory(prefix="koqa-sft-") as folder:
        trainer = SFTTrainer(
            model=roles.model,
            args=trainer_config(params, folder, len(training)),
            train_dataset=encoded(training, codec),
            eval_dataset=encoded(validation, codec),
            processing_class=codec.tokenizer,
        )
        trainer.train()
    log = trainer.state.log_history
    shutil.rmtree(out, ignore_errors=True)
    if chosen.sft.method == "lora":
        roles.save(ROLE, out)
    else:
        roles.model.save_pretrained(out)
        codec.tokenizer.save_pretrained(out)
    save_card(out, "sft", {"base": base}, method=chosen.sft.method)
    roles.model.eval()
    questions = [row.question for row in validation]
    answers = answer_questions(
        roles.model, codec, questions, chosen.max_answer_tokens, chosen.generate.batch_size
    )
    return {
        "loss": [entry["loss"] for entry in log if "loss" in entry][-1],
        "eval_loss": min(entry["eval_loss"] for entry in log if "eval_loss" in entry),
        "eos_rate": sum(answer.ended for answer in answers) / len(answers),
        "exact": sum(a.text == r.answer for a, r in zip(answers, validation, strict=True))
        / len(answers),
    }


@click.command(help=__doc__)
@click.option("--base", type=click.Path(path_type=Path), required=True)
@click.option("--rows", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--metrics", type=click.Path(path_type=Path), required=True)
def main(base: Path, rows: Path, out: Path, metrics: Path) -> None:
    """Fine-tune the base model on demonstrations."""
    clock = runtime.Clock()
    try:
        params = load_params()
        runtime.start(params.threads, params.seed, "sft")
        figures = train(params, base, rows, out)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    write_metrics(metrics, figures)
    clock.write(metrics.parent / "runtime" / metrics.name)


if __name__ == "__main__":
    main()
