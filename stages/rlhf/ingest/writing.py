"""The second pass: the files of each part and split, one row per question, capped in tokens.

Several sft rows on one question: training keeps all whose answers differ. Several rm rows: those
that share answers become one group (orders.py), and training keeps all groups. A held-out split
keeps one row of a question, the first or the largest group; ppo keeps the first everywhere.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from stages.rlhf.ingest.cleaning import Answer, Clean, Reason, Unusable, settle
from stages.rlhf.ingest.orders import MOST_ROWS, merge
from stages.rlhf.ingest.rejects import Ledger
from stages.rlhf.ingest.sources.items import PARTS, Part
from stages.rlhf.ingest.spool import Spool, Spooled
from stages.rlhf.ingest.token_caps import Caps
from stages.rlhf.records import PromptRow, RmRow, SftRow, write_jsonl

_THIRDS: Final = ("train", "validation", "test")
FILES: Final[dict[Part, dict[str, str]]] = {
    "sft": {split: f"sft/{split}.jsonl" for split in _THIRDS},
    "rm": {
        **{split: f"rm/{split}.jsonl" for split in _THIRDS},
        "judge_train": "judge/train.jsonl",
        "judge_test": "judge/test.jsonl",
    },
    "ppo": {split: f"ppo/{split}.jsonl" for split in _THIRDS},
}
_BATCH: Final = 256  # rows whose texts are encoded at once
_SPLITS: Final = (*_THIRDS, "judge_train", "judge_test")


def write_splits(out: Path, spool: Spool, caps: Caps, ledger: Ledger) -> None:
    """Write all files; rows that leak, repeat, are too long or belong to no file are rejected."""
    for part in PARTS:
        for split in _SPLITS:
            bar = tqdm(
                spool.rows(part, split),
                desc=f"write {part} {split}",
                unit=" rows",
                delay=5,
                mininterval=5,
                leave=False,
            )
            rows = _Rows(part, split, spool, caps, ledger)
            if split in FILES[part]:
                file = out / FILES[part][split]
                ledger.written[part][split] = write_jsonl(file, rows.kept(bar))
            else:
                rest = list(rows.kept(bar))
                assert not rest, f"{part} rows are kept, but {split} has no file for them"


class _Rows:
    """The rows of one file."""

    def __init__(self, part: Part, split: str, spool: Spool, caps: Caps, ledger: Ledger) -> None:
        self._part, self._split = part, split
        self._spool, self._caps, self._ledger = spool, caps, ledger
        self._trains = split in ("train", "judge_train")
        self._done = bytearray(spool.questions)
        self._met: dict[int, int] = {}  # rows so far of questions with MOST_ROWS or more
        self._answers: dict[int, set[str]] = {}  # of questions with several training rows

    def kept(self, rows: Iterable[Spooled]) -> Iterator[PromptRow]:
        """Those that are written; the others are entered in the ledger."""
        for spooled in self._measured(rows):
            row = spooled.row
            if reason := self._misplaced(spooled):
                self._reject(row, reason)
            elif self._part == "rm" and spooled.several:
                yield from self._group(spooled)
            elif not self._is_new(spooled):
                self._reject(row, "duplicate_question")
            elif (record := self._record([row], row)) is not None:
                self._remember(spooled)
                yield record

    def _measured(self, rows: Iterable[Spooled]) -> Iterator[Spooled]:
        """The same rows, their texts encoded in batches."""
        stream = iter(rows)
        while batch := list(islice(stream, _BATCH)):
            found = [spooled.row for spooled in batch if spooled.fits]
            self._caps.measure(
                text for row in found for text in (row.question, *(a.text for a in row.answers))
            )
            yield from batch

    def _misplaced(self, spooled: Spooled) -> Reason | None:
        if spooled.fits and self._split in FILES[self._part]:
            return None
        judged = self._split.startswith("judge") and self._part != "rm"
        return "judge_question" if judged else "leak"

    def _is_new(self, spooled: Spooled) -> bool:
        if spooled.several and self._split == "train":
            return spooled.row.answers[0].text not in self._answers.get(spooled.question, ())
        return not self._done[spooled.question]

    def _remember(self, spooled: Spooled) -> None:
        self._done[spooled.question] = True
        if spooled.several and self._split == "train":
            self._answers.setdefault(spooled.question, set()).add(spooled.row.answers[0].text)

    def _group(self, spooled: Spooled) -> Iterator[PromptRow]:
        """At the first of several rows all of them; those beyond MOST_ROWS are repeats."""
        question, row = spooled.question, spooled.row
        if not self._done[question]:
            self._done[question] = True
            rows = self._spool.group(row.key, self._split, MOST_ROWS)
            if len(rows) == MOST_ROWS:
                self._met[question] = 1
            yield from self._merged(rows)
        elif question in self._met:
            self._met[question] += 1
            if self._met[question] > MOST_ROWS:
                self._reject(row, "duplicate_question")

    def _merged(self, rows: list[Clean]) -> Iterator[PromptRow]:
        """The groups of several rows on one question: all in training, else the first one."""
        while rows:
            group = merge(rows)
            rows = list(group.repeats)
            sources = [group.first, *group.others]
            if group.row is None:
                self._reject_all(sources, "contradicted")
            elif (record := self._record(sources, group.row)) is not None:
                self._ledger.drop(group.row, group.dropped)
                self._ledger.merge("rm", len(group.others), group.contradicted)
                yield record
            else:
                continue
            used = {answer.text for row in sources for answer in row.answers}
            enough = group.row is not None and not self._trains
            again = [row for row in rows if enough or any(a.text in used for a in row.answers)]
            self._reject_all(again, "duplicate_question")
            rows = [row for row in rows if row not in again]

    def _record(self, sources: list[Clean], row: Clean) -> PromptRow | None:
        """The row as written, or None and all its sources are rejected."""
        try:
            return _capped(row, self._caps, self._ledger)
        except Unusable as unusable:
            self._reject_all(sources, unusable.reason, unusable.detail)
            return None

    def _reject_all(self, rows: Iterable[Clean], reason: Reason, detail: str | None = None) -> None:
        for row in rows:
            self._reject(row, reason, detail)

    def _reject(self, row: Clean, reason: Reason, detail: str | None = None) -> None:
        self._ledger.reject(self._part, row.id, reason, _plain(row), detail)


def _capped(row: Clean, caps: Caps, ledger: Ledger) -> PromptRow:
    """The row as written to disk. Raises Unusable if question or answers are too long."""
    head = {"id": row.id, "question": row.question, **row.labels}
    phrase = head.pop("must_contain")
    fits = caps.question_fits(row.question)
    if row.part == "ppo":
        if not fits:
            raise _long_question(row, caps)
        return PromptRow.model_validate(head)
    if row.part == "sft":
        full = row.answers[0].text
        text = caps.fit_answer(full, "sft_answer")
        if not fits:
            raise _long_question(row, caps)
        if text is None:
            raise _long_answers(row, caps)
        return SftRow.model_validate(
            head | {"answer": text, "must_contain": phrase, "clipped": text != full}
        )
    texts = [caps.fit_answer(answer.text, "rm_answer") for answer in row.answers]
    if not fits:
        raise _long_question(row, caps)
    return _capped_group(row, head, texts, caps, ledger)


def _long_question(row: Clean, caps: Caps) -> Unusable:
    tokens = caps.tokens(row.question)
    return Unusable("too_long", f"question of {tokens} tokens; at most {caps.question} fit")


def _long_answers(row: Clean, caps: Caps) -> Unusable:
    tokens = ", ".join(str(caps.tokens(answer.text)) for answer in row.answers[:8])
    return Unusable(
        "too_long",
        f"answer of {tokens} tokens; at most {caps.answer} fit, and no sentence ends within them",
    )


def _capped_group(
    row: Clean, head: dict[str, Any], texts: list[str | None], caps: Caps, ledger: Ledger
) -> PromptRow:
    capped = tuple(
        Answer(text or answer.text, answer.rank, answer.defect)
        for answer, text in zip(row.answers, texts, strict=True)
    )
    flaws: list[Reason | None] = ["too_long" if text is None else None for text in texts]
    try:
        answers, dropped = settle(capped, flaws)
    except Unusable as unusable:  # the cap left too few answers
        raise _long_answers(row, caps) from unusable
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
