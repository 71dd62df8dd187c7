"""Several ranked rows on one question: the order that they state together, and nothing more."""

import random
from itertools import combinations

import pytest

from stages.rlhf.ingest.cleaning import Answer, Clean
from stages.rlhf.ingest.orders import Merged, merge


def row(number: int, *ranked: tuple[str, float]) -> Clean:
    answers = tuple(Answer(text, rank) for text, rank in ranked)
    return Clean("rm", f"r{number}", "key", "질문?", answers, {"kind": str(number)}, None)


def merged(*orders: str) -> Merged:
    """`ab` is a row in which a is better than b, `a=b` one in which they tie."""
    rows = []
    for number, order in enumerate(orders):
        levels = [
            part.replace("=", "") for part in order.replace("", " ").replace(" = ", "=").split()
        ]
        rows.append(row(number, *((t, n) for n, level in enumerate(levels, 1) for t in level)))
    return merge(rows)


def ranks(found: Merged) -> dict[str, float]:
    assert found.row is not None
    return {answer.text: answer.rank for answer in found.row.answers}


@pytest.mark.parametrize(
    ("orders", "expected"),
    [
        (("ab", "bc", "ac"), {"a": 1, "b": 2, "c": 3}),
        (("bc", "ab"), {"a": 1, "b": 2, "c": 3}),
        (("ab", "ac"), {"a": 1, "b": 2, "c": 2}),
        (("ac", "bc"), {"a": 1, "b": 1, "c": 2}),
        (("abc", "cd"), {"a": 1, "b": 2, "c": 3, "d": 4}),
        (("ab=c", "cd", "bd"), {"a": 1, "b": 2, "c": 2, "d": 3}),
        (("ab", "ab", "ba", "bc"), {"a": 1, "b": 2, "c": 3}),  # two against one
        (("abc", "cab", "abc"), {"a": 1, "b": 2, "c": 3}),
    ],
)
def test_order(orders: tuple[str, ...], expected: dict[str, float]) -> None:
    found = merged(*orders)
    assert ranks(found) == expected
    assert found.dropped == ()


def test_an_answer_without_a_rank_is_left_out() -> None:
    found = merged("ab", "bc", "dc")
    assert ranks(found) == {"a": 1, "b": 2, "c": 3}
    assert [(one.reason, one.answer.text) for one in found.dropped] == [("no_order", "d")]


def test_rows_that_share_no_answer_are_not_compared() -> None:
    found = merged("ab", "cd", "de")
    assert ranks(found) == {"c": 1, "d": 2, "e": 3}
    assert [one.id for one in found.repeats] == ["r0"]
    assert (found.first.id, [one.id for one in found.others]) == ("r1", ["r2"])


def test_the_same_row_again_adds_nothing() -> None:
    found = merged("ab", "ab")
    assert (ranks(found), [one.id for one in found.repeats]) == ({"a": 1, "b": 2}, ["r1"])
    assert (found.others, found.contradicted) == ((), 0)


@pytest.mark.parametrize(
    ("orders", "contradicted"), [(("ab", "ba"), 2), (("ab", "bc", "ca"), 3), (("abc", "cba"), 6)]
)
def test_rows_that_contradict_one_another(orders: tuple[str, ...], contradicted: int) -> None:
    found = merged(*orders)
    assert (found.row, found.contradicted) == (None, contradicted)
    assert len(found.others) == len(orders) - 1


def test_contradictions_are_counted_where_an_order_remains() -> None:
    found = merged("ab", "ab", "ba", "bc")
    assert found.contradicted == 1
    found = merged("ab", "bc", "ca", "cd", "ad", "bd")
    assert ranks(found) == {"a": 1, "b": 1, "c": 1, "d": 2}
    assert found.contradicted == 3


def test_id_and_labels_are_the_first_rows() -> None:
    found = merged("bc", "ab").row
    assert found is not None
    assert (found.id, found.labels) == ("r0", {"kind": "0"})
    assert [answer.text for answer in found.answers] == ["b", "c", "a"]


def test_nothing_is_made_up() -> None:
    """Of drawn pairs: every pair of the ranks follows from the rows, and ties are not ordered."""
    draw = random.Random(0)
    partial = 0
    for _ in range(300):
        truth = draw.sample("abcdef", 6)
        pairs = draw.sample(list(combinations(truth, 2)), draw.randint(2, 9))
        found = ranks(merge([row(n, (a, 1), (b, 2)) for n, (a, b) in enumerate(pairs)]))
        below: dict[str, set[str]] = {a: {y for x, y in pairs if x == a} for a in truth}
        for _ in truth:
            below = {a: low.union(*(below[b] for b in low)) for a, low in below.items()}
        for one, other in combinations(found, 2):
            assert (found[one] < found[other]) == (other in below[one])
            assert (found[other] < found[one]) == (one in below[other])
        partial += len(found) < 6
    assert 0 < partial < 300


def test_many_rows_on_one_question() -> None:
    rows = [row(n, (f"a{n}", 1), (f"a{n + 1}", 2)) for n in range(3000)]
    found = merge(rows)
    assert len(found.others) + 1 + len(found.repeats) == 3000


def test_rows_are_linked_through_others() -> None:
    """As spreading from each row to all that share an answer tells it."""
    draw = random.Random(4)
    for _ in range(300):
        pairs = [draw.sample("abcdefghijklmnop", 2) for _ in range(draw.randint(1, 12))]
        clusters = [set(pair) for pair in pairs]
        for cluster in clusters:
            for pair in pairs * len(pairs):
                cluster.update(pair if cluster & set(pair) else ())
        largest = max(clusters, key=len)  # of equals that of the first row
        found = merge([row(n, (one, 1), (other, 2)) for n, (one, other) in enumerate(pairs)])
        apart = {r.id for r in found.repeats if not {a.text for a in r.answers} <= largest}
        assert apart == {f"r{n}" for n, (one, _) in enumerate(pairs) if one not in largest}
