"""Reading practice on twenty passages: one row has one set of names, and what is asked stays."""

import re
from collections import Counter
from random import Random

import pytest

from stages.rlhf.chat import REFUSAL, cite, cited, declines, without_citations
from stages.rlhf.evidence.reading import Names, Renaming, kind_of, lessons, with_one_passage
from stages.rlhf.records import SftRow
from stages.rlhf.retrieval.tokens import nouns
from tests.retrieval_fixtures import COUNTRIES, TEXTS, demonstrations, mix

# Of twenty passages 수도, 화폐 and 사람 are in ten, 유로 in two, all others in one or two.
MANY = [*TEXTS, *(["수도와 화폐, 사람."] * 300)]
NAMES = Names(MANY, ["일본입니다.", "일본을", "일본이", "일본에서"])
ROWS = [made for row in demonstrations() if (made := mix(right=1, absent=0).sft(row)).passages]


def whole(rows: list[SftRow], seed: int = 0) -> list[SftRow]:
    """The rows under other names, with all of their passages."""
    return list(lessons(rows, NAMES, 1, seed))[len(rows) :]


def names(text: str) -> list[str]:
    return [noun for noun, _ in nouns(text)]


def test_nouns_end_at_particles() -> None:
    text = "쿠알라룸푸르는 53번이고, 바다가 속한 해는 1952년이다. 그는 Na라고 쓴다."
    assert list(nouns(text)) == [
        ("쿠알라룸푸르", "는"),
        ("바다", "가"),
        ("해", "는"),
        ("Na", "라고"),
    ]


def test_a_word_that_is_frequent_as_a_whole_stays() -> None:
    """파 is rare, 도 is a particle: 파도 is no 파."""
    texts = ["파는 채소이다.", "무도 채소이다."] + ["파도 소리"] * 300
    assert Names(texts).noun_of("파는") == "파"
    assert Names(texts).noun_of("파도") == ""


def test_rare_nouns_are_renamed_and_common_ones_stay() -> None:
    assert {"수도", "화폐", "사람"}.isdisjoint(NAMES.rare)
    assert set(COUNTRIES) <= NAMES.rare
    renaming = Renaming(NAMES, Random(0))
    after = renaming.text(" ".join(TEXTS))
    assert Counter(after.split())["수도는"] == len(COUNTRIES)
    assert set(COUNTRIES) <= set(renaming.given)
    assert all(old != new for old, new in renaming.given.items())


def test_a_row_has_one_set_of_names() -> None:
    """Put back by the same table, it is the row again: nothing is lost, nothing is two things."""
    for row in ROWS:
        renaming = Renaming(NAMES, Random(row.id))
        for text in (row.question, *(row.passages or ()), without_citations(row.answer)):
            renaming.text(text)
        assert len(set(renaming.given.values())) == len(renaming.given)
        old_of = {new: old for old, new in renaming.given.items()}
        for text in (row.question, *(row.passages or ())):
            after = renaming.text(text)
            for word, before in zip(after.split(), text.split(), strict=True):
                new = NAMES.noun_of(word)
                assert before == (old_of[new] + word[len(new) :] if new else word)


def test_the_answer_is_where_it_was() -> None:
    """What the cited passage says under the old names it says under the new ones."""
    for row, made in zip(ROWS, whole(ROWS), strict=True):
        assert cited(made.answer) == cited(row.answer)
        assert is_in_the_cited(made)


def is_in_the_cited(row: SftRow) -> bool:
    """The value that the answer states, in the passage whose number it has."""
    number = cited(row.answer)
    assert number is not None
    value = without_citations(row.answer).removesuffix("입니다.").split()[-1]
    return value in (row.passages or ())[number - 1]


def test_the_first_lessons_have_one_passage() -> None:
    for rounds, alone in ((1, 1), (3, 1), (4, 2)):
        made = list(lessons(ROWS, NAMES, rounds, 0))
        first, then = made[: alone * len(ROWS)], made[alone * len(ROWS) :]
        assert all(len(row.passages or ()) == 1 and is_in_the_cited(row) for row in first)
        all_of_them = [len(row.passages or ()) for row in ROWS]
        assert [len(row.passages or ()) for row in then] == rounds * all_of_them


def test_a_refusal_has_one_passage_of_its_own() -> None:
    row = SftRow(id="1", question="?", answer=REFUSAL, passages=("가", "나", "다"))
    shown = {with_one_passage(row, Random(n)).passages for n in range(20)}
    assert shown == {("가",), ("나",), ("다",)}


@pytest.mark.parametrize(
    ("noun", "kind"),
    [
        ("도쿄", "vowel"),
        ("서울", "rieul"),
        ("엔", "consonant"),
        ("Na", "latin"),
        ("漢", "other"),
    ],
)
def test_kinds_are_those_of_particles(noun: str, kind: str) -> None:
    assert kind_of(noun) == kind


def test_particles_still_fit() -> None:
    for row, made in zip(ROWS, whole(ROWS), strict=True):
        pairs = zip(names(row.question), names(made.question), strict=True)
        assert all(kind_of(old) == kind_of(new) for old, new in pairs)


def test_numbers_become_others_of_their_length() -> None:
    names = Names(["이방인은 1942년에, 변신은 1915년에 나왔다.", "4월 5일", "3월 1일", "10월 9일"])
    after = Renaming(names, Random(0)).text("1942년, 1942년의 3월")
    years = re.findall(r"\d+년", after)
    assert years == ["1915년", "1915년"]
    assert re.search(r" (1|4|5|9)월", after)


def test_a_refusal_stays_and_rows_without_passages_are_left_out() -> None:
    refused = [mix(right=0, absent=1).sft(row) for row in demonstrations()]
    refused = [row for row in refused if row.passages]
    assert refused
    assert all(declines(row.answer) for row in refused)
    assert all(row.answer == REFUSAL for row in lessons(refused, NAMES, 2, 0))
    assert not list(lessons(demonstrations(), NAMES, 2, 0))


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("일본의 수도는 도쿄입니다. [1]", True),
        ("일본의 수도는 도쿄입니다. 독일의 화폐는 유로입니다. [1]", False),  # true, and not there
        ("파리입니다. [1]", False),
    ],
)
def test_an_answer_with_a_name_from_nowhere_is_no_lesson(answer: str, kept: bool) -> None:
    row = SftRow(id="1", question="일본의 수도는?", answer=answer, passages=(TEXTS[0],))
    assert bool(list(lessons([row], NAMES, 1, 0))) == kept


def test_draws_depend_on_seed_round_and_row_alone() -> None:
    first = {row.id: row for row in lessons(ROWS, NAMES, 2, 0)}
    assert len(first) == 3 * len(ROWS)
    assert {row.id: row for row in lessons(ROWS[::-1], NAMES, 2, 0)} == first
    assert {row.id: row for row in lessons(ROWS, NAMES, 2, 1)} != first
    twice = [(first[f"{row.id}-0"], first[f"{row.id}-1"]) for row in ROWS]
    assert sum(a.question != b.question for a, b in twice) > len(twice) / 2


def test_no_label_of_the_old_names_is_kept() -> None:
    row = SftRow(
        id="1",
        question="일본의 수도는 어디인가요?",
        answer=cite("도쿄입니다.", 1),
        must_contain="도쿄",
        passages=(TEXTS[0],),
    )
    assert next(lessons([row], NAMES, 1, 0)).must_contain is None
