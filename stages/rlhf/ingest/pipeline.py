"""The two passes of preprocess: clean rows into a spool; then assign splits, cap and write.

    source -> clean -> spool -> splits -> corpus, tokenizer -> caps -> data/preprocess

Memory grows with the number of distinct questions only, not with rows or answers.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer
from tqdm import tqdm

from stages.rlhf.config.preprocess import PreprocessParams
from stages.rlhf.ingest.cleaning import Answer, Clean, Reason, Unusable, clean_item, settle
from stages.rlhf.ingest.rejects import Ledger
from stages.rlhf.ingest.sources import Reader
from stages.rlhf.ingest.sources.items import PARTS, Part
from stages.rlhf.ingest.splits import assign
from stages.rlhf.ingest.spool import Spool, open_spool
from stages.rlhf.ingest.token_caps import Caps
from stages.rlhf.ingest.tokenizer import load_hub_tokenizer, train_tokenizer
from stages.rlhf.korean import clean, question_key
from stages.rlhf.records import PromptRow, RmRow, SftRow, read_jsonl, write_jsonl

# Pieces of the chat template, which a tokenizer of our own should encode in few tokens.
TEMPLATE_PIECES: Final = ("질문: ", "\n답변:\n")
_THIRDS: Final = ("train", "validation", "test")
_FILES: Final[dict[Part, dict[str, str]]] = {
    "sft": {split: f"sft/{split}.jsonl" for split in _THIRDS},
    "rm": {
        **{split: f"rm/{split}.jsonl" for split in _THIRDS},
        "judge_train": "judge/train.jsonl",
        "judge_test": "judge/test.jsonl",
    },
    "ppo": {split: f"ppo/{split}.jsonl" for split in _THIRDS},
}
_SPLITS: Final = (*_THIRDS, "judge_train", "judge_test")
# Files that must not be empty, and the parameter that controls their size.
_NEEDED: Final[tuple[tuple[Part, str, str], ...]] = (
    ("sft", "train", "preprocess.max_items"),
    ("rm", "train", "preprocess.max_items"),
    ("ppo", "train", "preprocess.max_items"),
    ("sft", "validation", "preprocess.validation_share"),
    ("sft", "test", "preprocess.test_share"),
)


def prepare(params: PreprocessParams, out: Path) -> dict[str, Any]:
    """Read the source in `params.data`, write the files of data/preprocess, return the metrics.

    Raises ValueError if the source is unreadable or of another format, or a needed split is empty.
    """
    settings, model = params.preprocess, params.base_model
    tokenizer = load_hub_tokenizer(model.hub, model.revision) if model.hub else None
    reader = Reader(params.data.source, params.data.path, settings.max_items)
    out.mkdir(parents=True, exist_ok=True)
    with (
        (out / "rejects.jsonl").open("w", encoding="utf-8", newline="\n") as rejects,
        open_spool(out) as spool,
    ):
        ledger = Ledger(rejects)
        for part in PARTS:
            _clean_part(reader, part, spool, ledger)
        keys = spool.keys()
        spool.set_splits(keys, assign(keys, settings))
        del keys
        if reader.has_corpus:
            lines = write_jsonl(out / "corpus.jsonl", _corpus(reader, spool, ledger))
            ledger.written["corpus"]["train"] = lines
        (out / "tokenizer.json").unlink(missing_ok=True)
        if tokenizer is None:
            tokenizer = _own_tokenizer(params, out, spool, reader.has_corpus)
        caps = Caps(
            tokenizer, model.max_prompt_tokens, model.max_answer_tokens, settings.long_answers
        )
        for part in PARTS:
            for split in _SPLITS:
                _write_split(out, part, split, spool, caps, ledger)
    report = ledger.report()
    _check_needed(report, params)
    if not reader.has_corpus:
        report["corpus"]["from_rows"] = write_jsonl(out / "corpus.jsonl", _texts(out))
    return report | {"tokens": caps.percentiles()}


def _clean_part(reader: Reader, part: Part, spool: Spool, ledger: Ledger) -> None:
    for item in tqdm(reader.items(part), desc=f"read {part}", unit=" rows", disable=None):
        ledger.read[part] += 1
        try:
            row, dropped = clean_item(item)
        except Unusable as unusable:
            ledger.reject(part, item.id, unusable.reason, item.raw)
            continue
        ledger.drop(row, dropped)
        spool.add(row)


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
            ledger.reject("corpus", name, "malformed", row)
        elif any(
            spool.split_of(question_key(line)) not in (None, "train") for line in text.split("\n")
        ):
            ledger.reject("corpus", name, "leak", row)
        else:
            yield {"text": text}


def _own_tokenizer(
    params: PreprocessParams, out: Path, spool: Spool, has_corpus: bool
) -> Tokenizer:
    """A tokenizer trained on training text only, saved as tokenizer.json."""
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
    tokenizer = train_tokenizer(chain(rows, texts), architecture.vocab_size, TEMPLATE_PIECES)
    tokenizer.save(str(out / "tokenizer.json"))
    return tokenizer


def _write_split(
    out: Path, part: Part, split: str, spool: Spool, caps: Caps, ledger: Ledger
) -> None:
    """Write one file; rows that leak, repeat, are too long or belong to no file are rejected."""

    def kept() -> Iterator[PromptRow]:
        seen = bytearray(spool.questions)
        rows = spool.rows(part, split)
        for spooled in tqdm(
            rows, desc=f"write {part} {split}", unit=" rows", delay=5, mininterval=5, leave=False
        ):
            row = spooled.row
            reason: Reason | None = None
            if not spooled.fits or split not in _FILES[part]:
                judged = split.startswith("judge") and part != "rm"
                reason = "judge_question" if judged else "leak"
            elif seen[spooled.question]:
                reason = "duplicate_question"
            try:
                if reason:
                    raise Unusable(reason)
                record = _cap(row, caps, ledger)
            except Unusable as unusable:
                ledger.reject(part, row.id, unusable.reason, _plain(row))
                continue
            seen[spooled.question] = True
            yield record

    if split not in _FILES[part]:
        for row in kept():
            raise AssertionError(f"{part} {row.id} is kept, but {split} has no file for it")
        return
    ledger.written[part][split] = write_jsonl(out / _FILES[part][split], kept())


def _cap(row: Clean, caps: Caps, ledger: Ledger) -> PromptRow:
    """The row as written to disk. Raises Unusable if question or answers are too long."""
    head = {"id": row.id, "question": row.question, **row.labels}
    phrase = head.pop("must_contain")
    fits = caps.question_fits(row.question)
    if row.part == "ppo":
        if not fits:
            raise Unusable("too_long")
        return PromptRow.model_validate(head)
    if row.part == "sft":
        full = row.answers[0].text
        text = caps.fit_answer(full, "sft_answer")
        if not fits or text is None:
            raise Unusable("too_long")
        return SftRow.model_validate(
            head | {"answer": text, "must_contain": phrase, "clipped": text != full}
        )
    return _cap_group(row, head, fits, caps, ledger)


def _cap_group(
    row: Clean, head: dict[str, Any], fits: bool, caps: Caps, ledger: Ledger
) -> PromptRow:
    texts = [caps.fit_answer(answer.text, "rm_answer") for answer in row.answers]
    if not fits:
        raise Unusable("too_long")
    capped = tuple(
        Answer(text or answer.text, answer.rank, answer.defect)
        for answer, text in zip(row.answers, texts, strict=True)
    )
    flaws: list[Reason | None] = ["too_long" if text is None else None for text in texts]
    try:
        answers, dropped = settle(capped, flaws)
    except Unusable as unusable:  # the cap left too few answers
        raise Unusable("too_long") from unusable
    ledger.drop(row, dropped)
    return RmRow.model_validate(
        head
        | {
            "answers": tuple(answer.text for answer in answers),
            "ranks": tuple(answer.rank for answer in answers),
            "defects": None
            if answers[0].defect is None
            else tuple(answer.defect for answer in answers),
        }
    )


def _plain(row: Clean) -> dict[str, Any]:
    """A clean row for the rejects file."""
    answers = [{"answer": a.text, "rank": a.rank} for a in row.answers]
    labels = {name: value for name, value in row.labels.items() if value is not None}
    return {"question": row.question, "answers": answers, "side": row.side, **labels}


def _texts(out: Path) -> Iterator[dict[str, str]]:
    """Training rows as plain text, for a source without a corpus of its own."""
    for row in read_jsonl(out / "sft" / "train.jsonl"):
        yield {"text": f"{row['question']} {row['answer']}"}
    for row in read_jsonl(out / "rm" / "train.jsonl"):
        for answer in row["answers"]:
            yield {"text": f"{row['question']} {answer}"}


def _check_needed(report: dict[str, Any], params: PreprocessParams) -> None:
    for part, split, key in _NEEDED:
        if report[part]["rows"][split] == 0:
            raise ValueError(
                f"{params.data.path}: no rows left for {part} {split}: of {report[part]['read']}"
                f" {part} rows read, {report[part]['kept']} are kept"
                f" (rejected: {report[part]['rejected'] or 'none'}); see {key}"
            )
