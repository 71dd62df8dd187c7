"""Accounting of every row: counts for the metrics, and the rejects file."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, TextIO

from stages.rlhf.ingest.cleaning import Clean, Dropped, Reason
from stages.rlhf.ingest.sources.items import PARTS


class Ledger:
    """Counts rows read, kept and rejected; writes each rejected row to rejects.jsonl.

    `examples`: per part and reason, the first row's id and what was found there.
    """

    def __init__(self, rejects: TextIO) -> None:
        self._rejects = rejects
        self.read: Counter[str] = Counter()
        self.written: defaultdict[str, Counter[str]] = defaultdict(Counter)  # part -> split
        self.examples: dict[tuple[str, Reason], tuple[str, str | None]] = {}
        self._rejected: defaultdict[str, Counter[str]] = defaultdict(Counter)  # part -> reason
        self._dropped: Counter[str] = Counter()
        self._ignored: defaultdict[str, Counter[str]] = defaultdict(Counter)  # part -> key
        self._merged: Counter[str] = Counter()
        self._contradicted = 0

    def reject(
        self, part: str, name: str, reason: Reason, row: Any, detail: str | None = None
    ) -> None:
        """Record a row that is not used. `detail`: what was found."""
        self._rejected[part][reason] += 1
        self.examples.setdefault((part, reason), (name, detail))
        self._write(part, name, reason, row, detail)

    def drop(self, row: Clean, dropped: Iterable[Dropped]) -> None:
        """Record answers dropped from a group that is kept."""
        for one in dropped:
            self._dropped[one.reason] += 1
            answer = {"question": row.question, "answer": one.answer.text, "rank": one.answer.rank}
            self._write("rm_answer", row.id, one.reason, answer)

    def ignore(self, part: str, keys: Iterable[str]) -> None:
        """Count what is not used of a row that is kept."""
        self._ignored[part].update(keys)

    def merge(self, part: str, rows: int, contradicted: int) -> None:
        """Count rows whose content stands in another row, and pairs that they order both ways."""
        self._merged[part] += rows
        self._contradicted += contradicted

    def _write(
        self, part: str, name: str, reason: str, row: Any, detail: str | None = None
    ) -> None:
        entry = {"part": part, "id": name, "reason": reason, "row": row}
        line = json.dumps(
            entry if detail is None else entry | {"detail": detail}, ensure_ascii=False
        )
        # a lone surrogate, valid in JSON but not in UTF-8, is written as its escape
        self._rejects.write(line.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")

    def without_rows(self, part: str) -> dict[str, Any]:
        """The report of a part of which every row was rejected."""
        rejected = dict(sorted(self._rejected[part].items()))
        return {part: {"read": self.read[part], "kept": 0, "rejected": rejected, "rows": {}}}

    def report(self) -> dict[str, Any]:
        """The metrics of all rows: read == kept + rejected, kept == rows written + merged."""
        report: dict[str, Any] = {}
        for part in (*PARTS, "corpus"):
            rejected = dict(sorted(self._rejected[part].items()))
            kept = self.read[part] - sum(rejected.values())
            written = self.written[part].total() + self._merged[part]
            assert kept == written, (part, kept, written)
            report[part] = {"read": self.read[part], "kept": kept, "rejected": rejected}
            if part != "corpus":
                report[part]["rows"] = dict(self.written[part])
            if ignored := dict(sorted(self._ignored[part].items())):
                report[part]["ignored"] = ignored
        if self._merged["rm"]:
            report["rm"] |= {"merged": self._merged["rm"], "contradicted_pairs": self._contradicted}
        report["dropped_answers"] = dict(sorted(self._dropped.items()))
        return report
