"""The stage from end to end, on small sources written here."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tokenizers import Tokenizer

from stages.preprocess import main
from stages.rlhf.chat import template
from stages.rlhf.files import RUN
from stages.rlhf.hub import local_files
from stages.rlhf.ingest.pipeline import TEMPLATE_PIECES
from stages.rlhf.keys import question_key
from stages.rlhf.records import (
    PromptRow,
    RmRow,
    SftRow,
    details_file,
    read_jsonl,
    read_rows,
    write_jsonl,
)
from tests.conftest import naming, write_fingerprint, write_params
from tests.model_fixtures import save_base
from tests.source_fixtures import noun

SPLITS = ("train", "validation", "test")
MODEL = ("--model", "data/check/model.json")
ROW_FILES = {f"{part}/{split}.jsonl" for part in ("sft", "rm", "ppo") for split in SPLITS}
FILES = {  # beside run.json
    *ROW_FILES,
    *("judge/train.jsonl", "judge/test.jsonl"),
    *("corpus.jsonl", "tokenizer.json", "rejects.jsonl"),
}
Rows = dict[str, list[dict[str, Any]]]


LONG_WORD = "".join(noun(5000 + n) for n in range(40))


def question(number: int) -> str:
    return f"{noun(number)} 뭐야?"


def world(count: int = 80) -> Rows:
    """Questions 0.. to sft, 1000.. to rm, 2000.. to ppo; no row names a split."""
    return {
        "sft": [{"question": question(n), "answer": f"{noun(-n)}다."} for n in range(count)],
        "rm": [
            {
                "question": question(1000 + n),
                "answers": [f"{noun(-n)}다.", f"{noun(-n)}.", "몰라."],
                "ranks": [1, 2, 3],
            }
            for n in range(count)
        ],
        "ppo": [{"question": question(2000 + n)} for n in range(count)],
    }


def pinned(count: int = 8) -> Rows:
    """Every row names its split: the first four sft rows are train, train, validation, test."""
    sides = ["train", "train", "validation", "test"]
    rows = world(count)
    for part in rows.values():
        for number, row in enumerate(part):
            row |= {"id": f"{number:03d}", "split": sides[number % 4]}
    rows["rm"][4]["split"] = "judge_train"
    rows["rm"][5]["split"] = "judge_test"
    second = {"id": "900", "question": question(1900), "split": "judge_train"}
    rows["rm"].append(rows["rm"][4] | second)
    return rows


def write_source(folder: Path, rows: Rows) -> Path:
    for part, content in rows.items():
        write_jsonl(folder / f"{part}.jsonl", content)
    return folder


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, out: str = "out", **params: Any) -> Result:
    settings = {
        "model": "micro",
        "models.micro.architecture.vocab_size": 320,  # a few rows give no more
        "models.micro.max_prompt_tokens": 96,
        "data.source": "jsonl",
        "data.path": folder / "source",
    }
    write_params(folder, **(settings | params))
    monkeypatch.chdir(folder)
    arguments = ["--code", str(write_fingerprint(folder, "preprocess")), *MODEL]
    arguments += ["--out", out, "--metrics", f"{out}.json"]
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.fixture
def preprocess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the stage on rows, which must work; the folder written."""

    def preprocess(rows: Rows, out: str = "out", **params: Any) -> Path:
        write_source(tmp_path / "source", rows)
        result = run(tmp_path, monkeypatch, out, **params)
        assert result.exit_code == 0, result.output
        check(tmp_path / out)
        return tmp_path / out

    return preprocess


def metrics(out: Path) -> dict[str, Any]:
    return json.loads(details_file(out.with_suffix(".json")).read_text(encoding="utf-8"))


def rejects(out: Path) -> list[tuple[str, str, str]]:
    return [(row["part"], row["id"], row["reason"]) for row in read_jsonl(out / "rejects.jsonl")]


def ids(file: Path) -> list[str]:
    return [row["id"] for row in read_jsonl(file)]


def check(out: Path) -> None:
    """What holds of every run."""
    assert {str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()} == FILES | {RUN}
    found = metrics(out)
    sides: dict[str, str] = {}
    for name in sorted(FILES):
        part, _, split = name.removesuffix(".jsonl").partition("/")
        if not split:
            continue
        schema = {"sft": SftRow, "ppo": PromptRow}.get(part, RmRow)
        rows = read_rows(out / name, schema)
        side = f"judge_{split}" if part == "judge" else split
        assert len(rows) == found["rm" if part == "judge" else part]["rows"][side]
        keys = [question_key(row.question) for row in rows]
        several = name in ("sft/train.jsonl", "rm/train.jsonl")
        texts = [getattr(row, "answer", getattr(row, "answers", ""))[:9] for row in rows]
        assert len(keys) == len(set(zip(keys, texts, strict=True) if several else keys))
        for key in keys:
            assert sides.setdefault(key, side) == side, f"{key} is in {sides[key]} and {side}"
        if name != "rm/train.jsonl":  # there all groups on one question follow the first
            assert [row.id for row in rows] == sorted(row.id for row in rows)
    rejected = [(part, reason) for part, _, reason in rejects(out)]
    for part in ("sft", "rm", "ppo", "corpus"):
        counts = found[part]
        assert counts["read"] == counts["kept"] + sum(counts["rejected"].values())
        for reason, count in counts["rejected"].items():
            assert rejected.count((part, reason)) == count
        if part != "corpus":
            assert counts["kept"] == sum(counts["rows"].values()) + counts.get("merged", 0)
    assert len(rejected) == sum(
        sum(found[part]["rejected"].values()) for part in ("sft", "rm", "ppo", "corpus")
    ) + sum(found["dropped_answers"].values())


def test_rows_that_name_no_split(preprocess: Any) -> None:
    out = preprocess(world(200))
    assert rejects(out) == []
    found = metrics(out)
    assert found["sft"]["rows"]["test"] == pytest.approx(20, abs=12)
    assert found["sft"]["rows"]["validation"] == pytest.approx(10, abs=9)
    judged = found["rm"]["rows"]["judge_train"] + found["rm"]["rows"]["judge_test"]
    training = found["rm"]["rows"]["train"] + judged
    assert judged == training // 2  # of so few
    assert found["rm"]["rows"]["judge_test"] == judged // 3


def test_rows_that_name_their_split(preprocess: Any) -> None:
    out = preprocess(pinned())
    assert {name: ids(out / "sft" / f"{name}.jsonl") for name in SPLITS} == {
        "train": ["000", "001", "004", "005"],
        "validation": ["002", "006"],
        "test": ["003", "007"],
    }
    assert ids(out / "rm" / "train.jsonl") == ["000", "001"]
    assert ids(out / "judge" / "train.jsonl") == ["004", "900"]
    assert ids(out / "judge" / "test.jsonl") == ["005"]
    assert rejects(out) == []


def test_rows_keep_what_the_source_says(preprocess: Any) -> None:
    rows = pinned()
    rows["sft"][3] |= {
        "category": "인문",
        "question_type": "생성",
        "kind": "k",
        "must_contain": "구",
    }
    rows["rm"][0] |= {"defects": ["", "short", "vague"], "ranks": ["1", 2.0, 2]}
    out = preprocess(rows)
    assert next(read_jsonl(out / "sft" / "test.jsonl")) == {
        "id": "003",
        "question": question(3),
        "category": "인문",
        "question_type": "생성",
        "kind": "k",
        "answer": f"{noun(-3)}다.",
        "must_contain": "구",
        "clipped": False,
    }
    first = read_rows(out / "rm" / "train.jsonl", RmRow)[0]
    assert (first.ranks, first.defects) == ((1, 2, 2), ("", "short", "vague"))


def test_same_input_same_bytes_in_any_order(preprocess: Any) -> None:
    rows = world(60)
    for part in rows.values():
        for number, row in enumerate(part):
            row["id"] = f"id{number:03d}"
    rows["sft"].append(rows["sft"][0] | {"id": "id900", "answer": "다른 답."})
    first = preprocess(rows, "first")
    again = preprocess(rows, "again")
    for part in rows.values():
        random.Random(0).shuffle(part)
    shuffled = preprocess(rows, "shuffled")
    for name in FILES:
        assert (first / name).read_bytes() == (again / name).read_bytes(), name
        assert (first / name).read_bytes() == (shuffled / name).read_bytes(), name
    assert metrics(first) == metrics(again) == metrics(shuffled)


def test_an_earlier_result_is_replaced(preprocess: Any) -> None:
    preprocess(world())
    out = preprocess(pinned())
    assert len(ids(out / "sft" / "train.jsonl")) == 4


def test_same_question_twice_in_a_part(preprocess: Any) -> None:
    rows = pinned()
    rows["sft"].append(rows["sft"][0] | {"id": "100", "question": f" {noun(0)}  뭐야"})
    rows["ppo"].append(rows["sft"][0] | {"id": "101"})  # in another part it is no duplicate
    out = preprocess(rows)
    assert rejects(out) == [("sft", "100", "duplicate_question")]
    assert "101" in ids(out / "ppo" / "train.jsonl")


def test_too_long_row_does_not_shadow_its_duplicate(preprocess: Any) -> None:
    rows = pinned()
    rows["sft"].append(rows["sft"][0] | {"id": "0", "answer": LONG_WORD})
    out = preprocess(rows)
    assert rejects(out) == [("sft", "0", "too_long")]
    assert "000" in ids(out / "sft" / "train.jsonl")


def test_leaks_between_pinned_splits(preprocess: Any) -> None:
    rows = pinned()
    held = {"test": question(3), "validation": question(2), "judge": question(1005)}
    rows["sft"] += [
        {"id": "100", "question": held["test"], "answer": "답.", "split": "train"},
        {"id": "101", "question": held["test"], "answer": "답.", "split": "validation"},
        {"id": "102", "question": held["validation"], "answer": "답.", "split": "train"},
        {"id": "103", "question": held["judge"], "answer": "답.", "split": "train"},
    ]
    rows["ppo"] += [
        {"id": "104", "question": held["test"]},  # names nothing
        {"id": "105", "question": held["judge"], "split": "train"},
    ]
    rows["rm"] += [rows["rm"][0] | {"id": "106", "question": held["test"]}]
    assert rejects(preprocess(rows)) == [
        ("sft", "102", "leak"),
        ("sft", "100", "leak"),
        ("sft", "101", "leak"),
        ("sft", "103", "judge_question"),
        ("rm", "106", "leak"),
        ("ppo", "104", "leak"),
        ("ppo", "105", "judge_question"),
    ]


def test_near_duplicates_of_pinned_rows(preprocess: Any) -> None:
    rows = pinned()
    long = "가나다라마바사아자차카타파하거너더러머버"
    rows["ppo"] += [
        {"id": "100", "question": f"{long}?", "split": "test"},
        {"id": "101", "question": f"{long}서?", "split": "train"},
        {"id": "102", "question": f"{long}어?"},
    ]
    out = preprocess(rows)
    assert rejects(out) == [("ppo", "102", "leak")]
    assert "101" in ids(out / "ppo" / "train.jsonl")


def aihub(folder: Path, parts: Rows) -> Path:
    for part, name in (("sft", "SFTlabel"), ("rm", "RMlabel"), ("ppo", "PPOdata")):
        (folder / f"{name}.json").parent.mkdir(parents=True, exist_ok=True)
        rows = []
        for row in parts[part]:
            row = dict(row)
            if part == "sft":
                row["answer"] = {"contents": row["answer"]}
            for n, (text, rank) in enumerate(
                zip(row.pop("answers", ()), row.pop("ranks", ()), strict=True), 1
            ):
                row[f"answer{n:02d}"] = {"contents": text, "ranking": rank}
            rows.append(row)
        (folder / f"{name}.json").write_text(json.dumps({"data_info": rows}), encoding="utf-8")
    return folder


def test_validation_folder_is_the_test_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, held = world(120), world(140)
    held = {part: rows[118:] for part, rows in held.items()}  # two questions stand on both sides
    long = "가나다라마바사아자차카타파하거너더러머버"
    training["ppo"].append({"question": f"{long}?"})
    held["ppo"].append({"question": f"{long}서?"})
    aihub(tmp_path / "source" / "Training", training)
    aihub(tmp_path / "source" / "Validation", held)
    result = run(tmp_path, monkeypatch, **{"data.source": "aihub"})
    assert result.exit_code == 0, result.output
    check(tmp_path / "out")
    found = metrics(tmp_path / "out")
    for part, leaks in (("sft", 2), ("rm", 2), ("ppo", 3)):
        assert found[part]["rejected"] == {"leak": leaks}
        assert found[part]["rows"]["test"] == len(held[part])
        assert 0 < found[part]["rows"]["validation"] < 20


def test_sample_is_the_aihub_shape_with_a_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aihub(tmp_path / "source", pinned())
    texts = ["하나는 첫째다.</s>", question(3), f"둘.\n{question(1005)}", "", question(0)]
    write_jsonl(tmp_path / "source" / "corpus.jsonl", [{"text": text} for text in texts])
    result = run(tmp_path, monkeypatch, **{"data.source": "sample"})
    assert result.exit_code == 0, result.output
    check(tmp_path / "out")
    assert [row["text"] for row in read_jsonl(tmp_path / "out" / "corpus.jsonl")] == [
        "하나는 첫째다.",
        question(0),
    ]
    assert metrics(tmp_path / "out")["corpus"] == {
        "read": 5,
        "kept": 2,
        "rejected": {"leak": 2, "malformed": 1},
    }


def test_without_a_corpus_training_rows_are_the_corpus(preprocess: Any) -> None:
    rows = pinned()
    out = preprocess(rows)
    texts = [row["text"] for row in read_jsonl(out / "corpus.jsonl")]
    sft = [f"{rows['sft'][n]['question']}\n{rows['sft'][n]['answer']}" for n in (0, 1, 4, 5)]
    rm = [
        f"{rows['rm'][n]['question']}\n{text}" for n in (0, 1) for text in rows["rm"][n]["answers"]
    ]
    assert texts == sft + rm


def test_kochatgpt_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = world()
    source = tmp_path / "source"
    source.mkdir()
    for name, content in {
        "1_SFT": [{"prompt": r["question"], "completion": r["answer"]} for r in rows["sft"]],
        "2_RM": [
            {"prompt": r["question"], "ranking": [[1, 2, 0], [2, 0, 1]][n % 2]}
            | {f"completion_{i}": text for i, text in enumerate(["가나", "다라", "마바"])}
            for n, r in enumerate(rows["rm"])
        ],
        "3_PPO": [{"prompt": r["question"]} for r in rows["ppo"]],
    }.items():
        (source / f"kochatgpt_{name}.jsonl").write_text(json.dumps(content), encoding="utf-8-sig")
    result = run(tmp_path, monkeypatch, **{"data.source": "kochatgpt"})
    assert result.exit_code == 0, result.output
    check(tmp_path / "out")
    for row in read_rows(tmp_path / "out" / "rm" / "train.jsonl", RmRow):
        even = int(row.id.removeprefix("rm-")) % 2 == 1  # ids count from 1
        assert row.ranks == ((2, 3, 1) if even else (3, 1, 2))
        assert row.answers == ("가나", "다라", "마바")


def test_caps(preprocess: Any) -> None:
    rows = pinned()
    sentences = [f"{noun(n)}다. " for n in range(30)]
    rows["sft"][0]["answer"] = "".join(sentences)
    rows["sft"][1]["answer"] = LONG_WORD  # no sentence ends within the cap
    rows["sft"][4]["question"] = f"{LONG_WORD}?"
    rows["rm"][0]["answers"] = [LONG_WORD, "나나.", "다다."]
    rows["rm"][1]["answers"] = [LONG_WORD, LONG_WORD + "요", "다다."]
    out = preprocess(rows)
    assert rejects(out) == [
        ("sft", "001", "too_long"),
        ("sft", "004", "too_long"),
        ("rm_answer", "000", "too_long"),
        ("rm", "001", "too_long"),
    ]
    clipped = read_rows(out / "sft" / "train.jsonl", SftRow)[0]
    assert clipped.clipped
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    count = clipped.answer.count("다.")
    assert clipped.answer == "".join(sentences[:count]).strip()
    assert len(tokenizer.encode(clipped.answer)) <= 31  # micro: 32 with EOS
    assert len(tokenizer.encode("".join(sentences[: count + 1]).strip())) > 31
    (group,) = read_rows(out / "rm" / "train.jsonl", RmRow)
    assert (group.answers, group.ranks) == (("나나.", "다다."), (1, 2))
    assert not any(row.clipped for row in read_rows(out / "sft" / "test.jsonl", SftRow))


def test_long_questions(preprocess: Any) -> None:
    rows = pinned()
    for part in rows.values():
        part[1]["question"] = f"{LONG_WORD} {part[1]['question']}"
    out = preprocess(rows)
    assert rejects(out) == [(part, "001", "too_long") for part in ("sft", "rm", "ppo")]


def test_flawed_answers_are_counted_apart(preprocess: Any) -> None:
    rows = pinned()
    rows["rm"][0]["answers"] = ["가다.", "나다.", ""]
    rows["rm"][1] |= {"answers": ["가다.", "나다.", "가다.", "<NAME>"], "ranks": [2, 3, 1, 4]}
    out = preprocess(rows)
    assert metrics(out)["dropped_answers"] == {
        "duplicate_answer": 1,
        "empty_answer": 1,
        "placeholder": 1,
    }
    written = [row for row in read_jsonl(out / "rejects.jsonl") if row["id"] == "000"]
    assert written == [
        {
            "part": "rm_answer",
            "id": "000",
            "reason": "empty_answer",
            "row": {"question": question(1000), "answer": "", "rank": 3},
        }
    ]


def test_a_free_row_goes_with_the_training_question_it_repeats(preprocess: Any) -> None:
    rows = pinned()
    rows["ppo"].append({"id": "100", "question": question(0)})
    assert "100" in ids(preprocess(rows) / "ppo" / "train.jsonl")


def test_long_answers_may_be_dropped(preprocess: Any) -> None:
    rows = pinned()
    rows["sft"][0]["answer"] = "".join(f"{noun(n)}다. " for n in range(30))
    out = preprocess(rows, **{"preprocess.long_answers": "drop"})
    assert rejects(out) == [("sft", "000", "too_long")]


def test_token_lengths_are_those_before_the_cap(preprocess: Any) -> None:
    rows = pinned()
    rows["sft"][0]["answer"] = "".join(f"{noun(n)}다. " for n in range(30))
    out = preprocess(rows)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    lengths = sorted(len(tokenizer.encode(row["answer"].strip())) for row in rows["sft"])
    assert metrics(out)["tokens"]["sft_answer"] == {
        "p50": lengths[3],
        "p95": lengths[-1],
        "p99": lengths[-1],
    }


def test_most_items(preprocess: Any) -> None:
    out = preprocess(world(), **{"preprocess.max_items": 50})
    assert [metrics(out)[part]["read"] for part in ("sft", "rm", "ppo")] == [50, 50, 50]


def test_rejected_rows_are_written_as_they_stand(preprocess: Any, tmp_path: Path) -> None:
    rows = pinned()
    rows["rm"].append(rows["rm"][0] | {"id": "101", "question": "새 질문?", "ranks": [9, 1, 2]})
    out = preprocess(rows)
    assert rejects(out) == [("rm", "101", "bad_rank")]
    assert [row["row"] for row in read_jsonl(out / "rejects.jsonl")] == [rows["rm"][-1]]


def test_lone_surrogates_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(tmp_path / "source", pinned())
    with (source / "ppo.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "100", "question": "\\ud800 새 질문?", "split": "train"}\n')
        file.write('{"id": "101", "question": "\\ud800"}\n')
    result = run(tmp_path, monkeypatch)
    assert result.exit_code == 0, result.output
    check(tmp_path / "out")
    assert "100" in ids(tmp_path / "out" / "ppo" / "train.jsonl")
    assert rejects(tmp_path / "out") == [("ppo", "101", "empty_question")]


def tokenizer_of(out: Path) -> bytes:
    return (out / "tokenizer.json").read_bytes()


def test_tokenizer_sees_training_text_alone(preprocess: Any) -> None:
    rows = pinned(40)
    first = tokenizer_of(preprocess(rows, "first"))
    for part in rows.values():
        for row in part:
            if row["split"] != "train":
                row["question"] = row["question"].replace("뭐야", "누구야누구야")
    for row in rows["sft"]:
        if row["split"] != "train":
            row["answer"] += " 누구야"
    assert tokenizer_of(preprocess(rows, "again")) == first
    rows["sft"][0]["answer"] += " 누구야누구야" * 2
    assert tokenizer_of(preprocess(rows, "other")) != first


def test_tokenizer(preprocess: Any) -> None:
    tokenizer = Tokenizer.from_file(str(preprocess(pinned(40)) / "tokenizer.json"))
    assert [tokenizer.token_to_id(token) for token in ("<pad>", "<bos>", "<eos>")] == [0, 1, 2]
    assert tokenizer.get_vocab_size() == 320
    text = "Hello, 한국의 수도는 2024년?\n  네! 🙂 漢字"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    for piece in TEMPLATE_PIECES:
        assert piece in template()
        assert len(tokenizer.encode(piece)) <= 4


@pytest.mark.parametrize(
    ("params", "facts"),
    [
        ({"preprocess.test_shere": 0.1}, ["preprocess.test_shere", 0.1, "no such key"]),
        ({"preprocess.test_share": 0.9}, ["preprocess.test_share", 0.9, 0.5]),
        ({"model": "gpt5"}, ["model", "gpt5", "tiny", "micro"]),
        ({"data.source": "csv"}, ["data.source", "csv", "jsonl"]),
        ({"data.path": "nowhere"}, ["nowhere"]),
        ({"data.source": "aihub"}, ["aihub", "SFTlabel.json", "SFT.json", "(sft)"]),
        ({"models.micro.max_prompt_tokens": 16}, ["max_prompt_tokens", 16]),
        ({"models.micro.architecture.vocab_size": 9000}, ["architecture.vocab_size", 9000]),
    ],
)
def test_errors_are_one_line(
    params: dict[str, Any], facts: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_source(tmp_path / "source", pinned(40))
    result = run(tmp_path, monkeypatch, **params)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert len(result.output.strip().splitlines()) == 1
    assert re.search(naming(*facts), result.output)
    assert not (tmp_path / "out.json").exists()
    assert not (tmp_path / "out" / "spool.sqlite").exists()


def test_no_params_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--code", "c.json", "--out", "out", "--metrics", "m.json"]
    result = CliRunner().invoke(main, [*words, *MODEL])
    assert result.exit_code == 1
    assert "params.yaml" in result.output


def test_a_pretrained_models_tokenizer_is_written_too(preprocess: Any, tmp_path: Path) -> None:
    """dvc.yaml names the same files whatever the base model."""
    save_base(tmp_path / "base")
    fingerprint = tmp_path / "data" / "check" / "model.json"
    fingerprint.parent.mkdir(parents=True, exist_ok=True)
    fingerprint.write_text(json.dumps(local_files(tmp_path / "base")), encoding="utf-8")
    own = {f"models.micro.{key}": None for key in ("architecture", "base")}
    out = preprocess(pinned(), **own, **{"models.micro.path": str(tmp_path / "base")})
    assert {str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()} == {*FILES, RUN}
    written, given = (
        Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (out, tmp_path / "base")
    )
    assert written.to_str() == given.to_str()


def test_hub_model_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    write_source(tmp_path / "source", pinned())
    result = run(tmp_path, monkeypatch, **{"model": "llama32-1b"})
    assert result.exit_code == 1
    assert re.search(naming("Error: ", "meta-llama/Llama-3.2-1B", "latest"), result.output)
    assert len(result.output.splitlines()) == 1


def test_nothing_is_written_elsewhere(preprocess: Any, tmp_path: Path) -> None:
    preprocess(pinned())
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"params.yaml", "stages", "data", "source", "out", "out.json", "details"}
