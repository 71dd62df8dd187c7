"""The two passes of preprocess: clean rows into a spool; then assign splits, cap and write.

    source -> clean -> spool -> splits -> corpus, tokenizer -> caps -> data/preprocess

Memory grows with the number of distinct questions only, not with rows or answers.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from stages.rlhf.config.preprocess import PreprocessConfig, PreprocessParams
from stages.rlhf.hub import fetch
from stages.rlhf.ingest import needs
from stages.rlhf.ingest.cleaning import Unusable, clean_item
from stages.rlhf.ingest.rejects import Ledger
from stages.rlhf.ingest.sources import Reader
from stages.rlhf.ingest.sources.items import PARTS, Part
from stages.rlhf.ingest.splitting.near_duplicates import Crowd
from stages.rlhf.ingest.splitting.splits import SIDES, TRAIN, assign
from stages.rlhf.ingest.spool import Spool, open_spool
from stages.rlhf.ingest.summary import lines
from stages.rlhf.ingest.token_caps import Caps
from stages.rlhf.ingest.tokenizer import check_window, load_tokenizer, train_tokenizer
from stages.rlhf.ingest.writing import write_splits
from stages.rlhf.keys import question_key
from stages.rlhf.korean import clean
from stages.rlhf.records import read_jsonl, write_jsonl

# Pieces of the chat template, which a tokenizer of our own should encode in few tokens.
TEMPLATE_PIECES: Final = ("질문: ", "\n답변:\n")


def prepare(params: PreprocessParams, out: Path) -> tuple[dict[str, Any], list[str]]:
    """Read the source in `params.data`, write the files of data/preprocess.

    Returns the metrics, and the summary, a line each.

    Raises ValueError if the source is unreadable or of another format, or has too few rows for a
    later stage.
    """
    settings, model = params.preprocess, params.base_model
    tokenizer = None
    if model.architecture is None:
        folder = model.path or fetch(
            str(model.hub), model.revision, ["tokenizer.json", "config.json"]
        )
        tokenizer = load_tokenizer(folder)
        name = str(model.path or model.hub)
        check_window(folder, name, model.max_prompt_tokens, model.max_answer_tokens)
    reader = Reader(params.data.source, params.data.path, settings.max_items, params.data.columns)
    out.mkdir(parents=True, exist_ok=True)
    with (
        (out / "rejects.jsonl").open("w", encoding="utf-8", newline="\n") as rejects,
        open_spool(out) as spool,
    ):
        ledger = Ledger(rejects)
        for part in PARTS:
            if not _clean_part(reader, part, spool, ledger):
                needs.check(ledger.without_rows(part), {}, params, ledger.examples)
        assigned, crowds = _split(spool, settings)
        if reader.has_corpus:
            written = write_jsonl(out / "corpus.jsonl", _corpus(reader, spool, ledger))
            ledger.written["corpus"]["train"] = written
        if tokenizer is None:
            tokenizer = _own_tokenizer(params, spool, out, reader.has_corpus)
        tokenizer.save(str(out / "tokenizer.json"))
        caps = Caps(
            tokenizer, model.max_prompt_tokens, model.max_answer_tokens, settings.long_answers
        )
        write_splits(out, spool, caps, ledger)
        renamed = spool.renamed
    report = ledger.report() | {"renamed_ids": renamed}
    _check_columns(params, reader)
    needs.check(report, assigned, params, ledger.examples)
    if not reader.has_corpus:
        report["corpus"]["from_rows"] = write_jsonl(out / "corpus.jsonl", _texts(out))
    summary = list(lines(report, ledger, reader, assigned, crowds))
    return report | {"assigned": assigned, "tokens": caps.percentiles()}, summary


def _split(spool: Spool, settings: PreprocessConfig) -> tuple[dict[str, int], tuple[Crowd, ...]]:
    """Assign each question to a split; returns how many were assigned here, and large groups."""
    keys = spool.keys()
    assignment = assign(keys, settings)
    spool.set_splits(keys, assignment)
    counts = np.bincount(assignment.sides[assignment.assigned], minlength=len(SIDES))
    assigned = {str(SIDES[side]): int(counts[side]) for side in range(TRAIN + 1, len(SIDES))}
    return assigned, assignment.crowds


def _clean_part(reader: Reader, part: Part, spool: Spool, ledger: Ledger) -> int:
    """Spool the clean rows of a part; returns their number."""
    kept = 0
    for item in tqdm(reader.items(part), desc=f"read {part}", unit=" rows", disable=None):
        ledger.read[part] += 1
        try:
            cleaned = clean_item(item)
        except Unusable as unusable:
            why = unusable.detail and f"{reader.position}: {unusable.detail}"
            ledger.reject(part, item.id, unusable.reason, item.raw, why)
            continue
        ledger.drop(cleaned.row, cleaned.dropped)
        ledger.ignore(part, cleaned.ignored)
        spool.add(cleaned.row)
        kept += 1
    return kept


def _corpus(reader: Reader, spool: Spool, ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Clean texts of the source's own corpus, except those that contain a held-out question."""
    bar = tqdm(
        reader.corpus(), desc="read corpus", unit=" rows", delay=5, mininterval=5, leave=False
    )
    for number, row in enumerate(bar, 1):
        ledger.read["corpus"] += 1
        name = f"corpus-{number:08d}"
        raw = row.get("text") if isinstance(row, dict) else None
        text = clean(raw) if isinstance(raw, str) else ""
        if not text:
            found = ", ".join(map(str, row)) if isinstance(row, dict) else repr(row)
            ledger.reject("corpus", name, "malformed", row, f"no text under text: {found:.200}")
        elif any(
            spool.split_of(key) not in (None, "train")
            for line in text.split("\n")
            if (key := question_key(line))
        ):
            ledger.reject("corpus", name, "leak", row)
        else:
            yield {"text": text}


def _own_tokenizer(
    params: PreprocessParams, spool: Spool, out: Path, has_corpus: bool
) -> Tokenizer:
    """A tokenizer trained on training text only."""
    architecture = params.base_model.architecture
    assert architecture is not None  # ensured by config.models: no hub id, so an architecture
    rows = (
        text
        for part in PARTS
        for spooled in spool.rows(part, "train")
        if spooled.fits
        for text in (spooled.row.question, *(answer.text for answer in spooled.row.answers))
    )
    texts = (row["text"] for row in read_jsonl(out / "corpus.jsonl")) if has_corpus else ()
    return train_tokenizer(chain(rows, texts), architecture.vocab_size, TEMPLATE_PIECES)


def _texts(out: Path) -> Iterator[dict[str, str]]:
    """Training rows as plain text, for a source without a corpus of its own."""
    for row in read_jsonl(out / "sft" / "train.jsonl"):
        yield {"text": f"{row['question']}\n{row['answer']}"}
    for row in read_jsonl(out / "rm" / "train.jsonl"):
        for answer in row["answers"]:
            yield {"text": f"{row['question']}\n{answer}"}


def _check_columns(params: PreprocessParams, reader: Reader) -> None:
    for name, column in params.data.columns.items():
        if column not in reader.used:
            raise ValueError(f"data.columns.{name} is {column!r}, a key that no row has")
