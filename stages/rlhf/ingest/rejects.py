"""Accounting of every row: counts for the metrics, and the rejects file."""

import json
from collections import Counter, defaultdict
from typing import Any, TextIO

from stages.rlhf.ingest.cleaning import Clean, Dropped, Reason
from stages.rlhf.ingest.sources.items import PARTS


class Ledger:
    """Counts rows read, kept and rejected; writes each rejected row to rejects.jsonl."""

    def __init__(self, rejects: TextIO) -> None:
        self._rejects = rejects
        self.read: Counter[str] = Counter()
        self.written: defaultdict[str, Counter[str]] = defaultdict(Counter)  # part -> split
        self._rejected: defaultdict[str, Counter[str]] = defaultdict(Counter)  # part -> reason
        self._dropped: Counter[str] = Counter()

    def reject(self, part: str, name: str, reason: Reason, row: Any) -> None:
        """Record a row that is not used."""
        self._rejected[part][reason] += 1
        self._write(part, name, reason, row)

    def drop(self, row: Clean, dropped: list[Dropped]) -> None:
        """Record answers dropped from a group that is kept."""
        for one in dropped:
            self._dropped[one.reason] += 1
            answer = {"question": row.question, "answer": one.answer.text, "rank": one.answer.rank}
            self._write("rm_answer", row.id, one.reason, answer)

    def _write(self, part: str, name: str, reason: str, row: Any) -> None:
        line = json.dumps(
            {"part": part, "id": name, "reason": reason, "row": row}, ensure_ascii=False
        )
        # a lone surrogate, valid in JSON but not in UTF-8, is written as its escape
        self._rejects.write(line.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")

    def report(self) -> dict[str, Any]:
        """The metrics of all rows; kept + rejected == read."""
        report: dict[str, Any] = {}
        for part in (*PARTS, "corpus"):
            rejected = dict(sorted(self._rejected[part].items()))
            kept = self.read[part] - sum(rejected.values())
            assert kept == self.written[part].total(), (part, kept, self.written[part])
            report[part] = {"read": self.read[part], "kept": kept, "rejected": rejected}
            if part != "corpus":
                report[part]["rows"] = dict(self.written[part])
        report["dropped_answers"] = dict(sorted(self._dropped.items()))
        return report
