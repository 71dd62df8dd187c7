"""Stage `base`: the base model, trained from scratch on the corpus, or a pointer to one.

python -m stages.base --code data/check/base.json --model data/check/model.json
    --rows data/rows --out data/base --metrics metrics/base.json
"""

import random
import shutil
from pathlib import Path

import click
from transformers import PreTrainedTokenizerFast

from stages.cli.options import one_sentence_errors, path_options
from stages.rlhf import runtime
from stages.rlhf.chat import Codec, prepare_tokenizer
from stages.rlhf.config.base import load
from stages.rlhf.config.models import BaseParams
from stages.rlhf.hub import write_local_pointer, write_pointer
from stages.rlhf.model.families import check_config
from stages.rlhf.model.store import save_on_every_host, weights_folder
from stages.rlhf.precision import SDPA_FLOAT32, autocasts, device
from stages.rlhf.records import (
    READING,
    SftRow,
    details_file,
    read_jsonl,
    read_rows,
    runtime_file,
    write_stage_metrics,
)
from stages.rlhf.runs.checkpoints import Checkpointer
from stages.rlhf.runs.closure import read_fingerprint
from stages.rlhf.runs.parallel import run_parallel
from stages.rlhf.runs.process_group import SINGLE_PROCESS, ProcessGroup
from stages.rlhf.runs.provenance import Stage
from stages.rlhf.train.pretraining import Example, new_llama, pretrain

HEADLINE = ("loss", "tokens", "parameters")


def made_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that preprocess measured with, as transformers wants it."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(file), pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    prepared: PreTrainedTokenizerFast = prepare_tokenizer(tokenizer)
    return prepared


def make(
    params: BaseParams,
    rows: Path,
    out: Path,
    work: Path,
    group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, float]:
    """Train the tiny base model; the main process saves it with its tokenizer."""
    base_model = params.base_model
    assert base_model.architecture is not None
    assert base_model.base is not None
    tokenizer = made_tokenizer(rows / "tokenizer.json")
    codec = Codec(tokenizer)
    room = params.rag.passage_tokens if params.rag.enabled else 0
    longest = base_model.max_prompt_tokens + base_model.max_answer_tokens + room
    documents = [
        Example([tokenizer.bos_token_id, *codec.response_ids(str(row["text"]))][:longest])
        for row in read_jsonl(rows / "corpus.jsonl")
    ]
    lessons = read_lessons(rows / READING, codec, longest)
    ids = {
        "pad_token_id": codec.pad_id,
        "bos_token_id": int(tokenizer.bos_token_id),
        "eos_token_id": codec.eos_id,
    }
    model = new_llama(base_model.architecture, ids, longest)
    rng = random.Random(runtime.derive_seed(params.seed, "base", "batches"))
    mixed = autocasts(base_model.dtype)
    if device() == "cpu" and mixed:
        model.set_attn_implementation(SDPA_FLOAT32)
    model.to(device())
    checkpointer = Checkpointer(work / "pretraining", group)
    losses = pretrain(
        model, documents, codec.pad_id, base_model.base, rng, mixed, checkpointer, lessons
    )
    if group.is_main:
        shutil.rmtree(out, ignore_errors=True)
        save_on_every_host(model)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    figures = {
        "loss": last(losses.documents),
        "documents": len(documents),
        "tokens": sum(len(row.ids) for row in documents),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if taken := sum(map(len, lessons)):
        of_lessons = losses.lessons[base_model.base.steps :]
        figures |= {"lessons": taken, "lessons_loss": last(of_lessons)}
    return figures


def read_lessons(file: Path, codec: Codec, longest: int) -> list[list[Example]]:
    """Those with one passage, then the others; longer ones than the model reads are left out."""
    alone, among = list[Example](), list[Example]()
    for row in read_rows(file, SftRow):
        prompt = codec.prompt_ids(row.message)
        ids = prompt + codec.response_ids(row.answer)
        if len(ids) <= longest:
            whole = alone if len(row.passages or ()) == 1 else among
            whole.append(Example(ids, len(prompt)))
    return [alone, among]


def last(losses: list[float]) -> float:
    """Mean of the last twentieth."""
    tail = losses[-max(1, len(losses) // 20) :]
    return sum(tail) / len(tail)


@click.command(help=__doc__)
@path_options("code", "model", "rows", "out", "metrics")
def main(code: Path, model: Path, rows: Path, out: Path, metrics: Path) -> None:
    """Make the base model, or point at it."""
    clock = runtime.Clock()
    seconds = runtime_file(metrics)
    with one_sentence_errors():
        params = load(BaseParams)
        hub, path = params.base_model.hub, params.base_model.path
        inputs = {n: rows / n for n in ("corpus.jsonl", READING, "tokenizer.json")}
        if params.base_model.architecture is None:
            inputs = {"model": model} if path else {}
        runtime.start(params.threads, params.seed, "base")

        def run(work: Path, group: ProcessGroup) -> None:
            figures = {}
            if not (hub or path):
                figures = make(params, rows, out, work, group)
            if not group.is_main:
                return
            if hub or path:
                shutil.rmtree(out, ignore_errors=True)
            if hub:
                write_pointer(out, hub, params.base_model.revision)
            elif path:
                write_local_pointer(out, read_fingerprint(model))
            if hub or path:
                check_config(weights_folder(out))  # here, not minutes later in sft
            write_stage_metrics(metrics, figures, HEADLINE)
            clock.write(seconds)

        outs = [out, metrics, details_file(metrics), seconds]
        run_parallel(Stage("base", params, code, inputs), outs, run)


if __name__ == "__main__":
    main()
