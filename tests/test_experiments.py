"""The tables of experiments: their columns are metrics, their params load, rivals are paired."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.rlhf.chat import Codec
from stages.rlhf.config.whole import load_params
from stages.rlhf.decoding.generation import greedy_responses
from stages.rlhf.measure.win_rate import mean_and_interval
from stages.rlhf.model.store import load_sft
from stages.rlhf.plan.experiments import WORKSPACE
from stages.rlhf.records import SftRow, write_jsonl
from stages.rlhf.report import comparison
from stages.world.build import build_world
from tests.benchmarks import experiments, rivals
from tests.conftest import ROOT, naming, write_params
from tests.model_fixtures import LORA, at_once, save_base, save_sft
from tests.tokenizer_fixtures import QUESTIONS, SENTENCES, tiny_tokenizer

# PPO answers few of these unlike SFT, on some processors none: there is no share, or no interval
OF_DECIDED = [
    f"ppo_vs_sft.unseen_wording.{metric}"
    for metric in ("win_rate_decided", "chrf_win_rate_decided", "judge_agreement")
]
KINDS = [rivals.KINDS[i % 3] for i in range(len(QUESTIONS))]
ASKED = [
    SftRow(id=str(i), question=question, answer=SENTENCES[i % 4], must_contain="입니다", kind=kind)
    for i, (question, kind) in enumerate(zip(QUESTIONS, KINDS, strict=True))
]


@pytest.mark.parametrize("name", ["rm_ablation", "seeds", "control"])
def test_every_column_is_a_metric_of_the_default_run(name: str) -> None:
    cells = experiments.TABLES[name].read({"default": {"rev": WORKSPACE}}, {})["default"]
    lost = {column for column, value in cells.items() if value is None}
    lost -= {f"{metric}{end}" for metric in OF_DECIDED for end in rivals.ENDS}
    assert lost <= {"ppo.skipped_reason"}  # there is one where PPO is skipped


@pytest.mark.parametrize(
    ("name", "row"), [(name, row) for name, t in experiments.TABLES.items() for row in t.rows]
)
def test_params_of_every_row_load(name: str, row: str, tmp_path: Path) -> None:
    changed = experiments.TABLES[name].rows[row]
    load_params(write_params(tmp_path, **changed))
    slug = experiments.slug(name, row, changed)
    assert (slug == "default") == (not changed)
    assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_rows_and_params_have_names_of_their_own() -> None:
    for name, table in experiments.TABLES.items():
        changed = [tuple(sorted(map(str, row.items()))) for row in table.rows.values()]
        slugs = {experiments.slug(name, row, table.rows[row]) for row in table.rows}
        assert len(set(changed)) == len(slugs) == len(table.rows)


def test_rivals_are_read_beside_the_seeds_of_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    table = experiments.TABLES["rivals"]
    found = {row: {"rev": f"rev of {row}"} for row in table.rows}
    done = {name: {"rev": name} for name in ("default", "seeds-seed-1", "seeds-seed-2")}
    monkeypatch.setattr(rivals, "read", lambda *revs: {"given": {"revs": revs}})
    assert table.read(found, done)["given"]["revs"] == (
        {row: f"rev of {row}" for row in table.rows},
        {0: "default", 1: "seeds-seed-1", 2: "seeds-seed-2"},
    )
    with pytest.raises(ValueError, match=naming("seeds-seed-2")):
        table.read(found, {name: done[name] for name in ("default", "seeds-seed-1")})


def test_the_table_says_what_its_rows_change(tmp_path: Path) -> None:
    table = experiments.TABLES["rivals"]
    row = rivals.row_name("demonstrations alone", 2)
    cells: dict[str, rivals.Cells] = {
        row: {"a": 1 / 3, "b": None, "c": "True"},
        "demonstrations alone": {"a": 1, "b": 2, "c": 3},
    }
    experiments.write(tmp_path / "t.csv", table, "abc", cells)
    assert (tmp_path / "t.csv").read_text("utf-8").splitlines() == [
        "row,commit,changed,a,b,c",
        "demonstrations alone seed 2,abc,sft.data=demonstrations seed=2,0.333333,,True",
        "demonstrations alone,abc,,1,2,3",
    ]


def frame(exact: Sequence[float]) -> pd.DataFrame:
    """(N, metrics), all 0.5 but `exact`."""
    made = pd.DataFrame({key: np.full(len(exact), 0.5) for key in rivals.ANSWERS})
    made["exact"] = exact
    return made


def test_gains_over_a_rival_are_paired_and_pooled_by_question() -> None:
    ppo = {0: [1, 1, 1, 0], 1: [1, 0, 1, 0], 2: [1, 1, 1, 1]}
    own = {0: [0, 1, 1, 0], 1: [0, 0, 1, 0], 2: [0, 0, 1, 0]}
    asked = [ASKED[0], ASKED[1], ASKED[2], ASKED[3]]  # kinds 0, 1, 2, 0
    values = {
        rivals.row_name(rival, seed): frame(own[seed])
        for rival in rivals.RIVALS
        for seed in rivals.SEEDS
    }
    taught = {seed: frame(exact)[list(rivals.GAINS)] for seed, exact in ppo.items()}
    bootstrap = comparison.Bootstrap(500, 0)
    found = rivals.table(values, taught, asked, bootstrap)
    assert set(found) == {*rivals.rows(), *rivals.RIVALS}
    one, pooled = found["demonstrations alone seed 0"], found["demonstrations alone"]
    assert (one["all.exact"], one["all.exact_ppo_gain"]) == (0.5, 0.25)
    assert one["unseen_wording.exact_ppo_gain"] == 0.5
    assert pooled["all.exact"] == pytest.approx(4 / 12)
    assert pooled["all.exact_ppo_gain"] == pytest.approx(5 / 12)
    assert pooled["never_asked.exact_ppo_gain"] == pytest.approx(1 / 3)
    assert pooled["unseen_ending.exact"] == 1
    assert (pooled["all.chrf_ppo_gain"], pooled["all.chrf_ppo_gain_ci_high"]) == (0, 0)
    # resampled are the four questions' mean gains, not twelve answers
    drawn = mean_and_interval("g", np.array([1, 1 / 3, 0, 1 / 3]), 500, 0, "")
    for end in ("_ci_low", "_ci_high"):
        assert pooled[f"all.exact_ppo_gain{end}"] == pytest.approx(drawn[f"g{end}"])


def test_answers_of_ppo_are_found_by_question(tmp_path: Path) -> None:
    said = [
        {"id": row.id, "ppo": {"answer": row.answer if row.id == "3" else "아", "cosine": 0.1}}
        for row in reversed(ASKED)
    ]
    write_jsonl(tmp_path / "samples.jsonl", said)
    found = rivals.ppo_values(tmp_path / "samples.jsonl", ASKED)
    assert list(found.columns) == [*rivals.GAINS, "wrong_fact_rate"]
    assert found["exact"].tolist() == [float(row.id == "3") for row in ASKED]
    assert set(found["cosine"]) == {0.1}
    write_jsonl(tmp_path / "samples.jsonl", said[:-1])
    with pytest.raises(ValueError, match=naming("samples.jsonl", 1, 8, 0)):
        rivals.ppo_values(tmp_path / "samples.jsonl", ASKED)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_rival_is_its_own_sft_model_measured_on_the_test_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    base, sft = tmp_path / "data/base", tmp_path / "data/sft"
    save_base(base)
    save_sft(base, sft, method)
    write_params(tmp_path, **{"model": "micro", "models.micro.max_answer_tokens": 8, "threads": 1})
    monkeypatch.setattr(rivals.embedder, "encode", lambda ruler, texts: np.eye(len(texts)))
    roles = load_sft(base, sft, "float32", LORA)
    codec = Codec(tiny_tokenizer())
    with roles.use(roles.reference) as model:
        expected = greedy_responses(model, codec, QUESTIONS, 8, at_once(64))
    rows = [row.model_copy(update={"answer": "아"}) for row in ASKED]
    rows[2] = rows[2].model_copy(update={"answer": expected[2].text})
    found = rivals.sft_values(tmp_path, None, rows)
    same = [said.text == row.answer for said, row in zip(expected, rows, strict=True)]
    assert found["exact"].tolist() == same
    assert found["exact"][2] == 1
    assert found["eos_rate"].tolist() == [float(answer.ended) for answer in expected]


@pytest.mark.parametrize("path", rivals.SHARED)
def test_a_rival_with_other_shared_rows_is_refused(tmp_path: Path, path: str) -> None:
    for run in ("rival", "default"):
        for file in rivals.SHARED:
            write_jsonl(tmp_path / run / file, ASKED)
    rivals.check_shared(tmp_path / "rival", tmp_path / "default")
    write_jsonl(tmp_path / "rival" / path, ASKED[1:])
    with pytest.raises(ValueError, match=naming("rival", path)):
        rivals.check_shared(tmp_path / "rival", tmp_path / "default")


def test_clean_demonstrations_change_no_other_row_of_the_sample() -> None:
    params = load_params(ROOT / "params.yaml").sample
    small = {"demonstrations": 64, "groups": 48, "judge_groups": 24, "prompts": 40}
    changed = rivals.RIVALS["clean demonstrations"]
    clean = {"demo_full_right": changed["sample.demo_full_right"]}
    params = params.model_copy(update={**small, "documents": 80})
    default, rival = build_world(params), build_world(params.model_copy(update=clean))

    def held(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted((r for r in rows if r["split"] != "train"), key=lambda r: str(r["data_id"]))

    assert default.corpus == rival.corpus
    assert (default.rm, default.ppo) == (rival.rm, rival.ppo)
    assert held(default.sft.training) == held(rival.sft.training)
    assert held(default.sft.validation) == held(rival.sft.validation)
    assert default.sft.training != rival.sft.training


def test_seeds_are_pooled_by_question() -> None:
    def frame(exact: list[float], wrong: list[float]) -> pd.DataFrame:
        columns = {**dict.fromkeys(rivals.GAINS, exact), "wrong_fact_rate": wrong}
        return pd.DataFrame(columns)

    nan = float("nan")
    frames = {
        "sft": [frame([0, 1, 0, 0], [1, 0, nan, nan]), frame([0, 1, 1, 0], [0, 0, 1, nan])],
        "ppo": [frame([1, 1, 0, 1], [0, 0, 0, 0]), frame([0, 1, 1, 1], [0, 0, 0, nan])],
    }
    places = {"all": np.ones(4, dtype=bool), "late": np.array([False, False, True, True])}
    found = rivals.pooled_cells(frames, places, comparison.Bootstrap(500, 0))
    assert found["sft"]["seeds"] == 2
    assert found["sft"]["all.exact"] == pytest.approx(3 / 8)
    assert found["ppo"]["late.exact"] == pytest.approx(3 / 4)
    gains = np.array([0.5, 0, 0, 1])  # of each question, over the seeds
    expected = mean_and_interval("gain", gains, 500, 0, "")
    for end in rivals.ENDS:
        assert found["sft"][f"all.exact_ppo_gain{end}"] == expected[f"gain{end}"]
    assert found["sft"]["late.exact_ppo_gain"] == pytest.approx(0.5)
    assert found["ppo"]["all.exact_ppo_gain"] == 0
    assert found["sft"]["all.wrong_fact_rate"] == pytest.approx((0.5 + 0 + 1) / 3)  # nan: no value
