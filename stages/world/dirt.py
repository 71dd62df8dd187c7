"""A few injected defects of every kind found in real files, so that preprocess has work to do.

Rows that must be rejected are added; rows that must be cleaned are modified existing ones. All are
in the Training files, among the rows of the training split.
"""

import json
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from stages.world.build import Part, Row, World
from stages.world.splits import UNSEEN_WORDING

ANSWER_KEYS = tuple(f"answer{number:02}" for number in range(1, 6))
_ENDLESS = "서울과 부산과 대구와 인천과 광주와 대전과 울산과 세종과 제주와 " * 80
_MISSING = object()


def plant(world: World, seed: int) -> dict[str, tuple[list[Any], list[Any]]]:
    """Part name -> rows of its Training (with dirt) and Validation files."""
    planted = {}
    for name, part in (("sft", world.sft), ("rm", world.rm), ("ppo", world.ppo)):
        rng = Random(f"{seed}/dirt/{name}")
        rows = [_copy(row) for row in part.training]
        trained = [row for row in rows if row["split"] == "train"]
        rng.shuffle(trained)
        bad = _Rejects(name, [_copy(row) for row in trained])
        bad.questions(part, world, rng)
        if name == "sft":
            bad.answers()
        if name == "rm":
            bad.ranks()
        for row, stain in zip(trained, _stains(name), strict=False):
            stain(row)
        mixed: list[Any] = [*rows, *bad.rows, "이 줄은 항목이 아닙니다.", "data_info"]
        rng.shuffle(mixed)
        planted[name] = (mixed, [_copy(row) for row in part.validation])
    return planted


def _copy(row: Row) -> Row:
    copied: Row = json.loads(json.dumps(row))
    return copied


class _Rejects:
    """Rows that preprocess must reject, each made from a good row with its own question."""

    def __init__(self, name: str, models: list[Row]) -> None:
        self.rows: list[Row] = []
        self._name = name
        self._models = models

    def add(self, question: Any = _MISSING, **changes: Any) -> Row:
        """Add a copy of the next model row with changes; returns it for further changes."""
        number = len(self.rows)
        row = _copy(self._models[number % len(self._models)]) | changes
        row["data_id"] = str(uuid5(NAMESPACE_URL, f"koqa/dirt/{self._name}/{number}"))
        fresh = f"({number + 1}) {row['question']}"  # else it would be rejected as a duplicate
        row["question"] = fresh if question is _MISSING else question
        self.rows.append(row)
        return row

    def questions(self, part: Part, world: World, rng: Random) -> None:
        """Bad questions: empty, placeholder, malformed, duplicate, leaks from held-out sides."""
        for question in ("", "   ", "<NAME>님이 태어난 곳은 어디인가요?", "<NAME>의 직업은 뭐죠?"):
            self.add(question)
        for malformed in (None, ["대한민국의 수도는?"], 37):
            self.add(malformed)
        trained = [row for row in part.training if row["split"] == "train"]
        for row in rng.sample(trained, 3):
            whole = "answer" in row  # with another answer it would be one more demonstration
            self.add(**(_copy(row) if whole else {"question": row["question"]}))
        tested = [question.text for question in world.splits.test[UNSEEN_WORDING]]
        validated = [row["question"] for row in part.training if row["split"] == "validation"]
        for question in rng.sample(tested, 3) + rng.sample(validated, 1):
            del self.add(question.replace(" ", "  ", 1))["split"]

    def answers(self) -> None:
        """Bad demonstrations: empty, missing, equal to the question, placeholder, endless."""
        for text in ("", "  ", "그 사람은 <NAME>입니다."):
            self.add(answer={"contents": text, "answer_count": len(text)})
        for start in ("우리나라의 큰 도시는 ", "가 볼 만한 도시를 꼽자면 "):
            text = start + _ENDLESS
            self.add(answer={"contents": text, "answer_count": len(text)})
        for question in ("무엇이든 물어보아도 될까요?", "다음 문장을 그대로 옮겨 주세요."):
            self.add(question, answer={"contents": question, "answer_count": len(question)})
        self.add(answer=None)
        self.add(answer=[])

    def ranks(self) -> None:
        """Bad groups: too few distinct answers, all tied, invalid ranks."""
        for text in ("잘 모르겠습니다.", "그렇습니다.", ""):
            row = self.add()
            for key in ANSWER_KEYS:
                row[key] |= {"contents": text, "answer_count": len(text)}
        for rank in (1, 3):
            row = self.add()
            for key in ANSWER_KEYS:
                row[key]["ranking"] = rank
        for bad in ("상", 9, None):
            self.add()["answer03"]["ranking"] = bad
        del self.add()["answer02"]["ranking"]


def _stains(name: str) -> Iterator[Callable[[Row], None]]:
    """Dirt that cleaning removes, two to four rows of each kind."""
    for _ in range(3):
        yield partial(_rewrite, change=partial(unicodedata.normalize, "NFD"))  # from macOS
    for mark in ("\ufeff", "\u200b", "\u2060"):
        yield partial(_rewrite, change=(mark + "{}" + mark).format)
    for token in ("<|endoftext|>", "</s>"):
        yield partial(_rewrite, change=("{}" + token).format)
    for _ in range(3):
        yield _misfile
    if name == "rm":
        for form in ("{}", "{}.0", " {}"):
            yield partial(_retype, form=form)
        for _ in range(2):
            yield partial(_retype, form=None)


def _rewrite(row: Row, change: Callable[[str], str]) -> None:
    row["question"] = change(row["question"])
    for key in ("answer", *ANSWER_KEYS):
        if key in row:
            row[key]["contents"] = change(row[key]["contents"])


def _misfile(row: Row) -> None:
    row["data_category"]["main"] = row["question"]


def _retype(row: Row, form: str | None) -> None:
    """Ranks as numeric strings, or as floats."""
    for key in ANSWER_KEYS:
        rank = row[key]["ranking"]
        row[key]["ranking"] = float(rank) if form is None else form.format(rank)
