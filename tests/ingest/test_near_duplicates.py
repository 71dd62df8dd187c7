"""Questions that begin, end or are framed alike are told apart by what differs."""

import random
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from stages.rlhf.ingest.splitting.near_duplicates import (
    CROWD,
    CROWD_SHARE,
    Crowd,
    group_near_duplicates,
)

draw = random.Random(0)


def syllables(count: int) -> str:
    return "".join(chr(0xAC00 + draw.randrange(2000)) for _ in range(count))


def grouped(texts: list[str], threshold: float = 0.9) -> tuple[list[int], list[Crowd]]:
    """The group of each text, and the crowds."""
    groups, crowds = group_near_duplicates(texts, threshold, np.ones(len(texts), dtype=bool))
    return [groups.find(n) for n in range(len(texts))], crowds


OPENINGS = [syllables(260) for _ in range(30)]
FRAMES: dict[str, Callable[[], str]] = {
    "opening": lambda: OPENINGS[0] + syllables(8),
    "opening, tails of many lengths": lambda: OPENINGS[0] + syllables(draw.randint(8, 27)),
    "closing": lambda: syllables(8) + OPENINGS[0],
    "middle": lambda: syllables(5) + OPENINGS[0] + syllables(5),
    "both ends": lambda: OPENINGS[0][:130] + syllables(8) + OPENINGS[1][:130],
    "three openings": lambda: draw.choice(OPENINGS[:3]) + syllables(8),
    "thirty openings": lambda: draw.choice(OPENINGS) + syllables(8),
}


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("count", [300, 3000])
def test_frames_are_no_duplicates(frame: str, count: int) -> None:
    if frame == "thirty openings" and count == 300:
        count = 3000  # so that there are CROWD of each
    texts = sorted({FRAMES[frame]() for _ in range(count)})
    assert grouped(texts) == (list(range(count)), [])


def test_near_duplicates_within_a_frame_are_linked() -> None:
    texts = []
    for _ in range(100):
        rest = syllables(80)
        texts += [OPENINGS[0] + rest, OPENINGS[0] + rest[:40] + "뷁" + rest[41:]]
    assert grouped(texts) == ([n // 2 * 2 for n in range(200)], [])


def test_a_frame_and_others() -> None:
    framed = [OPENINGS[0] + syllables(8) for _ in range(40)]
    one = syllables(60)
    others = [one, one + "가", syllables(12), syllables(12)]
    assert grouped(framed + others)[0] == [*range(40), 40, 40, 42, 43]


def test_what_does_not_differ_remains_and_is_named() -> None:
    """All have the same grams: nothing is left to tell them apart."""
    same = ["가" * count for count in range(3, 3 + 2 * CROWD)]
    framed = [OPENINGS[0] + syllables(8) for _ in range(60)]
    found, crowds = grouped(same + framed)
    assert found == [0] * 2 * CROWD + list(range(2 * CROWD, 2 * CROWD + 60))
    assert crowds == [Crowd(size=40, share=0.4, example="가가가")]


def test_crowds_come_by_size() -> None:
    texts = [sign * count for sign in "가나다" for count in range(3, 23 + 5 * (sign == "나"))]
    _, crowds = grouped(texts)
    assert [(crowd.size, crowd.example) for crowd in crowds] == [
        (25, "나나나"), (20, "가가가"), (20, "다다다"),
    ]  # fmt: skip


def test_smaller_groups_are_as_they_are() -> None:
    """Fewer than CROWD, or than their share of all."""
    for count, others in ((CROWD - 1, 0), (CROWD + 10, int((CROWD + 10) / CROWD_SHARE))):
        framed = [OPENINGS[0] + syllables(8) for _ in range(count)]
        found, crowds = grouped(framed + [syllables(12) for _ in range(others)])
        assert found == [0] * count + list(range(count, count + others))
        assert crowds == []


def test_links_within_a_frame_need_a_free_text() -> None:
    rest = syllables(80)
    texts = [OPENINGS[0] + rest + sign for sign in ("", "가", "나")]
    texts += ["가" * count for count in range(3, 33)]
    texts += [OPENINGS[0] + syllables(80) for _ in range(60)]
    free = np.zeros(len(texts), dtype=bool)
    free[33:] = True
    groups, _ = group_near_duplicates(texts, 0.9, free)
    assert [groups.find(n) for n in range(len(texts))] == list(range(len(texts)))
    free[[1, 20]] = True
    groups, _ = group_near_duplicates(texts, 0.9, free)
    assert [groups.find(n) for n in range(33)] == [0] * 3 + [3] * 30


def test_signs_beyond_the_basic_plane_count_alike() -> None:
    plain = [syllables(5) for _ in range(20)]
    plain = [draw.choice(plain) + draw.choice(plain) + draw.choice(plain) for _ in range(200)]
    odd = [text.translate({n: n + 0x10000 for n in range(0xAC00, 0xB400)}) for text in plain]
    mixed = [text.translate({n: n + 0x10000 for n in range(0xAC00, 0xB000)}) for text in plain]
    expected = grouped(plain, 0.5)
    assert len(Counter(expected[0])) < 180
    for texts in (odd, mixed):
        assert grouped(texts, 0.5)[0] == expected[0]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("opening", "tail"), [(100, 9), (260, 8), (260, 12)])
def test_many_questions_of_one_opening_are_not_all_compared(opening: int, tail: int) -> None:
    texts = [OPENINGS[0][:opening] + syllables(tail) for _ in range(5000)]
    began = time.process_time()
    assert grouped(texts) == (list(range(5000)), [])
    assert time.process_time() - began < 20
