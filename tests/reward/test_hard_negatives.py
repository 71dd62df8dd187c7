"""Answers made worse on purpose: each is what its name says, and none slips in as a good one."""

import random
import re

import pytest

from stages.rlhf.chat import Codec
from stages.rlhf.korean import sentence_ends
from stages.rlhf.measure.violations import copies, loops
from stages.rlhf.records import RmRow
from stages.rlhf.reward.hard_negatives import (
    ENDLESS_KINDS,
    LAST,
    MAKERS,
    agrees,
    alike,
    count,
    counts,
    cut,
    edited,
    filler,
    for_training,
    held_out,
    listed,
    loop,
    make,
    slip,
    stuck,
)
from tests.tokenizer_fixtures import tiny_tokenizer

ANSWER = "한라산의 높이는 1947m입니다. 한라산은 제주도에 있습니다."
OTHER = "훈민정음은 세종대왕이 만들었습니다. 1443년의 일입니다."


def rngs() -> list[random.Random]:
    return [random.Random(seed) for seed in range(40)]


def row(name: str, question: str, *answers: str) -> RmRow:
    return RmRow(
        id=name,
        question=question,
        answers=answers,
        ranks=tuple(float(len(answers) - i) for i in range(len(answers))),  # the last is the best
    )


ROWS = [
    row("a", "한라산의 높이는 얼마인가요?", "모릅니다.", ANSWER),
    row("b", "훈민정음은 누가 만들었나요?", "이순신입니다.", "몰라요", OTHER),
    row("c", "김치의 주재료를 알려 주세요.", "무엇일까요?", "배추로 담그는 음식이에요."),
]


def anything(text: str) -> bool:
    return True


def short(text: str) -> bool:
    return len(text) <= 200


def test_a_loop_says_something_three_times_in_a_row() -> None:
    for rng in rngs():
        found = loop(ANSWER, rng)
        assert found is not None
        assert loops(found), found
        assert ANSWER.startswith(found.split()[0])
    assert loop("", rngs()[0]) is None


def numbers_in(text: str, pattern: str) -> list[int]:
    return [int(found) for found in re.findall(pattern, text)]


def test_an_endless_answer_fills_the_limit() -> None:
    for rng in rngs():
        for text in (
            stuck(ANSWER, ROWS[0].question, short, rng),
            count(ANSWER, short, rng),
            listed(ANSWER, OTHER, short, rng),
        ):
            assert text is not None
            assert 198 <= len(text) <= 200  # a blank at the limit falls off
            assert ANSWER not in text


def test_one_that_is_stuck_says_the_same_to_the_end() -> None:
    found = [stuck(ANSWER, "왜 그런가요?", short, rng) for rng in rngs()]
    assert all(text and loops(text) for text in found)
    openings = {text.split("\n")[0][:8] for text in found if text}
    assert "왜 그런가요?" in {opening.strip() for opening in openings}
    assert len(openings) > 4
    asked = stuck("네.", "높이는?", short, rngs()[0])
    assert asked is not None
    assert asked.startswith(("높이는? 높이는? 높이는? ", "높이는?\n높이는?\n"))


def test_a_count_goes_up_by_one_from_a_wrong_number() -> None:
    for rng in rngs():
        text = count("한라산의 높이는 1947m입니다.", short, rng)
        assert text is not None
        assert numbers_in(text, r"높이는 (\d+)m입니다\.") == list(range(1948, 1958))
        assert loops(text)
        text = count("산은 제주도에 있습니다.", short, rng)
        assert text is not None
        found = numbers_in(text, r"(\d+)(?:년|\.) 제주도에 있습니다\.")
        assert found == list(range(found[0], found[0] + len(found)))
        assert found[0] == 1 or 1900 < found[0] <= 2021
        assert loops(text)
    assert count("네.", short, rngs()[0]) is None
    assert count("9" * 5000, short, rngs()[0]) is None


def test_a_list_repeats_its_frame_with_other_words() -> None:
    for rng in rngs():
        text = listed(ANSWER, OTHER, short, rng)
        assert text is not None
        lines = [line.split()[1:] for line in text.split("\n")[:-1]]
        assert len(lines) > 5
        assert [words[0] for words in lines[:2]] == ["훈민정음은", "세종대왕이"]
        assert len({tuple(words[1:]) for words in lines}) == 1
        assert " ".join(lines[0][1:]) in ANSWER
    assert listed("네.", OTHER, short, rngs()[0]) is None
    assert listed(ANSWER, "", short, rngs()[0]) is None


def test_an_edited_repeat_has_no_two_sentences_that_are_the_original() -> None:
    for rng in rngs():
        text = edited(ANSWER, rng)
        assert text is not None
        first, *others = text.removesuffix(".").split(". ")
        assert first == "한라산의 높이는 1947m입니다"
        copies_of = ["높이는 1947m입니다", "한라산의 1947m입니다"]
        if others[0] == "한라산은 제주도에 있습니다":
            copies_of, others = ["제주도에 있습니다", "한라산은 있습니다"], others[1:]
        assert 2 <= len(others) <= 4
        assert set(others) <= set(copies_of)
    assert edited("네. 한라산 입니다.", rngs()[0]) is None


def test_what_is_cut_off_has_no_eos() -> None:
    codec = Codec(tiny_tokenizer())
    ended: dict[str, set[bool]] = {}
    for kind in MAKERS:
        for rng in rngs():
            found = make(ROWS[0], kind, ROWS, short, rng)
            assert found is not None
            ids = found.response_ids(codec)
            assert (ids[-1] == codec.eos_id) == found.ended
            assert ids == codec.response_ids(found.text)[: len(ids)]
            ended.setdefault(kind, set()).add(found.ended)
    both = {kind: {True, False} for kind in ENDLESS_KINDS}
    assert ended == {**{kind: {True} for kind in MAKERS}, "missing_eos": {False}, **both}


def test_a_cut_ends_inside_a_sentence() -> None:
    found = {cut(ANSWER, rng) for rng in rngs()}
    assert len(found) > 5
    for text in found:
        assert text is not None
        assert ANSWER.startswith(text)
        assert len(text) < len(ANSWER) - 1
        assert len(text) not in sentence_ends(text)
    assert cut("네.", rngs()[0]) is None


def test_filler_adds_a_sentence_of_another_answer() -> None:
    found = {filler(ANSWER, OTHER, rng) for rng in rngs()}
    assert found == {
        f"{ANSWER} 훈민정음은 세종대왕이 만들었습니다.",
        f"{ANSWER} 1443년의 일입니다.",
    }
    assert filler(f"{ANSWER} {OTHER}", OTHER, rngs()[0]) is None
    assert filler(ANSWER, "", rngs()[0]) is None


def test_a_hard_negative_keeps_the_lines_of_its_original() -> None:
    answer = "합:\n\n- 하나\n    - 둘"
    found = {loop(answer, rng) for rng in rngs()}
    assert f"{answer} 둘 둘 둘" in found
    assert all(text and text.startswith(("합: 합:", "합:\n\n-")) for text in found)
    assert filler("```\nx\n```", "네.", rngs()[0]) == "```\nx\n```\n네."


def test_alike_counts_character_pairs_in_common() -> None:
    assert alike("가나다", "가나라마") == 0.5
    assert alike("가나다", "가나다") == 1
    assert alike("가나다", "라마바") == alike("", "가나다") == 0


@pytest.mark.parametrize("kind", MAKERS)
def test_each_kind_is_made_of_the_best_answer(kind: str) -> None:
    found = make(ROWS[0], kind, ROWS, anything, random.Random(0))
    assert found is not None
    assert (found.kind, found.original) == (kind, 1)
    if kind in ("loop", "edited", "cut", "missing_eos", "filler"):
        assert found.text.startswith(ANSWER[:3])
    if kind == "echo":
        assert copies(found.text, ROWS[0].question, ANSWER)
    if kind == "other":
        assert found.text in (OTHER, "배추로 담그는 음식이에요.")
    assert (found.text == "") == (kind == "empty")


def test_an_answer_about_the_same_thing_is_no_other_questions_answer() -> None:
    twin = row("d", "한라산의 높이를 알려 주세요.", "몰라요", "한라산의 높이는 1947m입니다.")
    assert make(ROWS[0], "other", [ROWS[0], twin], anything, random.Random(0)) is None


def test_what_does_not_fit_or_is_there_already_is_not_made() -> None:
    assert make(ROWS[0], "filler", ROWS, lambda text: len(text) < 30, random.Random(0)) is None
    echo = row("e", "김치는?", "김치는", "배추김치")
    assert make(echo, "echo", ROWS, anything, random.Random(0)) is None


def many(count: int, answers: int = 2) -> list[RmRow]:
    """Rows about ten things whose names share no syllable."""
    subjects = ["".join(chr(0xAC00 + 997 * i + k) for k in range(20)) for i in range(10)]
    return [
        row(
            str(i),
            f"{subjects[i % 10]} {i}?",
            *(f"{subjects[i % 10]} {i} {k}다." for k in range(answers)),
        )
        for i in range(count)
    ]


def test_about_that_share_of_the_rows_gets_one_of_all_kinds() -> None:
    rows = many(400)
    made = for_training(rows, 0.25, anything, "seed")
    assert 70 < sum(one is not None for one in made) < 130
    assert all(counts(made)[kind] >= 5 for kind in MAKERS), counts(made)
    assert sum(counts(made).values()) == sum(one is not None for one in made)
    assert for_training(rows, 0.0, anything, "seed") == [None] * 400
    assert all(for_training(rows, 1.0, anything, "seed"))


def test_draws_depend_on_seed_and_row_alone() -> None:
    rows = many(60)
    made = for_training(rows, 0.5, anything, "seed")
    assert for_training(rows, 0.5, anything, "seed") == made
    assert for_training(rows, 0.5, anything, "other") != made
    kept = [one is not None for one in made]
    turned = for_training(rows[::-1], 0.5, anything, "seed")[::-1]
    assert [one is not None for one in turned] == kept


@pytest.mark.parametrize("answers", [2, 9, 20])
def test_a_group_of_any_size_gets_one(answers: int) -> None:
    assert all(for_training(many(5, answers), 1.0, anything, "seed"))


def test_where_a_kind_cannot_be_made_the_next_one_is() -> None:
    made = for_training(many(40), 1.0, lambda text: text == "", "seed")
    assert counts(made) == {**dict.fromkeys((*MAKERS, "slip"), 0), "empty": 40}
    assert for_training(many(4), 1.0, lambda text: False, "seed") == [None] * 4


def test_a_slip_is_the_first_sample_that_is_not_the_best_answer() -> None:
    codec = Codec(tiny_tokenizer())
    own = row("a", "수도는?", "모릅니다.", "서울입니다.")
    texts = "서울입니다.", " 서울입니다. ", "부산입니다.", "네."
    said = [codec.response_ids(text) for text in texts]
    found = slip(own, said, codec)
    assert found is not None
    assert (found.kind, found.original, found.text, found.ended) == ("slip", 1, "부산입니다.", True)
    assert found.response_ids(codec) == said[2]
    assert slip(own, said[:2], codec) is None
    cut = slip(own, [said[3][:-1]], codec)
    assert cut is not None
    assert not cut.ended
    assert cut.response_ids(codec) == said[3][:-1]
    assert agrees(" 서울입니다.", own)
    assert not agrees("모릅니다.", own)


def test_a_slip_whose_text_is_not_all_of_it_keeps_its_ids() -> None:
    """Half of a syllable is no character: as a text it would become another answer."""
    codec = Codec(tiny_tokenizer())
    own, whole = row("a", "수도는?", "모릅니다.", "서울입니다."), codec.response_ids("서울 갗")
    broken = [*whole[:-2], codec.eos_id]
    found = slip(own, [broken], codec)
    assert found is not None
    assert found.response_ids(codec) == broken


def test_held_out_has_one_of_each_kind_per_row_where_it_can_be_made() -> None:
    found = held_out(ROWS, anything, "seed")
    assert list(found) == list(MAKERS)
    assert {len(twins) for twins in found.values()} == {3}
    for kind, twins in found.items():
        assert [index for index, _ in twins] == [0, 1, 2]
        for own, (_, twin) in zip(ROWS, twins, strict=True):
            assert twin.kind == kind
            assert twin.original == own.best
            assert twin.text not in own.answers
    assert held_out(ROWS, lambda text: text != "", "seed")["empty"] == []


def test_what_is_ranked_last_does_not_hold_the_best_answer() -> None:
    for kind in LAST:
        for own in ROWS:
            found = make(own, kind, ROWS, anything, random.Random(1))
            assert found is not None
            assert own.best_answer not in found.text
