"""The arithmetic of cards that are not here, by hand and by torch's counter."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from stages.cli.main import koqa
from stages.rlhf.model.sequences import decoder_of
from stages.rlhf.plan.cluster import CARDS, REACHED, Cluster, Passes, report, steps
from stages.rlhf.plan.footprint import GIB, NF4_SIZE, Shape, memory
from tests.model_fixtures import ARCHITECTURE, shipped, tiny_llama

KO7 = Shape(4096, 11008, 32, 32, 32, 128, 46336, tied=False)  # LLaMA-2-ko-7B
BIG = Shape(8192, 28672, 80, 64, 8, 128, 128256, tied=False)  # Llama-3-70B
PARAMS = shipped().model_copy(update={"model": "llama2-ko-7b"})


def cluster(gpus: int, hosts: int = 1, card: str = "h100") -> Cluster:
    return Cluster(CARDS[card], gpus, hosts)


def test_shapes_have_the_parameters_that_the_models_are_named_for() -> None:
    assert KO7.parameters == pytest.approx(6.86e9, rel=0.01)
    assert BIG.parameters == pytest.approx(70.55e9, rel=0.01)


def test_flops_of_a_forward_are_those_that_torch_counts() -> None:
    rows, row = 3, 24
    model = tiny_llama(ARCHITECTURE.vocab_size)
    ids = torch.randint(5, 20, (rows, row))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder_of(model)(input_ids=ids)
    shape = Shape.of(model.config.to_dict())
    own = Passes(shape, cluster(1), 4, 4).forward(rows * row, 0, row)
    norms = 2.0 * rows * row * (shape.norms * shape.layers + 1) * shape.hidden  # are no products
    attention = 2.0 * row * shape.heads * shape.head_dim * shape.layers * rows * row
    assert counter.get_total_flops() in (  # a fused kernel is counted with its masked half, or not
        pytest.approx(own - norms, rel=1e-6),
        pytest.approx(own - norms + attention, rel=1e-6),
        pytest.approx(own - norms - attention, rel=1e-6),
    )


def test_a_backward_through_frozen_weights_costs_a_forward() -> None:
    passes = Passes(KO7, cluster(1), 2, 16)
    adapter, attention = passes.adapter(1000), passes.attention(1000, 500)
    once = passes.forward(1000, 0, 500) - attention
    reached = CARDS["h100"].flops * REACHED["arithmetic"]
    assert passes.train(1000, 0, 500).arithmetic == pytest.approx(
        (2 * once + 3 * attention + 3 * adapter) / reached
    )
    full = passes.train(1000, 0, 500, full=True).arithmetic
    assert full == pytest.approx(3 * (once + attention) / reached)
    again = passes.train(1000, 0, 500, again=True).arithmetic
    assert again == pytest.approx((3 * once + 4 * attention + 4 * adapter) / reached)


def test_a_decoding_step_reads_all_weights_and_the_cache() -> None:
    passes = Passes(KO7, cluster(1), 2, 16)
    found = passes.decode(rows=4, prompt=100, answer=50, batch=4)
    weights = 2 * (KO7.parameters - KO7.embedding)  # of embedding and head, the head alone
    cache = 4 * 125 * 2 * 2 * 32 * 4096  # rows, tokens, keys and values, bytes, layers, width
    assert found.traffic == pytest.approx(50 * (weights + cache) / (3.35e12 * 0.6))
    assert (found.bound, found.busy) == ("traffic", found.traffic)
    twice = passes.decode(rows=4, prompt=100, answer=50, batch=2)
    assert twice.traffic == pytest.approx(50 * (2 * weights + cache) / (3.35e12 * 0.6))
    packed = replace(passes, linear_size=NF4_SIZE).decode(rows=4, prompt=100, answer=50, batch=4)
    weights -= (2 - NF4_SIZE) * 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert packed.traffic == pytest.approx(50 * (weights + cache) / (3.35e12 * 0.6))


def test_a_ring_sends_twice_all_but_its_own_part() -> None:
    assert cluster(1).exchange(1e9) == 0
    assert cluster(8).exchange(1e9) == pytest.approx(2 * 7 / 8 * 1e9 / (450e9 * 0.7))
    assert cluster(8, 2).exchange(1e9) == pytest.approx(2 * 15 / 16 * 1e9 / (400e9 * 0.7))
    assert cluster(16, 2).exchange(1e9) == pytest.approx(2 * 31 / 32 * 1e9 / (450e9 * 0.7))


def test_phases_follow_each_other() -> None:
    """Decoding waits for memory, learning for arithmetic: neither hides the other."""
    passes = Passes(KO7, cluster(1), 2, 16)
    one, two = passes.decode(8, 64, 64, 8), passes.train(8 * 128, 8 * 64, 128)
    assert (one.bound, two.bound) == ("traffic", "arithmetic")
    assert (one + two).total == pytest.approx(one.total + two.total)
    assert (one + two).total > max((one + two).arithmetic, (one + two).traffic)


def test_twice_the_cards_take_half_the_arithmetic() -> None:
    one, two = (steps(KO7, PARAMS, cluster(n)) for n in (1, 2))
    for stage in ("sft", "rm", "judge"):
        assert two[stage].seconds.arithmetic == pytest.approx(one[stage].seconds.arithmetic / 2)
        assert one[stage].tokens == two[stage].tokens
    assert one["sft"].seconds.links == 0
    assert two["sft"].seconds.links > 0


def test_decoding_gains_less_than_the_rest_from_more_cards() -> None:
    """Each card reads all weights for its share of the answers."""
    one, eight = (steps(KO7, PARAMS, cluster(n))["ppo"].seconds for n in (1, 8))
    scale = PARAMS.base_model
    batches = scale.ppo.batch_size / scale.generate.batch_size  # of one card; of eight: less than 1
    assert one.traffic / eight.traffic < batches * 2
    assert one.arithmetic / eight.arithmetic == pytest.approx(8)


def test_more_members_and_a_value_model_make_an_update_longer() -> None:
    plain = steps(KO7, PARAMS, cluster(8))["ppo"].seconds
    rm = PARAMS.rm.model_copy(update={"members": 3})
    gae = PARAMS.ppo.model_copy(update={"advantage": "gae"})
    more = PARAMS.model_copy(update={"rm": rm})
    valued = PARAMS.model_copy(update={"ppo": gae})
    assert steps(KO7, more, cluster(8))["ppo"].seconds.arithmetic > plain.arithmetic
    assert steps(KO7, valued, cluster(8))["ppo"].seconds.links == pytest.approx(2 * plain.links)
    read = PARAMS.model_copy(update={"rag": PARAMS.rag.model_copy(update={"enabled": True})})
    assert steps(KO7, read, cluster(8))["sft"].tokens > steps(KO7, PARAMS, cluster(8))["sft"].tokens


def test_what_fits_is_what_the_footprint_says() -> None:
    need = 0.8 + sum(memory(KO7, PARAMS, "cuda")["ppo"].values()) / GIB
    assert need == pytest.approx(62.2, abs=0.1)  # which the room's README says
    assert "All fit." in report(KO7, PARAMS, cluster(1), "h100")
    small = replace(CARDS["h100"], memory=need - 0.5)
    sharded = report(KO7, PARAMS, Cluster(small, 8, 2), "small")
    assert "Fit sharded: ppo. From" in sharded
    layers = 2 * KO7.decoder / GIB
    least = need - layers * (1 - 1 / 8 - 2 / 32)  # over the eight cards of a machine, not sixteen
    (row,) = (line.split() for line in sharded.splitlines() if line.startswith("ppo"))
    assert row[7:9] == [f"{need:.1f}", f"{least:.1f}"]
    assert "Do not fit: ppo. From" in report(KO7, PARAMS, Cluster(small, 1, 16), "small")
    found = report(BIG, PARAMS, cluster(8, 2), "h100")
    assert "Fit sharded: sft. Do not fit: rm, judge, ppo." in found  # as the room's README says
    assert found.startswith("llama2-ko-7b on 2 machines of 8 x h100")


def test_the_command_prints_a_line_per_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(koqa, ["plan", "--gpus", "4", "--card", "a100"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].startswith("tiny on 4 x a100")
    assert [line.split()[0] for line in lines[2:6]] == ["sft", "rm", "judge", "ppo"]
    assert "nothing" not in done.output
