"""Three conditions by hand: what answers say, what they cite, when they decline."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stages.rlhf.chat import REFUSAL, message
from stages.rlhf.records import WITHOUT_EVIDENCE, Response, SftRow, write_jsonl
from stages.rlhf.report.comparison import Bootstrap
from stages.rlhf.report.grounded import (
    CHECKED,
    CLOSED,
    RAG,
    WITHOUT,
    matrix,
    plain,
    spoken,
    values_of,
)
from stages.rlhf.retrieval.support import Support
from stages.rlhf.runs.process_group import SINGLE_PROCESS

SHOWN = ("일본의 수도는 도쿄이다.", "프랑스의 수도는 파리이다.")
BOOTSTRAP = Bootstrap(50, 0)
NO_PHRASE = "no test row has a must_contain phrase"


def row(country: str, capital: str | None, cites: str = "", **changed: Any) -> SftRow:
    return SftRow(
        id=country,
        question=f"{country}의 수도는?",
        answer=f"{capital or '거기'}입니다.{cites}",
        must_contain=capital,
        category="수도",
        **{"passages": SHOWN, "kind": "asked", **changed},
    )


def said(*texts: str) -> list[Response]:
    return [Response(text, 5, True) for text in texts]


FOUND = [
    row("일본", "도쿄", " [1]"),
    row("프랑스", "파리", " [2]", kind="new"),
    row("독일", "베를린"),  # no passage answers
    row("화성", None, kind="new"),
]
ANSWERS = ("도쿄입니다. [1]", "파리입니다. [1]", REFUSAL, "도쿄입니다.")


def conditions(shown: tuple[str, ...], gone: tuple[str, ...]) -> dict[str, Any]:
    """The matrix of one model: these answers to FOUND, and to its first rows, evidence gone."""
    closed = [one.model_copy(update={"passages": None}) for one in map(plain, FOUND)]
    rows = {CLOSED: closed, RAG: FOUND, WITHOUT: FOUND[: len(gone)]}
    answers = {CLOSED: said(*["도쿄입니다."] * 4), RAG: said(*shown), WITHOUT: said(*gone)}
    return matrix({name: {"sft": found} for name, found in answers.items()}, rows, BOOTSTRAP)


def test_values_by_hand() -> None:
    table = values_of(said(*ANSWERS), FOUND)
    assert table.exact.tolist() == [1, 1, 0, 0]
    assert table.contains[:3].tolist() == [1, 1, 0]
    assert table.wrong_fact_rate[:2].tolist() == [0, 0]
    assert table.declined.tolist() == [0, 0, 1, 0]
    assert table.supported[:2].tolist() == [1, 0]  # the second cites another country's
    assert table.supported[2:].isna().all()  # a refusal; no phrase
    assert table.contains[3:].isna().all()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("도쿄입니다. [1]", 1),
        ("오사카입니다. [1]", 1),
        ("도쿄입니다. [2]", 0),
        ("도쿄입니다.", 0),
        ("도쿄입니다. [0]", 0),
        ("도쿄입니다. [3]", 0),
    ],
)
def test_an_answer_is_supported_by_the_passage_it_cites(answer: str, expected: float) -> None:
    assert values_of(said(answer), FOUND[:1]).supported.tolist() == [expected]


def test_citations_are_no_part_of_what_is_said() -> None:
    assert plain(FOUND[0]).answer == "도쿄입니다."
    (one,) = spoken([Response("도쿄[2]입니다. [1]", 7, False)], FOUND[:1])
    assert one == Response("도쿄입니다.", 7, False)
    closed = plain(FOUND[0]).model_copy(update={"passages": None})
    assert spoken(said("도쿄입니다. [1]"), [closed]) == said("도쿄입니다. [1]")
    assert values_of(said("도쿄입니다. [1]"), [closed]).exact.tolist() == [0]


def test_the_matrix_by_hand() -> None:
    found = conditions(ANSWERS, (REFUSAL, "도쿄입니다. [1]"))
    assert [found[name]["questions"] for name in (CLOSED, RAG, WITHOUT)] == [4, 4, 2]
    assert found[CLOSED]["sft"]["exact"] == 1 / 4
    assert found[CLOSED]["sft"]["wrong_fact_rate"] == 2 / 3
    assert found[RAG]["sft"]["exact"] == 2 / 4
    assert found[RAG]["sft"]["contains"] == 2 / 3
    assert found[RAG]["sft"]["supported"] == 1 / 2
    assert found[RAG]["sft"]["declined"] == 1 / 4
    assert found[WITHOUT]["sft"]["declined"] == 1 / 2
    by_kind = found[RAG]["sft"]["by_kind"]
    assert {kind: block["exact"] for kind, block in by_kind.items()} == {"asked": 0.5, "new": 0.5}
    assert by_kind["asked"]["supported"] == 1
    assert by_kind["new"]["supported"] == 0
    low, high = (found[RAG]["sft"][f"exact_ci_{end}"] for end in ("low", "high"))
    assert 0 <= low <= 1 / 2 <= high <= 1


@pytest.mark.parametrize(
    ("shown", "gone", "precision", "recall"),
    [
        (ANSWERS, (REFUSAL, "도쿄입니다."), 2 / 2, 1 / 2),
        ((REFUSAL, REFUSAL, REFUSAL, "?"), (REFUSAL, REFUSAL), 3 / 5, 2 / 2),
        ((REFUSAL, "?", "?", "?"), ("?", "?"), 0 / 1, 0 / 2),
        (("?", "?", "?", "?"), (REFUSAL, "?"), 1 / 1, 1 / 2),
    ],
)
def test_precision_and_recall_of_refusals(
    shown: tuple[str, ...], gone: tuple[str, ...], precision: float, recall: float
) -> None:
    found = conditions(shown, gone)["refusal"]["sft"]
    assert (found["precision"], found["recall"]) == (precision, recall)


def test_what_is_undefined_is_null_with_a_reason() -> None:
    nothing = conditions(("?",) * 4, ())["refusal"]["sft"]
    assert nothing == {
        "precision": None,
        "precision_reason": "no answer declines",
        "recall": None,
        "recall_reason": "no question whose evidence is gone",
    }
    closed = conditions(ANSWERS, (REFUSAL,))[CLOSED]["sft"]
    assert closed["supported"] is None
    assert "must_contain" in closed["supported_reason"]
    bare = [row("화성", None, kind=None), row("달", None, kind=None)]
    rows = {CLOSED: bare, RAG: bare, WITHOUT: bare}
    found = matrix({name: {"sft": said("?", "!")} for name in rows}, rows, BOOTSTRAP)
    block = found[RAG]["sft"]
    assert block["contains"] is None
    assert block["contains_reason"] == NO_PHRASE
    assert block["wrong_fact_rate"] is None
    assert "commits" in block["wrong_fact_rate_reason"]
    assert "by_kind" not in found[RAG]["sft"]


Again = Callable[..., list[list[Response]]]


def with_and_without(folder: Path, patch: pytest.MonkeyPatch, text: str, again: Again) -> Any:
    """The stage's answers and rows on one question: every model says `text`, then `again`."""
    from stages import evaluate  # here, so that the other tests do not wait for its imports

    write_jsonl(folder / WITHOUT_EVIDENCE, [plain(FOUND[0])])
    Support.of(SHOWN).save(folder)
    own = {name: said(text) for name in ("base", "sft", "ppo")}
    patch.setattr(evaluate, "greedy", lambda *given: own)
    patch.setattr(evaluate, "again", again)
    params: Any = SimpleNamespace(evaluate=SimpleNamespace(max_questions=9))
    generated: Any = SimpleNamespace(responses=own)
    paths = {"index": folder, "base": folder}
    return evaluate.with_and_without(params, paths, FOUND[:1], generated, folder, SINGLE_PROCESS)


def test_without_passages_the_reference_cites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditions = with_and_without(tmp_path, monkeypatch, "도쿄입니다.", lambda *given: [])
    found = matrix(*conditions, BOOTSTRAP)
    assert found[RAG]["sft"]["exact"] == 1
    assert found[CLOSED]["sft"]["exact"] == 1


def test_where_no_passage_states_the_answer_those_about_it_are_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def again(params: Any, base: Any, loaded: Any, messages: list[str], n: int, *more: Any) -> Any:
        read.append(messages)
        return [said(*["도쿄입니다. [1]"] * n) for _ in messages]

    answers, _ = with_and_without(tmp_path, monkeypatch, "교토입니다. [1]", again)
    for condition in (RAG, WITHOUT):
        assert [one.text for one in answers[condition][CHECKED]] == ["도쿄입니다. [1]"]
        assert [one.text for one in answers[condition]["ppo"]] == ["교토입니다. [1]"]
    alone = [message(FOUND[0].question, SHOWN[:1])]
    assert read == [alone, alone]
