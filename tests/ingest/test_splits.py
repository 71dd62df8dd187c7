"""Splits: near-duplicates, whose word counts, and what a seed decides."""

import random
from itertools import combinations

import numpy as np
import pytest

from stages.rlhf.config.preprocess import PreprocessConfig
from stages.rlhf.ingest.splitting.near_duplicates import group_near_duplicates
from stages.rlhf.ingest.splitting.splits import SIDES, Keys, assign

SETTINGS = {
    "seed": 0,
    "validation_share": 0.1,
    "test_share": 0.2,
    "judge_share": 0.25,
    "judge_groups_min": 0,
    "long_answers": "clip",
    "near_duplicate": 0.9,
    "max_items": None,
}
LONG = "대한민국의수도는어디에있는도시이고그이름은무엇인지말하시오"


def settings(**changed: object) -> PreprocessConfig:
    return PreprocessConfig.model_validate(SETTINGS | changed)


def keys(*rows: tuple[str, str | None, bool, str]) -> Keys:
    """(key, side that a row names, whether by a `split` key, parts that ask it)."""
    rows = tuple(sorted(rows, key=lambda row: row[0]))
    return Keys(
        [row[0] for row in rows],
        np.array([SIDES.index(row[1]) for row in rows], dtype=np.uint8),
        np.array([row[2] for row in rows], dtype=bool),
        *(
            np.array(
                [(part in row[3].split()) * (SIDES.index(row[1]) + 1) for row in rows],
                dtype=np.uint8,
            )
            for part in ("sft", "rm", "ppo")
        ),
    )


def sides(found: Keys, **changed: object) -> dict[str, str | None]:
    assignment = assign(found, settings(**changed))
    return dict(zip(found.texts, (SIDES[s] for s in assignment.sides), strict=True))


def free(count: int, parts: str = "sft", prefix: str = "") -> list[tuple[str, None, bool, str]]:
    draw = random.Random(1)
    texts = [prefix + "".join(chr(0xAC00 + draw.randrange(5000)) for _ in range(12))]
    while len(texts) < count:
        texts.append(prefix + "".join(chr(0xAC00 + draw.randrange(5000)) for _ in range(12)))
    return [(text, None, False, parts) for text in texts]


def jaccard(one: str, other: str) -> float:
    a, b = ({t[i : i + 3] for i in range(max(1, len(t) - 2))} for t in (one, other))
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9, 1.0])
def test_groups_are_those_of_every_pair_compared(threshold: float) -> None:
    draw = random.Random(3)
    texts = ["", "가", "가나", "가나다"]
    for _ in range(60):
        text = "".join(draw.choice("가나다라마바사아자차") for _ in range(draw.randint(3, 60)))
        texts.append(text)
        for _ in range(3):
            at = draw.randrange(len(text))
            texts.append(text[:at] + draw.choice("가나다라") + text[at + draw.randint(0, 1) :])
    texts = sorted(set(texts))
    groups, _ = group_near_duplicates(texts, threshold, np.ones(len(texts), dtype=bool))
    parents = list(range(len(texts)))

    def find(n: int) -> int:
        return n if parents[n] == n else find(parents[n])

    for a, b in combinations(range(len(texts)), 2):
        if jaccard(texts[a], texts[b]) >= threshold:
            low, high = sorted((find(a), find(b)))
            parents[high] = low
    assert [groups.find(n) for n in range(len(texts))] == [find(n) for n in range(len(texts))]
    if threshold < 1:
        assert len({find(n) for n in range(len(texts))}) < len(texts)


def test_groups_do_not_depend_on_how_much_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = sorted(LONG + sign for sign in "가나다라마바") + [LONG[::-1] + s for s in "아자"]
    everything = np.ones(len(texts), dtype=bool)
    whole, _ = group_near_duplicates(texts, 0.9, everything)
    monkeypatch.setattr("stages.rlhf.ingest.splitting.shared_grams._CHUNK", 3)
    pieces, _ = group_near_duplicates(texts, 0.9, everything)
    for groups in (whole, pieces):
        assert [groups.find(n) for n in range(8)] == [0] * 6 + [6] * 2


def test_pairs_of_pinned_questions_are_not_linked() -> None:
    texts = [LONG, LONG + "가", LONG + "나", "다른질문이다"]
    for free, expected in (
        ([False, False, True, False], [0, 0, 0, 3]),  # through the free one
        ([False, False, False, True], [0, 1, 2, 3]),
        ([False, False, False, False], [0, 1, 2, 3]),
    ):
        groups, _ = group_near_duplicates(texts, 0.9, np.array(free))
        assert [groups.find(n) for n in range(4)] == expected


def test_shares_where_the_source_names_no_split() -> None:
    found = sides(keys(*free(4000)))
    counts = {side: list(found.values()).count(side) for side in ("train", "validation", "test")}
    assert counts["test"] == pytest.approx(800, abs=80)
    assert counts["validation"] == pytest.approx(400, abs=60)
    assert sum(counts.values()) == 4000


def test_shares_depend_on_seed_and_question_alone() -> None:
    rows = free(300)
    first = sides(keys(*rows))
    assert sides(keys(*rows)) == first
    assert sides(keys(*rows), seed=1) != first
    part = sides(keys(*rows[:100]))
    assert part == {key: first[key] for key in part}


def test_test_share_is_for_sources_without_a_test_split() -> None:
    found = sides(keys(*free(500), ("시험질문", "test", False, "sft")))
    assert found.pop("시험질문") == "test"
    assert set(found.values()) == {"train", "validation"}
    found = sides(keys(*free(500), ("시험질문", "validation", True, "sft")))
    assert set(found.values()) == {"train", "test", "validation"}
    assert list(found.values()).count("validation") == 2  # one more, which a later stage needs


def test_highest_side_wins() -> None:
    rows = [
        (LONG, "test", False, "sft"),
        (LONG + "가", None, False, "sft"),
        (LONG + "나", "validation", False, "sft"),
    ]
    assert set(sides(keys(*rows)).values()) == {"test"}


def test_pinned_near_duplicates_stay_where_they_are() -> None:
    rows = [
        (LONG, "test", True, "sft"),
        (LONG + "가", "train", True, "sft"),
        (LONG + "나", "validation", True, "sft"),
        (LONG + "다", None, False, "sft"),
    ]
    assert sides(keys(*rows)) == {
        LONG: "test",
        LONG + "가": "train",
        LONG + "나": "validation",
        LONG + "다": "test",  # nobody said where: it goes with its group
    }


def test_near_duplicates_are_drawn_together() -> None:
    rows = [(LONG + sign, None, False, "sft") for sign in ("", "가", "나", "다", "라", "마")]
    drawn = {
        frozenset(sides(keys(*rows), seed=seed, test_share=0.49).values()) for seed in range(12)
    }
    assert all(len(one) == 1 for one in drawn)
    assert len(drawn) > 1


def test_judge_takes_a_share_of_the_groups_that_nobody_else_asks() -> None:
    alone = free(300, "rm", "가")
    shared = free(100, "rm ppo", "나")
    found = sides(keys(*alone, *shared), test_share=0.001, validation_share=0.001)
    judged = [key for key, side in found.items() if side in ("judge_train", "judge_test")]
    assert len(judged) == pytest.approx(100, abs=2)
    assert set(judged) <= {row[0] for row in alone}
    tested = [key for key in judged if found[key] == "judge_test"]
    assert len(tested) == len(judged) // 3


@pytest.mark.parametrize(
    ("groups", "share", "at_least", "judged", "tests"),
    [
        (545, 0.2, 0, 109, 36),  # a third
        (545, 0.2, 300, 272, 90),  # half of the groups are fewer than 300
        (800, 0.2, 300, 300, 100),
        (1500, 0.2, 300, 300, 100),
        (2000, 0.2, 300, 400, 100),
        (4000, 0.2, 300, 800, 160),  # a fifth
    ],
)
def test_the_judges_share_grows_where_groups_are_few(
    groups: int, share: float, at_least: int, judged: int, tests: int
) -> None:
    given = {"judge_share": share, "judge_groups_min": at_least}
    given |= {"test_share": 1e-9, "validation_share": 1e-9}
    found = list(sides(keys(*free(groups + 2, "rm sft ppo")), **given).values())
    assert found.count("train") + found.count("judge_train") + found.count("judge_test") in (
        groups,
        groups - 1,  # ppo and sft need two validation questions
    )
    got = found.count("judge_train") + found.count("judge_test")
    assert (got, found.count("judge_test")) == (pytest.approx(judged, abs=1), tests)
    assert got <= found.count("train")


def test_judge_takes_what_there_is() -> None:
    """First questions that no other part has, then those of ppo, then those of sft."""
    alone, prompted, shown = free(5, "rm", "가"), free(5, "rm ppo", "나"), free(90, "rm sft", "다")
    found = sides(keys(*alone, *prompted, *shown), test_share=1e-9, validation_share=1e-9)
    judged = [key for key, side in found.items() if str(side).startswith("judge")]
    assert len(judged) == round(0.25 * (list(found.values()).count("train") + len(judged)))
    left = {row[0] for row in (*alone, *prompted) if found[row[0]] == "train"}
    assert not left
    assert any(key.startswith("다") for key in judged)


def test_judge_share_is_for_sources_without_a_judge_split() -> None:
    found = sides(keys(*free(200, "rm"), ("판사질문", "judge_test", True, "rm")))
    assert [key for key, side in found.items() if str(side).startswith("judge")] == ["판사질문"]


FEW = {"test_share": 0.001, "validation_share": 0.001, "judge_share": 0.5}


def test_judge_groups_go_whole() -> None:
    rows = [(LONG + sign, None, False, "rm") for sign in ("", "가", "나", "다")]
    drawn = set()
    for seed in range(12):
        found = sides(keys(*rows, *free(6, "rm")), **FEW, seed=seed)
        assert len({found[row[0]] for row in rows}) == 1
        drawn.add(found[LONG])
    assert {"train", "judge_train"} <= drawn


def test_a_judge_group_is_free_of_near_duplicates_asked_elsewhere() -> None:
    rows = [(LONG, None, False, "rm"), (LONG + "가", None, False, "sft"), *free(8, "rm")]
    for seed in range(12):
        found = sides(keys(*rows), **FEW, seed=seed)
        assert not str(found[LONG]).startswith("judge")
        assert found[LONG] == found[LONG + "가"]


def test_a_judge_has_groups_to_train_on_and_to_be_tested_by() -> None:
    for count in (6, 8, 12):
        found = list(sides(keys(*free(count, "rm sft ppo"))).values())
        assert {"train", "judge_train", "judge_test", "validation", "test"} == set(found)


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("missing", ["validation", "test"])
def test_a_split_that_nothing_names_is_taken_from_training_rows(pinned: bool, missing: str) -> None:
    named = "test" if missing == "validation" else "validation"
    rows = [(key, named if n % 10 == 0 else "train", pinned, parts)
            for n, (key, _, _, parts) in enumerate(free(400))]  # fmt: skip
    found = sides(keys(*rows))
    assert [found[key] for key, side, *_ in rows if side == named] == [named] * 40
    share = SETTINGS[f"{missing}_share"]
    assert list(found.values()).count(missing) == pytest.approx(share * 360, abs=25)
    assignment = assign(keys(*rows), settings())
    assert int(assignment.assigned.sum()) == list(found.values()).count(missing)


def test_near_duplicates_among_pinned_training_rows_move_together() -> None:
    rows = [(LONG + sign, "train", True, "sft") for sign in ("", "가", "나", "다")]
    rows += [(key, "train", True, "sft") for key, *_ in free(30)]
    moved = set()
    for seed in range(12):
        found = sides(keys(*rows), seed=seed, validation_share=0.4)
        assert len({found[LONG + sign] for sign in ("", "가", "나", "다")}) == 1
        moved.add(found[LONG])
    assert "validation" in moved


def test_a_part_without_a_row_in_a_split_gives_some() -> None:
    """Validation is named, but by sft rows alone; ppo has three questions in all."""
    rows = [(key, "validation" if n < 9 else None, False, "sft")
            for n, (key, *_) in enumerate(free(90, prefix="다"))]  # fmt: skip
    rows += free(40, "rm", "가") + free(3, "ppo", "나")
    found = sides(keys(*rows))
    for prefix, count in (("가", 40), ("나", 3)):
        names = [side for key, side in found.items() if key.startswith(prefix)]
        assert len(names) == count
        assert {"train", "validation", "test"} <= set(names)


def test_questions_that_all_begin_alike_are_assigned_apart() -> None:
    draw = random.Random(2)
    opening = "".join(chr(0xAC00 + draw.randrange(2000)) for _ in range(260))
    found = list(sides(keys(*free(900, prefix=opening))).values())
    assert found.count("test") == pytest.approx(180, abs=40)
    assert found.count("validation") == pytest.approx(90, abs=30)
