"""Stage `index`: passages of a library, found by question; rows with passages, or as they are.

python -m stages.index --code data/check/index.json --rows data/preprocess
    --embedder data/embedder --out data/index --out-rows data/rows --metrics metrics/index.json

The library is `rag.path` of params.yaml, by default the corpus of the data.
Without `rag.enabled`, data/rows is what preprocess wrote, byte for byte, and data/index is empty.
data/rows/reading.jsonl has the lessons in reading for a model made here (none without it).
"""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from stages.cli.options import one_sentence_errors, path_options
from stages.rlhf import runtime
from stages.rlhf.chat import cited, declines, encode_as_text
from stages.rlhf.config.base import load
from stages.rlhf.config.preprocess import IndexParams
from stages.rlhf.evidence.reading import Names, lessons
from stages.rlhf.measure.win_rate import mean_and_interval
from stages.rlhf.records import (
    READING,
    WITHOUT_EVIDENCE,
    PromptRow,
    RmRow,
    Row,
    SftRow,
    read_rows,
    runtime_file,
    write_jsonl,
    write_stage_metrics,
)
from stages.rlhf.retrieval.library import Library
from stages.rlhf.retrieval.measures import DEPTH, measure
from stages.rlhf.retrieval.mix import Mix
from stages.rlhf.retrieval.passages import Corpus, split
from stages.rlhf.runs.provenance import Stage, recorded

FILES = ("corpus.jsonl", "tokenizer.json")  # of data/preprocess, next to the rows
SCHEMAS: Mapping[str, type[PromptRow]] = {
    "sft": SftRow,
    "rm": RmRow,
    "judge": RmRow,
    "ppo": PromptRow,
}
HELD_OUT = ("validation", "test")
MEASURES = ("hit@1", "hit@5", "mrr@10")
NOT_FOUND = {-1}  # no passage
RESAMPLES = 1000
HEADLINE = ("enabled", "passages", "set_aside", "retrieval.hit@1", "retrieval.hit@5")


def copy_rows(rows: Path, out: Path) -> None:
    """What later stages read of data/preprocess."""
    for part in SCHEMAS:
        shutil.copytree(rows / part, out / part)
    for name in FILES:
        shutil.copyfile(rows / name, out / name)
    write_jsonl(out / READING, ())


def training_questions(rows: Path) -> list[str]:
    """All that are trained on."""
    parts = (read_rows(rows / part / "train.jsonl", schema) for part, schema in SCHEMAS.items())
    return [row.question for part in parts for row in part]


def write_rows(mix: Mix, rows: Path, out: Path) -> dict[str, Any]:
    """All rows, most of them with passages; how many of each kind, by file."""
    out.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(rows / name, out / name)
    return {
        "sft": _write(rows, out, "sft", SftRow, mix.sft, mix.held_out),
        "rm": _write(rows, out, "rm", RmRow, mix.group, mix.group),
        "judge": _write(rows, out, "judge", RmRow, mix.group, mix.group),
        "ppo": _write(rows, out, "ppo", PromptRow, mix.prompt, mix.found),
    }


def _write(
    rows: Path,
    out: Path,
    part: str,
    schema: type[Row],
    of_training: Callable[[Row], Row],
    of_held_out: Callable[[Row], Row],
) -> dict[str, dict[str, int]]:
    counts = {}
    for file in sorted((rows / part).glob("*.jsonl")):
        give = of_held_out if file.stem in HELD_OUT else of_training
        bar = tqdm(read_rows(file, schema), desc=f"{part} {file.stem}", delay=5, mininterval=5)
        made = [give(row) for row in bar]
        write_jsonl(out / part / file.name, made)
        counts[file.stem] = dict(sorted(Counter(map(kind_of, made)).items()))
    return counts


def write_lessons(library: Library, rounds: int, seed: int, out: Path) -> int:
    """Training rows with passages, under other names; their number. `out`: the rows."""
    if not rounds:
        return write_jsonl(out / READING, ())
    demonstrations = read_rows(out / "sft" / "train.jsonl", SftRow)
    groups = read_rows(out / "rm" / "train.jsonl", RmRow)
    rows = demonstrations + [row.demonstration() for row in groups]
    mentions = (text for row in rows if row.passages for text in (row.question, row.answer))
    return write_jsonl(out / READING, lessons(rows, Names(library.texts, mentions), rounds, seed))


def kind_of(row: PromptRow) -> str:
    """What its passages are for: closed (it has none), refused, cited, or unlabelled."""
    if row.passages is None:
        return "closed"
    answer = row.answer if isinstance(row, SftRow) else None
    if isinstance(row, RmRow):
        answer = row.best_answer
    if answer is None or (cited(answer) is None and not declines(answer)):
        return "unlabelled"
    return "refused" if declines(answer) else "cited"


def retrieved(mix: Mix, rows: list[SftRow], seed: int) -> dict[str, Any]:
    """How well passages are found for questions that name a phrase of the answer, by kind."""
    rows = [row for row in rows if row.must_contain]
    if not rows:
        return {}
    found = [mix.library.find(row.question, DEPTH) for row in rows]
    supporting = [
        {i for i in passages if mix.supports(i, row.question, row.answer, row.must_contain)}
        for passages, row in zip(found, rows, strict=True)
    ]
    values = measure(found, [right or NOT_FOUND for right in supporting])
    kinds = np.array([row.kind or "" for row in rows])
    figures = _means(values, np.ones(len(rows), dtype=bool), seed)
    if named := sorted(set(kinds) - {""}):
        figures["by_kind"] = {kind: _means(values, kinds == kind, seed) for kind in named}
    return figures


def _means(values: Mapping[str, Any], chosen: Any, seed: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"questions": int(chosen.sum())}
    for name in MEASURES:
        figures |= mean_and_interval(name, values[name][chosen], RESAMPLES, seed, "no question")
    return figures


def make(
    params: IndexParams,
    rows: Path,
    embedder: Path,
    out: Path,
    out_rows: Path,
    clock: runtime.Clock,
) -> dict[str, Any]:
    """Index the library, write the rows; figures of both."""
    rag = params.rag
    corpus = Corpus(params.rag.path)
    passages = list(split(corpus.texts(), rag.characters))
    dense = embedder if rag.dense else None
    built = Library.build(passages, rag.tokenisers, out, dense, questions=training_questions(rows))
    clock.lap("build")
    tokenizer = encode_as_text(Tokenizer.from_file(str(rows / "tokenizer.json")))

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    mix = Mix(built, rag, runtime.derive_seed(params.seed, "rag"), tokens)
    figures: dict[str, Any] = {"enabled": True, "passages": len(built.texts)}
    figures |= {
        "set_aside": corpus.set_aside.total(),
        "set_aside_by_reason": dict(corpus.set_aside),
    }
    figures["rows"] = write_rows(mix, rows, out_rows)
    seed = runtime.derive_seed(params.seed, "rag", "reading")
    figures["reading"] = write_lessons(built, rag.reading, seed, out_rows)
    test = read_rows(rows / "sft" / "test.jsonl", SftRow)
    gone = [made for row in test if (made := mix.without_evidence(row)) is not None]
    write_jsonl(out / WITHOUT_EVIDENCE, gone)
    clock.lap("rows")
    figures["without_evidence"] = len(gone)
    figures["retrieval"] = retrieved(
        mix, test, runtime.derive_seed(params.seed, "rag", "resamples")
    )
    clock.lap("measure")
    return figures


@click.command(help=__doc__)
@path_options("code", "rows", "embedder", "out", "out-rows", "metrics")
def main(code: Path, rows: Path, embedder: Path, out: Path, out_rows: Path, metrics: Path) -> None:
    """Index the library and show its passages with the rows, where that is enabled."""
    clock = runtime.Clock()
    with one_sentence_errors():
        params = load(IndexParams)
        inputs = {"rows": rows, "library": params.rag.path, "embedder": embedder}
        for folder in (out, out_rows):
            shutil.rmtree(folder, ignore_errors=True)
        out.mkdir(parents=True)
        with recorded(Stage("index", params, code, inputs), out):
            figures: dict[str, Any] = {"enabled": False}
            if params.rag.enabled:
                figures = make(params, rows, embedder, out, out_rows, clock)
            else:
                copy_rows(rows, out_rows)
            write_stage_metrics(metrics, figures, HEADLINE)
            clock.write(runtime_file(metrics))


if __name__ == "__main__":
    main()
