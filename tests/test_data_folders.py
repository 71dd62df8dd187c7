"""Data folders as people have them, through the stage: rows in, rows out, and what it prints."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stages.rlhf.keys import question_key
from stages.rlhf.records import read_jsonl
from tests.source_fixtures import jsonl, noun
from tests.test_preprocess import (
    LONG_WORD,
    check,
    ids,
    metrics,
    pinned,
    question,
    rejects,
    run,
    world,
    write_source,
)

PARTS = ("sft", "rm", "ppo")


@pytest.fixture
def outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the stage on tmp_path / source, which must work: the folder written, and the output."""

    def outcome(**params: Any) -> tuple[Path, str]:
        result = run(tmp_path, monkeypatch, **params)
        assert result.exit_code == 0, result.output
        check(tmp_path / "out")
        return tmp_path / "out", result.output

    return outcome


def keys(out: Path, *names: str) -> set[str]:
    rows = (row for name in names for row in read_jsonl(out / f"{name}.jsonl"))
    return {question_key(row["question"]) for row in rows}


def kochatgpt(folder: Path, parts: dict[str, range]) -> None:
    """KoChatGPT's files with the questions of these numbers."""
    folder.mkdir()
    rows = {
        "1_SFT": [{"prompt": question(n), "completion": f"{noun(-n)}다."} for n in parts["sft"]],
        "2_RM": [
            {"prompt": question(n), "ranking": [1, 0, 2]}
            | {f"completion_{i}": f"{noun(-n)}{a}." for i, a in enumerate("가나다")}
            for n in parts["rm"]
        ],
        "3_PPO": [{"prompt": question(n)} for n in parts["ppo"]],
    }
    for name, content in rows.items():
        (folder / f"kochatgpt_{name}.jsonl").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    "parts",
    [
        {"sft": range(100), "rm": range(80), "ppo": range(100)},  # its own layout
        {"sft": range(100), "rm": range(100), "ppo": range(100)},
        {"sft": range(100, 200), "rm": range(80), "ppo": range(80)},
        {"sft": range(90), "rm": range(80), "ppo": range(100, 200)},
    ],
)
def test_judge_questions_leave_the_other_parts(
    tmp_path: Path, outcome: Any, parts: dict[str, range]
) -> None:
    kochatgpt(tmp_path / "source", parts)
    out, printed = outcome(**{"data.source": "kochatgpt"})
    judged = keys(out, "judge/train", "judge/test")
    rows = metrics(out)["rm"]["rows"]
    left = rows["train"] + rows["judge_train"] + rows["judge_test"]
    assert len(judged) == left // 2  # of so few
    for part in ("sft", "ppo"):
        files = [f"{part}/{split}" for split in ("train", "validation", "test")]
        assert not judged & keys(out, *files)
        shared = len(set(parts[part]) & set(parts["rm"])) > 0
        expected = len(judged) if shared else 0
        assert metrics(out)[part]["rejected"] == ({"judge_question": expected} if shared else {})
        assert (f"judge_question {expected}" in printed) or not shared
    assert metrics(out)["assigned"]["judge_test"] == rows["judge_test"] > 0


def test_judge_questions_of_its_own_come_first(tmp_path: Path, outcome: Any) -> None:
    parts = {"sft": range(100), "rm": range(50, 150), "ppo": range(100)}
    kochatgpt(tmp_path / "source", parts)
    out, _ = outcome(**{"data.source": "kochatgpt"})
    own = {question_key(question(n)) for n in range(100, 150)}
    assert keys(out, "judge/train", "judge/test") <= own
    assert metrics(out)["sft"]["rejected"] == {}


@pytest.mark.parametrize(
    "names",
    [
        ("train", "validation", "test"),
        ("1.Training", "2.Validation", "3.Test"),
        ("TRAIN", "Dev", "TEST"),
        ("학습", "검증", "시험"),
    ],
)
def test_each_row_is_in_the_split_that_its_folder_names(
    tmp_path: Path, outcome: Any, names: tuple[str, ...]
) -> None:
    for number, name in enumerate(names):
        rows = world(30)
        for part, content in rows.items():
            for n, row in enumerate(content):
                row["question"] = question(n + 100 * number + 1000 * PARTS.index(part))
                row["id"] = f"{number}-{n:02d}"
        rows["sft"][7]["split"] = "test"  # a row's own word wins
        write_source(tmp_path / "source" / name, rows)
    out, printed = outcome()
    own = {f"{number}-07" for number in range(3)}
    for part in PARTS:
        for number, split in enumerate(("train", "validation", "test")):
            found = set(ids(out / part / f"{split}.jsonl"))
            if part == "sft":
                assert own <= found if split == "test" else not own & found
                found -= own
            assert all(name.startswith(str(number)) for name in found)
            assert found
    for name, split in zip(names, ("train", "validation", "test"), strict=True):
        assert f"{split}: named by {name}/sft.jsonl" in printed


def test_an_unknown_word_for_a_split_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = world()
    for row in rows["sft"]:
        row["split"] = "holdout"
    write_source(tmp_path / "source", rows)
    result = run(tmp_path, monkeypatch)
    assert result.exit_code == 1
    for fact in ("80 unknown_split", "'holdout'", "known are train", "dev", "validation"):
        assert fact in result.output


@pytest.mark.parametrize("missing", ["validation", "test"])
def test_a_split_that_no_row_names_is_taken_from_training(
    tmp_path: Path, outcome: Any, missing: str
) -> None:
    rows = pinned(80)
    for part in rows.values():
        for row in part:
            row["split"] = "train" if row["split"] == missing else row["split"]
    write_source(tmp_path / "source", rows)
    out, printed = outcome()
    for part in PARTS:
        assert ids(out / part / f"{missing}.jsonl")
    count = metrics(out)["assigned"][missing]
    assert (
        f"{missing}: {count} questions taken from training (preprocess.{missing}_share)" in printed
    )


def test_a_part_whose_test_questions_all_leak_gets_others(tmp_path: Path, outcome: Any) -> None:
    """The test folder has sft alone, and rm trains on those questions: they are no test of rm."""
    rows = world(60)
    held = [row | {"question": question(1000 + n)} for n, row in enumerate(rows["sft"][:20])]
    write_source(tmp_path / "source" / "train", rows)
    write_source(tmp_path / "source" / "test", {"sft": held})
    out, _ = outcome()
    assert keys(out, "sft/test") == {question_key(row["question"]) for row in held}
    assert metrics(out)["rm"]["rejected"] == {"leak": 20}
    assert len(keys(out, "rm/test")) == 4  # a tenth of the 40 others
    assert not keys(out, "rm/test") & keys(out, "sft/test")


def test_pairs_of_one_prompt_are_one_group(tmp_path: Path, outcome: Any) -> None:
    rows = world()
    pairs = [("가", "나"), ("나", "다"), ("가", "다"), ("다", "가")]  # the last contradicts
    rows["rm"] = [
        {"id": f"{n:02d}{k}", "prompt": question(1000 + n), "chosen": f"{a}.", "rejected": f"{b}."}
        for n in range(40)
        for k, (a, b) in enumerate(pairs[: 4 if n % 2 else 3])
    ]
    write_source(tmp_path / "source", rows)
    out, printed = outcome()
    files = ["rm/train", "rm/validation", "rm/test", "judge/train", "judge/test"]
    groups = [row for name in files for row in read_jsonl(out / f"{name}.jsonl")]
    for row in groups:
        ranks = dict(zip(row["answers"], row["ranks"], strict=True))
        assert ranks == {"가.": 1, "나.": 2, "다.": 3}
    found = metrics(out)["rm"]
    assert len(groups) == 40
    assert (found["read"], found["kept"], found["merged"]) == (140, 140, 100)
    assert found["contradicted_pairs"] == 20
    assert "rm: 100 rows joined others on the same question; 20 contradictions" in printed


def test_pairs_that_say_nothing_together(tmp_path: Path, outcome: Any) -> None:
    rows = world()
    pair = {"prompt": question(5000), "chosen": "가.", "rejected": "나."}
    rows["rm"] += [pair, pair | {"chosen": "나.", "rejected": "가."}]
    circle = [("가", "나"), ("나", "다"), ("다", "가"), ("가", "나")]
    rows["rm"] += [
        {"prompt": question(6000), "chosen": f"{a}.", "rejected": f"{b}."} for a, b in circle
    ]
    write_source(tmp_path / "source", rows)
    rejected = metrics(outcome()[0])["rm"]["rejected"]
    assert rejected == {"contradicted": 5, "duplicate_question": 1}


def test_a_minority_is_a_contradiction(tmp_path: Path, outcome: Any) -> None:
    rows = world()
    same = {"question": question(5000), "answers": ["가.", "나."]}
    rows["rm"] += [same | {"ranks": [1, 2], "id": "a"}, same | {"ranks": [2, 1], "id": "b"}]
    rows["rm"] += [
        {"question": question(5000), "answers": ["가.", "나.", "다."], "ranks": [1, 2, 3]}
    ]
    write_source(tmp_path / "source", rows)
    found = metrics(outcome()[0])["rm"]
    assert (found["merged"], found["contradicted_pairs"], found["rejected"]) == (2, 1, {})


def test_good_answers_to_one_question(tmp_path: Path, outcome: Any) -> None:
    """Training keeps all that differ; a held-out question has one reference, the first."""
    rows = pinned(8)
    for number in (0, 2):  # train, validation
        again = rows["sft"][number]
        rows["sft"] += [again | {"id": f"{number}-{n}", "answer": f"{noun(n)}요."} for n in (1, 2)]
        rows["sft"] += [again | {"id": f"{number}-same"}]
    write_source(tmp_path / "source", rows)
    out, _ = outcome()
    assert [name for name in ids(out / "sft/train.jsonl") if name[0] == "0" and "-" in name] == [
        "0-1",
        "0-2",
        "0-same",
    ]
    assert ids(out / "sft/validation.jsonl") == ["002", "006"]
    reasons = [reason for part, _, reason in rejects(out) if part == "sft"]
    assert reasons == ["duplicate_question"] * 4


@pytest.mark.parametrize(
    ("scores", "best"),
    [([1, 2, 3], 2), ([7, 5, 9], 2), ([0.2, 0.9, 0.5], 1), (["10", "9", "1"], 0)],
)
def test_the_highest_score_is_the_best_answer(
    tmp_path: Path, outcome: Any, scores: list[Any], best: int
) -> None:
    rows = world()
    for row in rows["rm"]:
        row["scores"] = scores
        del row["ranks"]
    write_source(tmp_path / "source", rows)
    out, printed = outcome()
    assert "rm.jsonl: 80 rows read as question, answers, scores" in printed
    for row in read_jsonl(out / "rm/train.jsonl"):
        assert row["ranks"].index(1) == best


def test_scores_under_ranks_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = world()
    for row in rows["rm"]:
        row["ranks"] = [7, 5, 9]
    write_source(tmp_path / "source", rows)
    result = run(tmp_path, monkeypatch)
    assert result.exit_code == 1
    for fact in ("80 bad_rank", "rm.jsonl row 1: ranks [7, 5, 9]", "1 (best) to 3", "scores"):
        assert fact in result.output


@pytest.mark.parametrize(
    "row",
    [
        lambda q, a: {"instruction": q, "input": "", "output": a},
        lambda q, a: {"prompt": q, "completion": a},
        lambda q, a: {
            "messages": [
                {"role": "system", "content": "친절하게."},
                {"role": "user", "content": q},
                {"role": "assistant", "content": a},
            ]
        },
        lambda q, a: {"question": q, "answer": a, "kind": 3, "defects": "none"},
    ],
)
def test_usual_columns(tmp_path: Path, outcome: Any, row: Any) -> None:
    rows = world()
    rows["sft"] = [row(r["question"], r["answer"]) for r in rows["sft"]]
    write_source(tmp_path / "source", rows)
    out, printed = outcome()
    assert metrics(out)["sft"]["kept"] == 80
    shape = ", ".join(key for key in rows["sft"][0] if key not in ("input", "kind", "defects"))
    assert f"sft.jsonl: 80 rows read as {shape}" in printed
    if "kind" in rows["sft"][0]:
        assert "sft: kind of 80 rows is not used" in printed


def test_a_number_is_its_text(tmp_path: Path, outcome: Any) -> None:
    rows = world()
    for row in rows["sft"]:
        row["answer"] = 2
    write_source(tmp_path / "source", rows)
    out, _ = outcome()
    assert {row["answer"] for row in read_jsonl(out / "sft/train.jsonl")} == {"2"}


def test_rows_of_no_known_shape_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = world()
    rows["sft"] = [{"질문": r["question"], "답변": r["answer"]} for r in rows["sft"]]
    write_source(tmp_path / "source", rows)
    result = run(tmp_path, monkeypatch)
    assert result.exit_code == 1
    for fact in (
        "sft",
        "80 malformed",
        "sft.jsonl row 1: no key question",
        "keys found: 질문, 답변",
    ):
        assert fact in result.output
    result = run(tmp_path, monkeypatch, **{"data.columns": {"question": "질문", "answer": "답변"}})
    assert result.exit_code == 0, result.output
    assert "sft.jsonl: 80 rows read as question, answer" in result.output


@pytest.mark.parametrize(
    ("columns", "facts"),
    [
        ({"question": "물음"}, ["data.columns.question", "'물음'", "no row"]),
        ({"quastion": "prompt"}, ["data.columns.quastion", "question"]),
    ],
)
def test_columns_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: dict[str, str], facts: list[str]
) -> None:
    write_source(tmp_path / "source", world())
    result = run(tmp_path, monkeypatch, **{"data.columns": columns})
    assert result.exit_code == 1
    for fact in facts:
        assert fact in result.output


@pytest.mark.parametrize("name", ["문서-1", 0, "a#2", "x"])
def test_ids_become_unique(tmp_path: Path, outcome: Any, name: Any) -> None:
    rows = world()
    for part in rows.values():
        for row in part:
            row["id"] = name
    rows["sft"][5]["id"] = f"{name}#2"
    write_source(tmp_path / "source", rows)
    out, printed = outcome()
    for part in PARTS:
        found = [row["id"] for file in (out / part).iterdir() for row in read_jsonl(file)]
        found += [r["id"] for file in (out / "judge").iterdir() for r in read_jsonl(file)] * (
            part == "rm"
        )
        assert len(set(found)) == len(found) == 80
    assert metrics(out)["renamed_ids"] == 3 * 79 - 1
    assert "ids: 236 rows" in printed


def test_judge_share_of_zero_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "sft.jsonl").write_bytes(jsonl({"question": "q"}))
    result = run(tmp_path, monkeypatch, **{"preprocess.judge_share": 0})
    assert result.exit_code == 1
    assert "preprocess.judge_share = 0: " in result.output


def test_groups_on_one_question_that_share_no_answer(tmp_path: Path, outcome: Any) -> None:
    """Training keeps them all; a held-out question counts once, with its largest group."""
    rows = pinned(8)
    for number in (0, 2):  # train, validation
        row = rows["rm"][number]
        more = [[f"{noun(50 + n)}다.", f"{noun(60 + n)}다."] for n in range(2)]
        rows["rm"] += [
            row | {"id": f"{number}-{n}", "answers": answers, "ranks": [2, 1]}
            for n, answers in enumerate(more)
        ]
        rows["rm"].append(row | {"id": f"{number}-same"})
    write_source(tmp_path / "source", rows)
    out, _ = outcome()
    assert sorted(ids(out / "rm/train.jsonl")) == ["0-0", "0-1", "0-same", "001"]
    held_out = ids(out / "rm/validation.jsonl")
    assert not {"2-0", "2-1"} & set(held_out)
    assert len(held_out) == 2
    found = [(part, reason) for part, name, reason in rejects(out) if part == "rm"]
    assert found == [("rm", "duplicate_question")] * 4


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("folder", ["", "train/"])
def test_tables(tmp_path: Path, outcome: Any, ending: str, folder: str) -> None:
    rows = world()
    rows["rm"] = [
        {"prompt": row["question"], "chosen": row["answers"][0], "rejected": row["answers"][1]}
        for row in rows["rm"][:40]
    ] + [row | {"prompt": row["question"]} for row in rows["rm"][40:]]
    rows["sft"][3]["answer"] = "001"
    rows["corpus"] = [{"text": f"{noun(n)}는 {noun(n + 1)}다."} for n in range(50)]
    (tmp_path / "source" / folder).mkdir(parents=True)
    for part, content in rows.items():
        table, file = pd.DataFrame(content), tmp_path / "source" / f"{folder}{part}.{ending}"
        if ending == "parquet":
            table.to_parquet(file)
        else:
            table.to_csv(file, index=False, sep="\t" if ending == "tsv" else ",")
    out, printed = outcome()
    assert [metrics(out)[part]["kept"] for part in (*PARTS, "corpus")] == [80, 80, 80, 50]
    answers = {r["answer"] for f in (out / "sft").iterdir() for r in read_jsonl(f)}
    assert "001" in answers
    assert f"rm.{ending}: 40 rows read as" in printed


def test_each_file_is_told_by_its_path(tmp_path: Path, outcome: Any) -> None:
    """A copy in a folder is read, a file of another name is not, and both are said."""
    rows = world()
    source = write_source(tmp_path / "source", rows)
    write_source(source / "backup", {"sft": rows["sft"]})
    write_source(source, {"sft_old": rows["sft"]})
    (source / "README.md").write_text("#", encoding="utf-8")
    out, printed = outcome()
    assert "backup/sft.jsonl, sft.jsonl: 160 rows read as question, answer\n" in printed
    assert "not read, of no part by name and folder: sft_old.jsonl\n" in printed
    assert metrics(out)["sft"]["rejected"] == {"duplicate_question": 80}


def test_what_is_too_long_is_said(tmp_path: Path, outcome: Any) -> None:
    rows = world()
    rows["sft"][3]["question"] = LONG_WORD
    rows["ppo"][4]["question"] = LONG_WORD
    rows["sft"][5]["answer"] = LONG_WORD
    rows["rm"][6]["answers"][:2] = [LONG_WORD, LONG_WORD[::-1]]
    write_source(tmp_path / "source", rows)
    out, _ = outcome()
    details = [
        row["detail"] for row in read_jsonl(out / "rejects.jsonl") if row["reason"] == "too_long"
    ]
    answers = [detail for detail in details if "answer of " in detail and "at most 31" in detail]
    questions = [detail for detail in details if "question of " in detail]
    assert (len(answers), len(questions)) == (2, 2)
