"""Figures 9 to 12 and the reliability diagram: files, tables, Korean, odd groups."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from stages.rlhf.measure.calibration import ece
from stages.rlhf.measure.length_bias import correct
from stages.rlhf.measure.length_curve import LengthCurve
from stages.rlhf.measure.ranked_groups import Group, margins_of
from stages.rlhf.report.reward_figures import MAX_POINTS, draw_all, length_table, rank_table
from tests.conftest import naming

NAMES = ("9_score_length", "10_rank_correlation", "11_margins", "12_margins_corrected")
CURVE = LengthCurve((10.0, 50.0), (-0.5, 0.5))


def groups_of(count: int, seed: int = 0) -> list[Group]:
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(count):
        quality = rng.normal(size=5)
        lengths = rng.integers(5, 60, 5)
        scores = quality + rng.normal(size=5) + 0.02 * lengths
        ranks = np.argsort(np.argsort(-quality)) + 1.0
        tokens = (lengths // 2).tolist()
        groups.append(Group(scores.tolist(), ranks.tolist(), lengths.tolist(), tokens=tokens))
    return groups


GROUPS = groups_of(60)


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path)


def test_every_figure_with_its_table(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    draw_all(GROUPS, CURVE, 0.9, tmp_path)
    expected = {f"{n}.{end}" for n in (*NAMES, "reliability") for end in ("png", "csv")}
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert all(path.stat().st_size < 300_000 for path in tmp_path.iterdir())
    assert not [str(w.message) for w in recwarn], "a glyph is missing or a number is not one"


def test_the_same_groups_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        draw_all(GROUPS, CURVE, 0.9, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_margin_tables_hold_every_pair(tmp_path: Path) -> None:
    draw_all(GROUPS, CURVE, 0.9, tmp_path)
    one, two = (read(tmp_path / f"{name}.csv") for name in NAMES[2:])
    for table, column, groups in (
        (one, "score", GROUPS),
        (two, "score", GROUPS),
        (two, "corrected", correct(GROUPS, CURVE)),
    ):
        assert table[column].sum() == pytest.approx(1, abs=1e-4)
        assert (table["low"].abs() < 1e-9).sum() == 1, "0 is an edge"
        margins = margins_of(groups)
        right = table.loc[table["low"] > -1e-9, column].sum()
        assert right == pytest.approx((margins >= 0).mean(), abs=1e-4)


def test_reliability_table_gives_the_reported_error(tmp_path: Path) -> None:
    draw_all(GROUPS, CURVE, 0.9, tmp_path)
    table = read(tmp_path / "reliability.csv")
    gaps = (table["predicted"] - table["observed"]).abs()
    found = (gaps * table["pairs"]).sum() / table["pairs"].sum()
    assert found == pytest.approx(ece(margins_of(GROUPS), 0.9), abs=1e-5)


def test_length_table_is_that_of_a_naive_loop() -> None:
    corrected = correct(GROUPS, CURVE)
    table = length_table(GROUPS, corrected, CURVE)
    flat = [
        (n, s, c)
        for g, h in zip(GROUPS, corrected, strict=True)
        for n, s, c in zip(g.lengths, g.scores, h.scores, strict=True)
    ]
    assert table["answers"].sum() == len(flat)
    assert 10 < len(table) <= 20
    assert (table["low"].iloc[1:].to_numpy() > table["high"].iloc[:-1].to_numpy()).all()
    for row in table.itertuples():
        held = [(n, s, c) for n, s, c in flat if row.low <= n <= row.high]
        means = np.mean(held, axis=0)
        assert row.answers == len(held)
        assert (row.length, row.score, row.corrected) == pytest.approx(tuple(means))
        assert row.curve == pytest.approx(row.score - row.corrected)


def test_places_of_a_perfect_a_reversed_and_a_tied_model() -> None:
    def shares(scores: list[float], ranks: list[float]) -> np.ndarray:
        table = rank_table([Group(scores, ranks, [5] * len(ranks))])
        size = int(table["human_place"].max())
        return table["share"].to_numpy().reshape(size, size)

    np.testing.assert_allclose(shares([3.0, 2.0, 1.0], [1, 2, 3]), np.eye(3))
    np.testing.assert_allclose(shares([1.0, 2.0, 3.0], [1, 2, 3]), np.eye(3)[::-1])
    np.testing.assert_allclose(shares([1.0, 1.0], [1, 2]), np.full((2, 2), 0.5))
    tied = shares([3.0, 2.0, 1.0], [1.5, 1.5, 3.0])
    np.testing.assert_allclose(tied, [[0.5, 0.5, 0], [0, 0, 1], [0, 0, 0]])
    every = [*GROUPS, Group([1.0, 1.0, 1.0], [1, 2, 3], [5, 5, 5])]
    assert rank_table(every)["answers"].sum() == pytest.approx(5 * len(GROUPS) + 3)


def test_many_points_are_drawn_as_a_density(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    hexbin = Axes.hexbin
    monkeypatch.setattr(Axes, "hexbin", lambda *a, **k: drawn.append(1) or hexbin(*a, **k))
    draw_all(GROUPS, CURVE, 0.9, tmp_path)
    assert not drawn
    many = groups_of(MAX_POINTS)
    draw_all(many, LengthCurve((5.0, 30.0), (-0.5, 0.5), "tokens"), 0.9, tmp_path)
    assert len(drawn) == 2
    assert all(path.stat().st_size < 300_000 for path in tmp_path.iterdir())
    assert len(read(tmp_path / "9_score_length.csv")) <= 20


@pytest.mark.parametrize(
    "groups",
    [
        [Group([0.3], [1.0], [5])],
        [Group([0.3, 0.4], [1.0, 1.0], [5, 6])],
        [Group([0.3, 0.3], [1.0, 2.0], [5, 5])],
        [Group([0.3] * 12, list(range(12)), [5] * 12)],
    ],
    ids=["one answer", "one rank", "one score", "many places"],
)
def test_odd_groups_are_drawn(
    groups: list[Group], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    draw_all(groups, CURVE, 1.0, tmp_path)
    assert len(list(tmp_path.iterdir())) == 10
    assert not [str(w.message) for w in recwarn]


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=naming("groups")):
        draw_all([], CURVE, 1.0, tmp_path)
