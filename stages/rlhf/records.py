"""Rows on disk, as preprocess writes and every later stage reads them; metrics and tables out.

data/preprocess/
    sft/{train,validation,test}.jsonl     SftRow
    rm/{train,validation,test}.jsonl      RmRow
    judge/{train,test}.jsonl              RmRow; questions that appear in no other file
    ppo/{train,validation,test}.jsonl     PromptRow
    corpus.jsonl                          {"text": ...}
    tokenizer.json                        if the base model is trained from scratch
    rejects.jsonl                         {"part", "id", "reason", "row"}, often "detail"
"""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.rlhf import chat

if TYPE_CHECKING:  # stages that write no table do not import pandas
    import pandas as pd

READING = "reading.jsonl"  # of data/rows: lessons, SftRow
WITHOUT_EVIDENCE = "without_evidence.jsonl"  # of data/index: SftRow of test

LengthUnit = Literal["characters", "tokens"]


@dataclass(frozen=True)
class Response:
    """A generated text, its length in tokens (EOS included), and whether it ended with EOS."""

    text: str
    tokens: int
    ended: bool


class PromptRow(BaseModel):
    """A question. `kind`: its hold-out set, if the source names one.

    `passages`: what is shown with it, numbered from 1; None without retrieval.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    question: str
    category: str | None = None
    question_type: str | None = None
    kind: str | None = None
    passages: tuple[str, ...] | None = None

    @property
    def message(self) -> str:
        """What the user's turn says: the question, and the passages if there are any."""
        return chat.message(self.question, self.passages or ())

    def spoken(self, response: str) -> str:
        """A response without citations, which only a row with passages has."""
        return response if self.passages is None else chat.without_citations(response)


class SftRow(PromptRow):
    """A question with its answer. `must_contain`: a phrase that every correct answer contains."""

    answer: str
    must_contain: str | None = None
    clipped: bool = False


class RmRow(PromptRow):
    """A question with K answers and their ranks, 1 = best; equal ranks are ties.

    `defects`: what is wrong with each answer, worst first, joined by "+"; "none" for a flawless
    answer; None if the source does not know.
    """

    answers: tuple[str, ...]
    ranks: tuple[float, ...]
    defects: tuple[str, ...] | None = None

    @property
    def best(self) -> int:
        """Index of the best-ranked answer, the first of several."""
        return self.ranks.index(min(self.ranks))

    @property
    def best_answer(self) -> str:
        """The best-ranked answer, the first of several."""
        return self.answers[self.best]

    def demonstration(self) -> SftRow:
        """The question with its best-ranked answer."""
        return SftRow(
            id=self.id, question=self.question, answer=self.best_answer, passages=self.passages
        )


Row = TypeVar("Row", bound=PromptRow)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSONL file, one per line.

    Raises ValueError naming file and line.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected an object, not {line:.60}")
            yield row


def read_rows(path: Path, schema: type[Row]) -> list[Row]:
    """All rows of a file, validated against their schema.

    Raises ValueError naming file, line and field.
    """
    rows = []
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            rows.append(schema.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{path}, line {number}, {field}: {first['msg']}") from error
    return rows


def subset(rows: Sequence[Row], at_most: int | None, seed: int) -> list[Row]:
    """All rows, or `at_most` of them: the same ones for a seed, in their order."""
    if at_most is None or len(rows) <= at_most:
        return list(rows)
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), at_most))]


def write_jsonl(path: Path, rows: Iterable[BaseModel | dict[str, Any]]) -> int:
    """Write one object per line, null fields omitted, key order kept; returns the row count."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            plain = row.model_dump(exclude_none=True) if isinstance(row, BaseModel) else row
            out.write(json.dumps(plain, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """The only way numbers leave a stage: indented JSON, floats rounded to 6 digits, never NaN.

    Raises ValueError naming the key of a non-finite value; write null and `<key>_reason` instead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_rounded(metrics, ""), ensure_ascii=False, indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def details_file(metrics: Path) -> Path:
    """metrics/details/<stage>.json for metrics/<stage>.json: every number, intervals too."""
    return metrics.parent / "details" / metrics.name


def runtime_file(metrics: Path) -> Path:
    """metrics/runtime/<stage>.json for metrics/<stage>.json: times and memory, never hashed."""
    return metrics.parent / "runtime" / metrics.name


def write_stage_metrics(path: Path, metrics: dict[str, Any], headline: Sequence[str]) -> None:
    """Write all metrics to the details file, and the headline to `path`.

    `headline` names keys of `metrics` by dotted address, `*` for any key.
    """
    write_metrics(details_file(path), metrics)
    write_metrics(path, headlines(metrics, headline))


def headlines(metrics: Mapping[str, Any], addresses: Sequence[str]) -> dict[str, Any]:
    """Those of the nested metrics that the addresses name; absent ones are left out."""
    wanted: dict[str, list[str]] = {}
    for address in addresses:
        key, _, rest = address.partition(".")
        for name in metrics if key == "*" else [key]:
            wanted.setdefault(name, []).append(rest)
    found: dict[str, Any] = {}
    for name, rests in wanted.items():
        value = metrics.get(name)
        if isinstance(value, Mapping) and "" not in rests:
            if inner := headlines(value, rests):
                found[name] = inner
        elif name in metrics and "" in rests:
            found[name] = value
    return found


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Write a table without its index: floats with 6 significant digits, LF line ends."""
    table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def _rounded(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"metric {key} is {value}; expected a finite number")
        return float(f"{value:.6g}")
    return value
