"""`koqa report` as text: intervals of changes by hand, gates, params, what is absent."""

from pathlib import Path

import pytest

from stages.rlhf.plan.changes import Change, Changes, Value
from stages.rlhf.plan.pull_request import FIGURES, MOST_PARAMS, interval_of_change, report
from tests.conftest import ROOT

COMMIT = "0123456789abcdef"


def compared(*headlines: Change, **other: object) -> Changes:
    fields = {
        "base": "main", "commit": COMMIT, "headlines": list(headlines), "gates": [],
        "unknown_gates": {}, "params": [], "same_embedder": True, "missing": [], "root": Path(),
    }  # fmt: skip
    return Changes(**{**fields, **other})  # type: ignore[arg-type]


def chrf(old: Value | None, new: Value | None) -> Change:
    return Change("evaluate", "ppo.chrf", old, new)


@pytest.mark.parametrize(
    ("old", "new", "interval"),
    [
        # 10 - 5: lower 5 - hypot(10 - 6, 8 - 5), upper 5 + hypot(22 - 10, 5 - 0)
        (Value(5, (0, 8)), Value(10, (6, 22)), (0, 18)),
        # back again: the ends change sides
        (Value(10, (6, 22)), Value(5, (0, 8)), (-18, 0)),
        # all of the old answers were right, and the new interval reaches that
        (Value(1.0, (1, 1)), Value(0.996, (0.99, 1)), (-0.01, 0)),
        (Value(1.0, (1, 1)), Value(0.5, (0.5, 0.5)), None),
        (Value(1.0), Value(0.5, (0.4, 0.6)), None),
    ],
)
def test_interval_of_a_change(old: Value, new: Value, interval: tuple[float, float] | None) -> None:
    found = interval_of_change(old, new)
    assert found == (None if interval is None else pytest.approx(interval))


def test_a_change_is_bold_where_its_interval_leaves_out_zero() -> None:
    clear = chrf(Value(90.0, (89, 91)), Value(95.0, (94.5, 95.5)))
    noise = Change("rm", "accuracy", Value(0.8, (0.7, 0.9)), Value(0.81, (0.7, 0.9)))
    text = report(compared(clear, noise), markdown=True)
    assert (
        "| evaluate | `ppo.chrf` | 90 [89, 91] | 95 [94.50, 95.50] | **+5 [+3.8820, +6.1180]** |"
    ) in text
    assert "| +0.0100 [-0.1387, +0.1445] |" in text
    plain = report(compared(clear, noise))
    assert "*+5 [+3.8820, +6.1180]*" in plain
    assert "`" not in plain
    assert "|" not in plain


def test_numbers_are_legible_at_any_size() -> None:
    values = (0.00001234, 0.5, 1234.567, 2164416, True, "2")
    text = report(compared(*(Change("base", "x", Value(v), Value(v)) for v in values)), True)
    for shown in ("1.2e-05", "0.5000", "1234.57", "2164416", "true", "2"):
        assert f"| base | `x` | {shown} |" in text


def test_nothing_changed_is_one_sentence() -> None:
    same = chrf(Value(90.0, (89, 91)), Value(90.0, (88, 92)))
    text = report(compared(same))
    assert "None of 1 headlines changed." in text
    assert "Intervals" not in text
    assert "has dvc repro run since?" not in text
    params = [Change("params.yaml", "ppo.kl_coef", Value(0.02), Value(0.4))]
    stale = report(compared(same, params=params))
    assert "Params: ppo.kl_coef 0.02 → 0.4." in stale
    assert "has dvc repro run since?" in stale


def test_no_earlier_value_is_no_change() -> None:
    text = report(compared(chrf(None, Value(90.0))), markdown=True)
    assert "No earlier values: main (0123456) has no metrics." in text
    assert "| evaluate | `ppo.chrf` | – | 90 |  |" in text


def test_what_is_gone_and_what_has_not_run_is_named() -> None:
    text = report(compared(chrf(Value(90.0), None), missing=["metrics/ppo.json"]))
    assert "No headline any more: evaluate ppo.chrf." in text
    assert "Not there yet: metrics/ppo.json; run dvc repro." in text


def test_failed_and_unknown_gates_are_named() -> None:
    gates = [
        Change("evaluate", "gates.ends", Value(True), Value(False)),
        Change("evaluate", "gates.no_repetition", None, Value(False)),
        Change("evaluate", "gates.ppo_beats_sft", Value(False), Value(True)),
        Change("evaluate", "gates.rm_ok", Value(True), None),
    ]
    text = report(compared(gates=gates, unknown_gates={"rm_ok": "the judge is at chance"}), True)
    assert (
        "**Gates that failed: ends (before: passed), no_repetition (before: no earlier value).**"
        " Unknown: rm_ok (the judge is at chance)."
    ) in text
    assert "All 1 gates pass." in report(compared(gates=gates[2:3]))
    assert "has not run" in report(compared())


def test_another_embedder_is_named() -> None:
    one = chrf(Value(1), Value(2))
    assert "cannot be compared" in report(compared(one, same_embedder=False))
    assert "cannot be compared" not in report(compared(one))


def test_many_params_are_counted() -> None:
    params = [Change("params.yaml", f"p{i}", None, Value(i)) for i in range(MOST_PARAMS + 3)]
    text = report(compared(params=params))
    assert "p0 none → 0," in text
    emptied = [Change("params.yaml", "p", Value("a"), Value(""))]
    assert 'Params: p a → "".' in report(compared(params=emptied))
    assert "and 3 more." in text


def test_figures_are_those_of_the_repository() -> None:
    assert len(FIGURES) == 2
    for file in FIGURES:
        assert (ROOT / file).is_file()
    text = report(compared(), True, FIGURES, "https://example.org/o/r/sha/")
    for file in FIGURES:
        assert f"](https://example.org/o/r/sha/{file})" in text
    assert "](plots/evaluate/ppo_curves.png)" in report(compared(), True, FIGURES)
