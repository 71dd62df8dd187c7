"""Stage `sft`: supervised fine-tuning with TRL's SFTTrainer, loss on the answer alone.

python -m stages.sft --code data/check/sft.json --base data/base --rows data/rows/sft
    --groups data/rows/rm/train.jsonl --out data/sft --metrics metrics/sft.json
"""

import shutil
from pathlib import Path
from typing import Any

import click

from stages.cli.options import one_sentence_errors, path_options
from stages.rlhf import runtime
from stages.rlhf.chat import Codec
from stages.rlhf.config.base import load
from stages.rlhf.config.sft import SftParams
from stages.rlhf.decoding.generation import greedy_responses
from stages.rlhf.model.roles import Roles
from stages.rlhf.model.store import load_causal_lm, load_tokenizer, save_card, save_on_every_host
from stages.rlhf.records import (
    RmRow,
    SftRow,
    details_file,
    read_rows,
    runtime_file,
    subset,
    write_stage_metrics,
)
from stages.rlhf.runs import sharding
from stages.rlhf.runs.parallel import run_parallel
from stages.rlhf.runs.process_group import SINGLE_PROCESS, ProcessGroup
from stages.rlhf.runs.provenance import Stage
from stages.rlhf.runtime import derive_seed
from stages.rlhf.train.sft_trainer import Phase, encoded, fit

ROLE = "default"  # any other name, and Trainer cannot find the best epoch's checkpoint again

HEADLINE = ("loss", "eval_loss", "eos_rate", "exact")


def phases(params: SftParams, rows: Path, groups: Path) -> list[Phase]:
    """The demonstrations; then, where sft.data is rank1, each group's best-ranked answer.

    The second is the plain rival of RLHF: what the reward model reads, without reinforcement.
    """
    demonstrations = read_rows(rows / "train.jsonl", SftRow)
    found = [Phase(demonstrations, params.base_model.sft.epochs, derive_seed(params.seed, "sft"))]
    if params.sft.data == "rank1":
        best = [row.demonstration() for row in read_rows(groups, RmRow)]
        found.append(Phase(best, params.sft.rank1_epochs, derive_seed(params.seed, "sft", "rank1")))
    return found


def losses(found: list[dict[str, float]]) -> dict[str, Any]:
    """The last phase's losses; where demonstrations came before it, theirs and whether it won."""
    *before, last = found
    if not before:
        return last
    better = last["eval_loss"] < before[0]["eval_loss"]
    return {**last, "demonstrations": before[0], "beats_demonstrations": better}


def trainable(params: SftParams, base: Path) -> Roles:
    """The base model, all of it or an adapter open to training.

    Raises ValueError where all of it would be trained in shares.
    """
    method = params.base_model.sft.method
    if method == "full" and sharding.wanted():
        raise ValueError(
            f"sft.method is {method}, which trains the weights that {sharding.SHARD}=1 spreads over"
            " several cards; expected lora, or 0"
        )
    backbone = load_causal_lm(base, params.base_model.dtype)
    save_on_every_host(backbone)
    roles = Roles(backbone, params.base_model.lora)
    if method == "lora":
        roles.add(ROLE)
        roles.model.set_adapter(ROLE)
    else:
        backbone.requires_grad_(True)
    return roles


def save(roles: Roles, codec: Codec, method: str, base: Path, out: Path) -> None:
    """Write the adapter, or the whole model with its tokenizer."""
    shutil.rmtree(out, ignore_errors=True)
    if method == "lora":
        roles.save(ROLE, out)
    else:
        roles.model.save_pretrained(out)
        codec.tokenizer.save_pretrained(out)
    save_card(out, "sft", {"base": base}, method=method)


def train(
    params: SftParams,
    base: Path,
    rows: Path,
    groups: Path,
    out: Path,
    work: Path,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Train phase after phase, save from the main process, and measure on validation."""
    base_model = params.base_model
    codec = Codec(load_tokenizer(base))
    roles = trainable(params, base)
    validation = subset(
        read_rows(rows / "validation.jsonl", SftRow),
        params.validation_rows,
        derive_seed(params.seed, "validation"),
    )
    held = encoded(validation, codec)
    found = [
        fit(roles.model, codec, params, part, held, work / f"phase{i}", process_group)
        for i, part in enumerate(phases(params, rows, groups))
    ]
    if process_group.is_main:
        save(roles, codec, base_model.sft.method, base, out)
    roles.model.eval()
    messages = [row.message for row in validation]
    limits = base_model.max_answer_tokens, base_model.generate
    answers = greedy_responses(roles.model, codec, messages, *limits, process_group)
    right = [
        r.spoken(a.text) == r.spoken(r.answer) for a, r in zip(answers, validation, strict=True)
    ]
    return losses(found) | {
        "eos_rate": sum(answer.ended for answer in answers) / len(answers),
        "exact": sum(right) / len(answers),
    }


@click.command(help=__doc__)
@path_options("code", "base", "rows", "groups", "out", "metrics")
def main(code: Path, base: Path, rows: Path, groups: Path, out: Path, metrics: Path) -> None:
    """Fine-tune on demonstrations, and on the best answers of groups if configured."""
    clock = runtime.Clock()
    seconds = runtime_file(metrics)
    inputs = {"base": base, "groups": groups}
    inputs |= {part: rows / f"{part}.jsonl" for part in ("train", "validation")}
    with one_sentence_errors():
        params = load(SftParams)
        runtime.start(params.threads, params.seed, "sft")

        def make(work: Path, process_group: ProcessGroup) -> None:
            found = train(params, base, rows, groups, out, work, process_group)
            if process_group.is_main:
                write_stage_metrics(metrics, found, HEADLINE)
                clock.write(seconds)

        outs = [out, metrics, details_file(metrics), seconds]
        run_parallel(Stage("sft", params, code, inputs), outs, make)


if __name__ == "__main__":
    main()
