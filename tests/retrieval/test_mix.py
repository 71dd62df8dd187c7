"""Rows with passages over twenty passages: shares, citations, refusals, ranks of groups, room."""

from collections import Counter

import pytest

from stages.rlhf.chat import REFUSAL, cited, declines, fitting, without_citations
from stages.rlhf.records import PromptRow, RmRow, SftRow
from stages.rlhf.retrieval.lexical import Lexical
from stages.rlhf.retrieval.library import Library
from stages.rlhf.retrieval.mix import SEARCHED, Mix
from stages.rlhf.retrieval.passages import Passage
from stages.rlhf.retrieval.support import Support
from tests.retrieval_fixtures import TEXTS, blanks, demonstrations, groups, library, mix, rag

ROWS, GROUPS = demonstrations(), groups()
PROMPTS = [PromptRow(id=row.id, question=row.question) for row in ROWS]
UNKNOWN = SftRow(id="x", question="프랑스의 수도는 어디인가요?", answer="마르세유입니다.")


def value_of(row: SftRow) -> str:
    return row.answer.removesuffix("입니다.").split()[-1]


def states(passage: str, row: SftRow) -> bool:
    """Whether the passage is the one that was written for the row."""
    return passage.startswith(row.question.split()[0].removesuffix("의")) and (
        value_of(row) in passage
    )


def kind(made: SftRow) -> str:
    if made.passages is None:
        return "closed"
    return "refused" if declines(made.answer) else "cited"


def made_groups(**changed: float) -> list[tuple[RmRow, RmRow]]:
    """The thirty groups before and after, those without passages left out."""
    made = mix(**changed)
    pairs = [(row, made.group(row)) for row in GROUPS]
    return [(row, after) for row, after in pairs if after.passages is not None]


def test_shares_are_near_those_asked_for() -> None:
    made = mix()
    many = [row.model_copy(update={"id": f"{row.id}-{n}"}) for row in ROWS for n in range(6)]
    counts = Counter(kind(made.sft(row)) for row in many)
    assert counts["cited"] / len(many) == pytest.approx(0.6, abs=0.08)
    assert counts["refused"] / len(many) == pytest.approx(0.2, abs=0.06)


@pytest.mark.parametrize(
    ("right", "absent", "expected"), [(1, 0, "cited"), (0, 1, "refused"), (0, 0, "closed")]
)
def test_a_share_of_one_is_all_rows(right: float, absent: float, expected: str) -> None:
    made = mix(right=right, absent=absent)
    assert {kind(made.sft(row)) for row in ROWS} == {expected}


def test_draws_depend_on_the_seed_and_the_row_alone() -> None:
    def all_rows(made: Mix, order: int) -> list[SftRow | RmRow | PromptRow]:
        rows = [
            *map(made.sft, ROWS[::order]),
            *map(made.group, GROUPS[::order]),
            *map(made.prompt, PROMPTS[::order]),
        ]
        return sorted(rows, key=lambda row: (type(row).__name__, int(row.id)))

    first = all_rows(mix(), 1)
    assert all_rows(mix(), -1) == first
    other = all_rows(mix(seed=1), 1)
    for schema in (SftRow, RmRow, PromptRow):
        pairs = [(a, b) for a, b in zip(first, other, strict=True) if type(a) is schema]
        assert sum(a.passages != b.passages for a, b in pairs) > len(pairs) / 3


def test_a_cited_passage_states_the_answer() -> None:
    made = mix(right=1, absent=0)
    places = set()
    for row in ROWS:
        after = made.sft(row)
        number = cited(after.answer)
        assert number is not None
        assert states(after.passages[number - 1], row), row.question
        assert without_citations(after.answer) == row.answer
        assert not any(states(text, row) for text in after.passages[: number - 1])
        assert after.model_copy(update={"passages": None, "answer": row.answer}) == row
        places.add(number)
    assert places == {1, 2, 3}


def test_a_row_whose_evidence_is_absent_declines() -> None:
    made = mix(right=0, absent=1)
    for row in ROWS:
        after = made.sft(row)
        assert after.answer == REFUSAL
        assert 1 <= len(after.passages) <= 3
        assert not any(states(text, row) for text in after.passages)
        assert len(set(after.passages)) == len(after.passages)


@pytest.mark.parametrize("shares", [(1, 0), (0, 1), (0.5, 0.5)])
def test_an_answer_that_no_passage_supports_gets_none(shares: tuple[float, float]) -> None:
    made = mix(right=shares[0], absent=shares[1])
    assert made.sft(UNKNOWN) == UNKNOWN
    group = RmRow(
        id="x", question=UNKNOWN.question, answers=(UNKNOWN.answer, "글쎄요."), ranks=(1, 2)
    )
    assert made.group(group) == group
    assert made.without_evidence(UNKNOWN) is None


def test_a_held_out_row_gets_what_is_found() -> None:
    made = mix(right=0, absent=0)
    for row in ROWS:
        after = made.held_out(row)
        assert after.passages == tuple(TEXTS[i] for i in library().find(row.question, 3))
        right = [n for n, text in enumerate(after.passages, 1) if states(text, row)]
        assert after.answer == f"{row.answer} [{right[0]}]"
    after = made.held_out(UNKNOWN)
    assert after.passages
    assert after.answer == UNKNOWN.answer
    strange = UNKNOWN.model_copy(update={"question": "zzz?"})
    assert made.held_out(strange) == strange


def test_without_evidence_the_reference_stays() -> None:
    for row in ROWS:
        gone = mix().without_evidence(row)
        assert gone is not None
        assert gone.passages
        assert not any(states(text, row) for text in gone.passages)
        assert gone.model_copy(update={"passages": None}) == row


def test_a_group_keeps_its_answers_and_their_order() -> None:
    for row, after in made_groups():
        count = len(row.answers)
        assert tuple(map(without_citations, after.answers[:count])) == row.answers
        assert after.ranks[:count] == row.ranks
        assert all(1 <= cited(text) <= len(after.passages) for text in after.answers[:count])
        assert len(after.answers) == len(after.ranks) == len(after.defects)


def test_where_passages_answer_to_decline_is_worst() -> None:
    pairs = made_groups(right=1, absent=0)
    assert len(pairs) == len(GROUPS)
    miscited = 0
    for (row, after), asked in zip(pairs, ROWS, strict=True):
        count, best = len(row.answers), row.best
        assert states(after.passages[cited(after.answers[best]) - 1], asked)
        assert (after.answers[count], after.ranks[count]) == (REFUSAL, max(row.ranks))
        assert after.defects[: count + 1] == (*row.defects, "declines")
        assert after.best == best
        if len(after.answers) > count + 1:
            miscited += 1
            text, rank = after.answers[count + 1], after.ranks[count + 1]
            assert without_citations(text) == row.answers[best]
            assert not states(after.passages[cited(text) - 1], asked)
            assert sorted(after.ranks).index(rank) == 1
            assert after.ranks.count(rank) == 1
            assert after.defects[count + 1 :] == ("miscites",)
    assert 7 <= miscited <= 23


def test_where_passages_do_not_answer_to_decline_is_best() -> None:
    pairs = made_groups(right=0, absent=1)
    assert len(pairs) == len(GROUPS)
    for (row, after), asked in zip(pairs, ROWS, strict=True):
        assert not any(states(text, asked) for text in after.passages)
        assert after.best_answer == REFUSAL
        assert after.ranks[-1] == min(row.ranks) - 1
        assert len(after.answers) == len(row.answers) + 1
        names = {"none": "unsupported"}
        expected = [names.get(name, f"{name}+unsupported") for name in row.defects]
        assert after.defects == (*expected, "none")


def test_groups_without_defects_get_none() -> None:
    bare = [row.model_copy(update={"defects": None}) for row in GROUPS]
    for right in (0, 1):
        made = mix(right=right, absent=1 - right)
        assert {made.group(row).defects for row in bare} == {None}
        assert all(made.group(row).passages for row in bare)


def test_tied_ranks_stay_tied() -> None:
    tied = GROUPS[0].model_copy(update={"ranks": (1.5, 3.0, 1.5)})
    found = {mix(seed, right=1, absent=0).group(tied).ranks[3:] for seed in range(20)}
    assert found == {(3.0,), (3.0, 2.0)}


def test_prompts_get_passages_found_or_on_something_else() -> None:
    right, absent = mix(right=1, absent=0), mix(right=0, absent=1)
    for row, shown in zip(PROMPTS, ROWS, strict=True):
        found = right.prompt(row)
        assert found == right.found(row)
        assert any(states(text, shown) for text in found.passages)
        country, what = shown.question.split()[:2]
        foreign = absent.prompt(row)
        for text in foreign.passages or ():
            assert country.removesuffix("의") not in text
            assert what[:2] not in text
    assert all(mix(right=0, absent=0).prompt(row) == row for row in PROMPTS)


def test_a_prompt_gets_something_else_though_many_passages_are_on_its_subject() -> None:
    own = [f"프랑스의 오래된 강은 {n}번 강이다." for n in range(2 * SEARCHED)]
    others = [f"오래된 성 {n}번이다." for n in range(3 * SEARCHED)]
    passages = [Passage(str(n), (text,)) for n, text in enumerate([*own, *others])]
    texts = [passage.text for passage in passages]
    lexical = Lexical.build(passages, ["pieces", "morphemes"])
    made = Mix(Library(texts, [lexical], Support.of(texts)), rag(right=0, absent=1), 0, blanks)
    row = PromptRow(id="a", question="프랑스의 오래된 강은 무엇인가요?")
    found = made.prompt(row).passages
    assert found is not None
    assert len(found) == 3
    assert set(found) <= set(others)


@pytest.mark.parametrize("room", [2, 6, 14])
def test_all_fits_into_the_room(room: int) -> None:
    for right in (0, 1):
        made = mix(right=right, absent=1 - right, passage_tokens=room, passages=6)
        rows = [
            *map(made.sft, ROWS),
            *map(made.group, GROUPS),
            *map(made.prompt, PROMPTS),
            *map(made.held_out, ROWS),
            *map(made.found, PROMPTS),
            *filter(None, map(made.without_evidence, ROWS)),
        ]
        assert all(row.passages is None or row.passages for row in rows)
        assert all(blanks(row.message) - blanks(row.question) <= room for row in rows)
        assert all(
            fitting(row.passages or (), blanks, room) == len(row.passages or ()) for row in rows
        )
        assert any(row.passages for row in rows) == (room >= 6)
