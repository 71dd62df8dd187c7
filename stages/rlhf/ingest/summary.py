"""What preprocess tells, a line each: how rows were read, where they went, what was lost."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stages.rlhf.ingest.rejects import Ledger
from stages.rlhf.ingest.sources import Reader
from stages.rlhf.ingest.sources.items import PARTS, Part
from stages.rlhf.ingest.splitting.near_duplicates import Crowd

_MUCH = 0.5  # share of a part's rows that are rejected, from which an example is given
_PARAMETER = {
    "test": "preprocess.test_share",
    "validation": "preprocess.validation_share",
    "judge_train": "preprocess.judge_share, judge_groups_min",
    "judge_test": "preprocess.judge_share, judge_groups_min",
}


def lines(
    report: Mapping[str, Any],
    ledger: Ledger,
    reader: Reader,
    assigned: Mapping[str, int],
    crowds: Sequence[Crowd],
) -> Iterator[str]:
    """One sentence per fact. `assigned`: questions per split that the source did not assign."""
    yield from _shapes(reader)
    yield from _named(reader)
    for split, questions in assigned.items():
        if questions:
            yield f"{split}: {questions} questions taken from training ({_PARAMETER[split]})"
    for crowd in crowds:
        yield (
            f"near-duplicates: {crowd.size} questions ({crowd.share:.0%}) are so alike that they go"
            f" to one split, such as {crowd.example:.60}"
        )
    for part in PARTS:
        yield part_line(report, ledger, part)
        for key, rows in report[part].get("ignored", {}).items():
            yield f"{part}: {key} of {rows} rows is not used"
    if merged := report["rm"].get("merged"):
        contradicted = report["rm"]["contradicted_pairs"]
        yield f"rm: {merged} rows joined others on the same question; {contradicted} contradictions"
    if renamed := report["renamed_ids"]:
        yield f"ids: {renamed} rows have the id of an earlier row of their part; #2, #3, … added"
    if dropped := report["dropped_answers"]:
        yield f"rm: answers left out of groups: {counted(dropped)}"


def part_line(report: Mapping[str, Any], ledger: Ledger, part: Part) -> str:
    """How many rows of a part were read and kept, and why others were not, with an example."""
    read, kept, rejected = (report[part][key] for key in ("read", "kept", "rejected"))
    line = f"{part}: {kept} of {read} rows kept"
    if not rejected:
        return line
    line += f"; set aside in rejects.jsonl: {counted(rejected)}"
    if read - kept > _MUCH * read:
        reason = max(rejected, key=lambda reason: rejected[reason])
        name, detail = ledger.examples[part, reason]
        line += f"; {reason}, the first: {detail or name}"
    return line


def counted(counts: Mapping[str, int]) -> str:
    """`too_long 12, placeholder 3`: the most frequent first."""
    return ", ".join(f"{name} {count}" for name, count in Counter(counts).most_common())


def _shapes(reader: Reader) -> Iterator[str]:
    counts: Counter[tuple[Part, tuple[str, ...]]] = Counter()
    files: dict[tuple[Part, tuple[str, ...]], list[str]] = {}
    for (part, shape, path), count in reader.shapes.items():
        counts[part, shape] += count
        files.setdefault((part, shape), []).append(path)
    for read, count in counts.items():
        if shape := read[1]:
            yield f"{_listed(files[read])}: {count} rows read as {', '.join(shape)}"
    if unread := sum(count for (_, shape), count in counts.items() if not shape):
        yield f"{unread} rows have none of the known shapes"
    if reader.unread:
        yield f"not read, of no part by name and folder: {_listed(reader.unread)}"


def _named(reader: Reader) -> Iterator[str]:
    files: dict[str, list[str]] = {}
    for name, side in reader.sides.items():
        files.setdefault(side, []).append(name)
    for side, names in files.items():
        yield f"{side}: named by {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
