"""Groups as ids: what is known of their order, and what is refused."""

import pytest
import torch

from stages.rlhf.chat import Codec
from stages.rlhf.records import RmRow
from stages.rlhf.reward.groups import as_pairs, batch_groups, encode_groups, length_balance
from stages.rlhf.reward.hard_negatives import HardNegative
from tests.conftest import naming
from tests.tokenizer_fixtures import tiny_tokenizer

CODEC = Codec(tiny_tokenizer())


def row(*answers: str, ranks: tuple[float, ...] | None = None) -> RmRow:
    ranks = ranks or tuple(float(i + 1) for i in range(len(answers)))
    return RmRow(id="q-7", question="한라산의 높이는?", answers=answers, ranks=ranks)


def encoded(own: RmRow, extra: HardNegative | None = None) -> list[list[int]]:
    return encode_groups([own], CODEC, 256, [extra])[0].pairs.int().tolist()


def test_a_negative_that_says_nothing_of_use_is_below_all() -> None:
    own = row("아마", "1947m", ranks=(2.0, 1.0))
    assert encoded(own) == [[0, 0], [1, 0]]
    for kind in ("echo", "other", "empty", "stuck", "count", "list"):
        found = encoded(own, HardNegative(kind, 1, ""))
        assert found == [[0, 0, 1], [1, 0, 1], [0, 0, 0]], kind


def test_a_negative_made_of_the_best_is_compared_with_it_and_its_equals_alone() -> None:
    own = row("가", "나", "다", "라", ranks=(2.0, 1.0, 3.0, 1.0))
    for kind in ("loop", "edited", "cut", "missing_eos", "filler"):
        found = encoded(own, HardNegative(kind, 1, "나나나"))
        assert [line[-1] for line in found] == [0, 1, 0, 1, 0], kind
        assert found[-1] == [0] * 5


def test_a_negative_is_encoded_with_the_group_and_never_the_best() -> None:
    group = encode_groups([row("나", "가")], CODEC, 256, [HardNegative("empty", 0, "")])[0]
    assert group.answers == [CODEC.response_ids("나"), CODEC.response_ids("가"), [CODEC.eos_id]]
    assert group.best == 0


def test_a_negative_that_was_cut_off_has_no_eos() -> None:
    negative = HardNegative("missing_eos", 0, "나나", ended=False)
    group = encode_groups([row("나", "가")], CODEC, 256, [negative])[0]
    assert group.answers[-1] == CODEC.response_ids("나나")[:-1]
    assert CODEC.eos_id not in group.answers[-1]


def test_identical_and_tied_answers_make_no_pair() -> None:
    assert encoded(row("가", "가", "나"))[0] == [0, 0, 1]
    assert encoded(row("가", "가")) == [[0, 0], [0, 0]]
    assert encoded(row("가", "나", ranks=(1.5, 1.5))) == [[0, 0], [0, 0]]


def test_a_group_of_one_is_refused_and_one_without_a_rank_for_each() -> None:
    with pytest.raises(ValueError, match=naming("q-7", 1, 2)):
        encode_groups([row("가")], CODEC, 256)
    with pytest.raises(ValueError, match=naming("q-7", 2, 3)):
        encode_groups([row("가", "나", ranks=(1.0, 2.0, 3.0))], CODEC, 256)


@pytest.mark.parametrize("count", [2, 9, 10, 60])
def test_a_group_has_any_number_of_answers(count: int) -> None:
    (group,) = encode_groups([row(*(str(i) for i in range(count)))], CODEC, 256)
    assert len(group.answers) == count
    assert group.pairs.sum() == count * (count - 1) / 2
    assert len(as_pairs([group])) == count * (count - 1) / 2


def test_an_answer_beyond_the_models_window_is_refused() -> None:
    own = row("네", "아주 긴 답입니다. " * 5)
    tokens = len(CODEC.prompt_ids(own.question)) + len(CODEC.response_ids(own.answers[1]))
    assert len(encode_groups([own], CODEC, tokens)) == 1
    facts = "q-7", tokens, "max_position_embeddings", tokens - 1
    with pytest.raises(ValueError, match=naming(*facts)):
        encode_groups([own], CODEC, tokens - 1)


def test_pairs_are_all_that_is_known_better_answer_first() -> None:
    own = row("가", "나", "다", ranks=(2.0, 1.0, 2.0))
    group = encode_groups([own], CODEC, 256, [HardNegative("cut", 1, "나나")])[0]
    pairs = as_pairs([group])
    said = [[CODEC.text(ids) for ids in pair.answers] for pair in pairs]
    assert said == [["나", "가"], ["나", "다"], ["나", "나나"]]
    for pair in pairs:
        assert pair.prompt == group.prompt
        assert pair.pairs.int().tolist() == [[0, 1], [0, 0]]
        assert pair.best == 0
    assert [pair.gaps[0, 1].item() for pair in pairs] == [1, 1, 2]


def test_batches_of_unequal_groups_are_padded_and_masked() -> None:
    rows = [row("나", "가", ranks=(2.0, 1.0)), row("가", "나다라", "다")]
    groups = encode_groups(rows, CODEC, 256)
    batch = batch_groups(groups, [2, 1], "cpu")
    assert batch.present.tolist() == [[True, True, False], [True] * 3]
    assert batch.pairs[0].int().tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert batch.pairs[1].equal(groups[1].pairs)
    assert batch.gaps[1].tolist() == [[0, 1, 2], [-1, 0, 1], [-2, -1, 0]]
    expected = [[len(a) for a in g.answers] for g in groups]
    assert batch.lengths.tolist() == [[*expected[0], 0], expected[1]]
    assert batch.best_rows.tolist() == [1, 2]
    assert batch.counts.tolist() == [2, 1]
    assert batch.lengths.dtype == batch.counts.dtype == torch.float32


def test_length_balance_counts_tokens_and_gives_every_group_the_same_say() -> None:
    long, short = "가나다라마바사", "가"
    three = row(long, "가나다", short)  # three pairs, the better one longer in each
    one = row(short, long)
    groups = encode_groups([three, one, one], CODEC, 256)
    longer, shorter = length_balance(groups)
    assert (longer, shorter) == pytest.approx((1.5, 0.75))  # one group against two
    assert length_balance(encode_groups([three], CODEC, 256)) == (1.0, 1.0)
