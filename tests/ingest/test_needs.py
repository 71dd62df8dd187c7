"""What later stages need: refused by preprocess in one sentence, or the whole chain ends well."""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tokenizers import Tokenizer
from tokenizers.models import BPE

from stages import preprocess
from stages.rlhf.config.base import load
from stages.rlhf.config.preprocess import PreprocessParams
from stages.rlhf.ingest import tokenizer
from stages.rlhf.ingest.needs import NEEDS, check, least
from stages.rlhf.records import write_jsonl
from tests.chain import STAGES, run_chain
from tests.conftest import naming, write_fingerprint, write_params
from tests.source_fixtures import noun

Rows = dict[str, list[dict[str, Any]]]
FOLDER = "data/rows"  # where stage index puts them
PARAMS = {
    "model": "micro",
    "models.micro.architecture.vocab_size": 320,  # a few rows give no more
    "data.source": "jsonl",
    "data.path": "source",
}
MADE = {"tokenizer.json", "reading.jsonl"}  # of other rows, which need not be asked for
# The least of each file: every row names its split, and no question is asked twice.
LEAST = {
    ("sft", "train"): 1,
    ("sft", "validation"): 2,
    ("sft", "test"): 1,
    ("rm", "train"): 1,
    ("rm", "validation"): 1,
    ("rm", "test"): 1,
    ("rm", "judge_train"): 2,
    ("rm", "judge_test"): 1,
    ("ppo", "train"): 1,
    ("ppo", "validation"): 2,
}


def minimal() -> Rows:
    rows: Rows = {"sft": [], "rm": [], "ppo": []}
    for number, (part, split) in enumerate(key for key, n in LEAST.items() for _ in range(n)):
        row: dict[str, Any] = {"question": f"{noun(number)} 뭐야?", "split": split}
        if part == "sft":
            row["answer"] = f"{noun(100 + number)}다."
        if part == "rm":
            row |= {"answers": [f"{noun(100 + number)}다.", "몰라."], "ranks": [1, 2]}
        rows[part].append(row)
    return rows | {"corpus": [{"text": " ".join(noun(n) for n in range(200, 240))}]}


def write_source(folder: Path, rows: Rows) -> None:
    for name, content in rows.items():
        write_jsonl(folder / "source" / f"{name}.jsonl", content)


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, rows: Rows, **params: Any) -> Result:
    write_source(folder, rows)
    write_params(folder, **(PARAMS | params))
    monkeypatch.chdir(folder)
    arguments = ["--code", str(write_fingerprint(folder, "preprocess")), "--out", "out"]
    arguments += ["--model", "data/check/model.json"]
    return CliRunner().invoke(preprocess.main, [*arguments, "--metrics", "out.json"])


def files_read() -> set[str]:
    """The files of data/rows that a stage names, itself or by their folder.

    eda names them all: it draws what there is.
    """
    found = {
        dep
        for name, stage in STAGES.items()
        for dep in stage["deps"]
        if dep.startswith(f"{FOLDER}/") and name != "eda"
    }
    folders = {"rm": ("train", "validation", "test"), "judge": ("train", "test")}
    for part, splits in folders.items():
        if f"{FOLDER}/{part}" in found:
            found.remove(f"{FOLDER}/{part}")
            found |= {f"{FOLDER}/{part}/{split}.jsonl" for split in splits}
    return {name.removeprefix(f"{FOLDER}/") for name in found} - MADE


def place_of(file: str) -> tuple[str, str]:
    """Part and split of a file: judge/test.jsonl holds rm rows of split judge_test."""
    part, split = Path(file).with_suffix("").parts
    return ("rm", f"judge_{split}") if part == "judge" else (part, split)


def test_the_least_is_what_the_table_says_of_every_file_that_a_stage_reads() -> None:
    named = {place_of(file) for file in files_read() - {"corpus.jsonl"}}
    assert named == set(LEAST)
    assert {(p, s): need.rows for p, needs in NEEDS.items() for s, need in needs.items()} == LEAST
    assert {need.stage for needs in NEEDS.values() for need in needs.values()} <= set(STAGES)
    assert least("ppo", "validation") == 2
    assert least("ppo", "test") == 0


@pytest.mark.parametrize("file", sorted(files_read() - {"corpus.jsonl"}))
def test_a_file_that_is_empty_at_the_source_is_refused(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, split = place_of(file)
    rows = minimal()
    rows[part] = [row for row in rows[part] if row["split"] != split]
    result = run(tmp_path, monkeypatch, rows)
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 1
    assert re.search(naming("source", part, "needs", f"{len(rows[part])} row"), result.output)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(("part", "split"), LEAST)
def test_one_row_fewer_is_refused(
    part: str, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = minimal()
    rows[part].remove(next(row for row in rows[part] if row["split"] == split))
    result = run(tmp_path, monkeypatch, rows)
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 1
    assert re.search(naming("source", part, "needs"), result.output)


def test_a_corpus_without_a_text_is_refused_and_none_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = minimal() | {"corpus": [{"text": minimal()["sft"][3]["question"]}, {"text": " "}]}
    size = {"models.micro.architecture.vocab_size": 300}
    result = run(tmp_path, monkeypatch, rows, **size)
    assert result.exit_code == 1
    facts = "corpus", "base", "2 rows read", "1 leak", "1 malformed"
    assert re.search(naming(*facts), result.output)
    (tmp_path / "source" / "corpus.jsonl").unlink()
    del rows["corpus"]
    assert run(tmp_path, monkeypatch, rows, **size).exit_code == 0


def test_the_least_goes_through_the_whole_chain(tmp_path: Path) -> None:
    write_source(tmp_path, minimal())
    changed = {"ppo.require_gate": True, "evaluate.max_questions": None}
    changed |= {"models.micro.ppo.corpus_check": 0.0}  # its corpus has no sentence
    run_chain(tmp_path, **PARAMS, **changed)
    found = json.loads((tmp_path / "metrics" / "details" / "preprocess.json").read_text("utf-8"))
    written = {(part, s): n for part in NEEDS for s, n in found[part]["rows"].items() if n}
    assert written == LEAST
    assert (tmp_path / "data" / "evaluate" / "report.html").is_file()


def unnamed(count: int, shared: bool) -> Rows:
    """So many rows of each part that name no split; `shared`: all parts ask the same questions."""
    parts: Rows = {"sft": [], "rm": [], "ppo": []}
    for first, rows in enumerate(parts.values()):
        for number in range(count):
            rows.append({"question": f"{noun(number + 1000 * first * (not shared))} 뭐야?"})
    for number, (one, group) in enumerate(zip(parts["sft"], parts["rm"], strict=True)):
        one["answer"] = f"{noun(5000 + number)}다."
        group |= {"answers": [f"{noun(5000 + number)}다.", "몰라."], "ranks": [1, 2]}
    return parts | {"corpus": minimal()["corpus"]}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("count", "seed"), [(8, 0), (8, 1), (15, 2), (30, 3), (50, 4)])
def test_eight_rows_of_each_part_are_split_as_needed(
    count: int, seed: int, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(tmp_path, monkeypatch, unnamed(count, shared), **{"preprocess.seed": seed})
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "details" / "out.json").read_text("utf-8"))
    for part, needs in NEEDS.items():
        for split, need in needs.items():
            assert found[part]["rows"][split] >= need.rows


def test_a_split_of_which_the_source_names_too_few_is_filled_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = minimal()
    rows["ppo"] = [{"question": f"{noun(n)} 뭐야?", "split": "train"} for n in range(700, 709)]
    rows["ppo"][0]["split"] = "validation"
    result = run(tmp_path, monkeypatch, rows)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "details" / "out.json").read_text("utf-8"))["ppo"]["rows"]
    assert found["validation"] == 2
    assert found["train"] + found["test"] == 7


# What the sentence names.

FULL: dict[str, Any] = {
    part: {"read": 90, "kept": 90, "rejected": {}, "rows": dict.fromkeys(needs, 30)}
    for part, needs in NEEDS.items()
} | {"corpus": {"read": 0, "kept": 0, "rejected": {}}}


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def params(**changed: Any) -> PreprocessParams:
        return load(PreprocessParams, write_params(tmp_path, **(PARAMS | changed)))

    return params


def refusal(report: dict[str, Any], params: PreprocessParams, **given: Any) -> str:
    with pytest.raises(ValueError, match="needs") as caught:
        check(report, given.get("assigned", {}), params, given.get("examples"))
    return str(caught.value)


def changed(part: str, **values: Any) -> dict[str, Any]:
    report = deepcopy(FULL)
    report[part] |= values
    report[part]["kept"] = sum(report[part]["rows"].values())
    return report


def test_rows_that_became_groups_are_kept(params: Any) -> None:
    """4,000 pairs on 20 questions: 20 groups are no reason to speak of 1,600 rejected rows."""
    rows = {"train": 9, "test": 1, "judge_train": 1, "judge_test": 1}
    report = FULL | {
        "rm": {"read": 4000, "kept": 2400, "rejected": {"too_long": 1600}, "rows": rows}
        | {"merged": 2388}
    }
    text = refusal(report, params(), assigned={"validation": 4})
    assert "4000 rows read, 2400 kept as 12 groups (9 in train, " in text
    assert text.endswith("raise preprocess.validation_share (0.05)")


def test_columns_of_other_names_have_a_parameter(params: Any) -> None:
    report = changed("sft", read=9, rejected={"malformed": 9}, rows={})
    assert "data.columns" in refusal(report, params(**{"data.source": "jsonl"}))
    assert "data.columns" not in refusal(report, params(**{"data.source": "kochatgpt"}))


def test_enough_is_enough(params: Any) -> None:
    check(FULL, {}, params())
    exact = {part: {s: need.rows for s, need in needs.items()} for part, needs in NEEDS.items()}
    check(FULL | {p: FULL[p] | {"rows": rows} for p, rows in exact.items()}, {"test": 1}, params())


@pytest.mark.parametrize(("part", "split"), LEAST)
def test_the_sentence_names_part_split_numbers_and_stage(
    part: str, split: str, params: Any
) -> None:
    need = NEEDS[part][split]  # type: ignore[index]
    report = deepcopy(FULL)
    report[part]["rows"][split] = need.rows - 1
    text = refusal(report, params())
    number = f"{need.rows - 1} row" + "s" * (need.rows != 2)
    assert f"source: {part} {split} has {number}, but" in text
    assert f"stage {need.stage} needs {need.rows} {need.purpose}" in text
    assert " 90 rows read, " in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("part", "values", "settings", "assigned", "remedy"),
    [
        (
            "sft",
            {"read": 90, "rows": {"train": 5, "validation": 0, "test": 1}},
            {"preprocess.max_items": 90},
            {},
            "raise preprocess.max_items (90)",
        ),
        (
            "sft",
            {"read": 90, "rows": {"train": 0}, "rejected": {"too_long": 90}},
            {},
            {},
            "raise models.micro.max_prompt_tokens (64) or models.micro.max_answer_tokens (32)",
        ),
        (
            "rm",
            {"rows": {"train": 0}, "rejected": {"too_long": 89, "leak": 1}},
            {"preprocess.long_answers": "drop"},
            {},
            "or set preprocess.long_answers to clip",
        ),
        (
            "ppo",
            {"rows": {"train": 0, "validation": 3}, "rejected": {"judge_question": 80}},
            {},
            {},
            "lower preprocess.judge_groups_min (300) and preprocess.judge_share (0.2)",
        ),
        (
            "ppo",
            {"rows": {"train": 20, "validation": 1}},
            {},
            {"validation": 4},
            "raise preprocess.validation_share (0.05)",
        ),
        (
            "rm",
            {"rows": {"train": 9, "validation": 1, "test": 1, "judge_train": 1, "judge_test": 1}},
            {},
            {"judge_train": 1},
            "raise preprocess.judge_share (0.2)",
        ),
        (
            "rm",
            {"rows": {"train": 9, "validation": 1, "test": 1, "judge_train": 4}},
            {},
            {},
            "name more judge_test rows in the source",
        ),
        (
            "sft",
            {"rows": {"train": 300, "validation": 0, "test": 0}},
            {},
            {},
            "raise preprocess.near_duplicate (0.9)",
        ),
        ("sft", {"rows": {"test": 300}}, {}, {}, "name fewer rows of other splits"),
        ("ppo", {"rows": {"train": 1}}, {}, {}, "add ppo rows to the source"),
    ],
)
def test_the_remedy_has_an_effect(
    part: str,
    values: dict[str, Any],
    settings: dict[str, Any],
    assigned: dict[str, int],
    remedy: str,
    params: Any,
) -> None:
    text = refusal(changed(part, **values), params(**settings), assigned=assigned)
    assert remedy in text.split("; ")[-1]


def test_the_commonest_reasons_come_with_an_example(params: Any) -> None:
    rejected = {"leak": 2, "malformed": 80, "too_long": 5, "all_tied": 1}
    examples = {("sft", "malformed"): ("sft.jsonl row 1", "no key answer; keys found: a, b")}
    report = changed("sft", rows={"train": 0}, rejected=rejected)
    text = refusal(report, params(), examples=examples)
    assert (
        "0 kept, rejected 80 malformed, such as sft.jsonl row 1 (no key answer; keys"
        " found: a, b), 5 too_long (more tokens than max_prompt_tokens or max_answer_tokens),"
        " 2 leak (its question is in another split), and others;"
    ) in text


# The model's window


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"max_position_embeddings": 96}, 96),
        ({"n_positions": 96}, 96),  # GPT-2
        ({"max_position_embeddings": 7, "text_config": {"max_position_embeddings": 96}}, 96),
        ({}, None),
        (None, None),
    ],
)
def test_a_prompt_and_a_response_fit_the_models_window(
    config: dict[str, Any] | None,
    window: int | None,
    tmp_path: Path,
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer.check_window(tmp_path, "org/name", 64, 32)
    if window is None:
        tokenizer.check_window(tmp_path, "org/name", 10_000, 10_000)
        return
    with pytest.raises(ValueError, match=naming("org/name", 64, 33, window)):
        tokenizer.check_window(tmp_path, "org/name", 64, 33)


def test_the_window_is_checked_before_a_row_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    snapshot = tmp_path / "cache" / "models--org--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    Tokenizer(BPE()).save(str(snapshot / "tokenizer.json"))
    (snapshot / "config.json").write_text('{"max_position_embeddings": 95}', encoding="utf-8")
    made = {"models.micro.architecture": None, "models.micro.base": None}
    result = run(tmp_path, monkeypatch, minimal(), **made, **{"models.micro.hub": "org/name"})
    assert result.exit_code == 1
    assert re.search(naming("org/name", 64, 32, 95), result.output)
