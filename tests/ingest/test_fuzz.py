"""Preprocess on thousands of files that are wrong somewhere: it says so, or counts every row.

Whatever lies in `data.path`, the library raises nothing but ValueError and the stage nothing but a
sentence; kept + rejected = read; and nothing is written outside the folder of the stage.
"""

import csv
import io
import json
import os
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from stages import preprocess
from stages.rlhf.config.whole import Params, load_params
from stages.rlhf.ingest import pipeline
from stages.rlhf.ingest.splitting.splits import SIDES
from stages.rlhf.records import PromptRow, RmRow, SftRow, read_jsonl, read_rows, write_metrics
from tests.conftest import write_fingerprint, write_params
from tests.source_fixtures import noun
from tests.tokenizer_fixtures import bpe

ROWS = 14  # of each part
PARTS = ("sft", "rm", "ppo")
NAMES = {
    "aihub": ("SFTlabel.json", "RMlabel.json", "PPOdata.json"),
    "kochatgpt": ("kochatgpt_1_SFT.jsonl", "kochatgpt_2_RM.jsonl", "kochatgpt_3_PPO.jsonl"),
    "jsonl": ("sft.jsonl", "rm.jsonl", "ppo.jsonl"),
}
SCHEMAS = {"sft": SftRow, "rm": RmRow, "ppo": PromptRow}
KEYS = (
    *("question", "answer", "answers", "ranks", "ranking", "prompt", "completion", "contents"),
    *("answer01", "completion_0", "chosen", "rejected", "split", "defects", "kind", "data_id"),
    *("id", "data_category", "must_contain", "question_type", "text", "answer" + "9" * 5000),
    *("instruction", "input", "output", "messages", "conversations", "role", "content", "from"),
    *("value", "scores", "responses", "completions", "score", "rank", "query", "response"),
)
ODD_TEXTS = (
    *("", " ", "\ud800", "\udfff가", "\x00", "\ufeff", "<NAME>", "</s>", "<</s>/s>", "ㅤ", "?", "١"),
    *("가" * 3000, "e\u0301" * 50, "\u202e", "1e400", "NaN", "판다" + "." * 500, *SIDES[1:]),
)
ODD_NUMBERS = (0, -1, 1.5, 2**63, -(2**64), 10**400, 1e308, *map(float, ("nan", "inf")), True)
CRUMBS = (
    *(b"{", b"}", b"[", b"]", b'"', b"\\", b"\\u", b"\\ud800", b",", b":", b"\n", b"\r\n", b"\0"),
    *(b"\xff", b"\xef\xbb\xbf", b"NaN", b"-Infinity", b"1" * 5000, b"1e999", b"[" * 300, b"null"),
    *(b'"question": 1,', b'{"a":' * 70, b"PK\x03\x04", b"\x80", b"\xed\xa0\x80", b" " * 20_000),
)

values = st.recursive(
    st.none() | st.sampled_from(ODD_NUMBERS) | st.sampled_from(ODD_TEXTS) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=6,
)


SHAPES = ("own", "alpaca", "trl", "chat", "share", "pairs", "scores", "graded")  # of jsonl


@cache
def sound(source: str, part: str, shape: str = "own") -> list[dict[str, Any]]:
    """Rows with which nothing is wrong."""
    return [shaped(part, row, shape) for row in plain(source, part)]


def shaped(part: str, row: dict[str, Any], shape: str) -> dict[str, Any]:
    """A row of jsonl in another shape."""
    if shape == "own":
        return row
    question, split = row["question"], {"split": row["split"]}
    names = (
        ("from", "value", "human", "gpt") if shape == "share" else ("role", "content", "user", "")
    )
    who, what, user, bot = names

    def turns(*texts: str) -> list[dict[str, str]]:
        roles = (user, bot or "assistant")
        return [{who: role, what: text} for role, text in zip(roles, texts, strict=False)]

    key = "instruction" if shape == "alpaca" else "prompt"
    if part == "ppo":
        chat = shape in ("chat", "share")
        return split | ({"messages": turns(question)} if chat else {key: question})
    if part == "sft" and shape in ("chat", "share"):
        name = "messages" if shape == "chat" else "conversations"
        return split | {name: turns(question, row["answer"])}
    if part == "sft":
        return split | {
            key: question,
            ("output" if shape == "alpaca" else "completion"): row["answer"],
        }
    order = sorted(zip(row["ranks"], row["answers"], strict=True))
    best, worst = order[0][1], order[-1][1]
    if shape in ("chat", "share"):
        return split | {"chosen": turns(question, best), "rejected": turns(question, worst)}
    if shape == "scores":
        return split | {key: question, "responses": row["answers"], "scores": row["ranks"]}
    if shape == "graded":
        graded = [{"text": text, "rank": rank} for rank, text in order]
        return split | {key: question, "answers": graded}
    return split | {key: question, "chosen": best, "rejected": worst}


@cache
def plain(source: str, part: str) -> list[dict[str, Any]]:
    """Rows in the format's own shape."""
    rows = []
    for number in range(ROWS):
        asked, told = f"{noun(number)} 뭐야?", [f"{noun(-number - n)}다." for n in range(3)]
        if source != "jsonl":
            asked += part  # every question once; in jsonl, in all parts
        row: dict[str, Any] = {"prompt" if source == "kochatgpt" else "question": asked}
        if part == "sft" and source == "aihub":
            row["answer"] = {"contents": told[0]}
        elif part == "sft":
            row["answer" if source == "jsonl" else "completion"] = told[0]
        elif part == "rm" and source == "aihub":
            row |= {f"answer0{n}": {"contents": told[n], "ranking": n + 1} for n in range(3)}
        elif part == "rm" and source == "kochatgpt":
            row |= {f"completion_{n}": told[n] for n in range(3)} | {"ranking": [1, 2, 0]}
        elif part == "rm":
            row |= {"answers": told, "ranks": [3, 1, 2]}
        if source != "kochatgpt":
            row["split"] = ("train", "validation", "test")[number % 3]
        rows.append(row)
    return rows


@st.composite
def files(draw: st.DrawFn, source: str, part: str, bytewise: bool, table: bool = False) -> bytes:
    """A file of a part: sound rows, odd rows among them, perhaps odd bytes in it too."""
    shape = draw(st.sampled_from(SHAPES)) if source == "jsonl" else "own"
    rows: list[Any] = [dict(row) for row in sound(source, part, shape)]
    if shape == "pairs" and part == "rm":  # several of a prompt, some against others
        swapped = {"chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}
        rows += [rows[1] | {"chosen": "또 다른 답."}, rows[0] | swapped, dict(rows[2])]
    for _ in range(draw(st.integers(0, 8))):
        place = draw(st.integers(0, len(rows) - 1))
        if draw(st.integers(0, 3)) == 0:
            rows[place] = draw(values)
        elif isinstance(rows[place], dict):
            key = draw(st.sampled_from([*rows[place], *KEYS]))
            rows[place] = rows[place] | {key: draw(values)}
    if table:
        whole = as_csv(rows)
        return draw(damaged(whole)) if bytewise else whole.encode("utf-8", "surrogatepass")
    escaped = draw(st.booleans())
    texts = [json.dumps(row, ensure_ascii=escaped) for row in rows]
    if draw(st.integers(0, 3)) == 0:  # a key twice
        texts[1] = texts[1][:-1] + ', "question": ' + json.dumps(draw(values)) + "}"
    whole = joined(texts, source, draw(st.booleans()))
    return draw(damaged(whole)) if bytewise else whole.encode("utf-8", "surrogatepass")


def as_csv(rows: list[Any]) -> str:
    """Rows as a table; those that are no objects as a cell."""
    found = [row if isinstance(row, dict) else {"question": row} for row in rows]
    names = list(dict.fromkeys(name for row in found for name in row))
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(names)
    for row in found:
        values = [row.get(name) for name in names]
        table.writerow([json.dumps(v) if isinstance(v, list | dict) else v for v in values])
    return out.getvalue()


def joined(texts: list[str], source: str, lines: bool) -> str:
    """A file of rows; `lines`: KoChatGPT has them, or an array."""
    lines = source == "jsonl" or (source == "kochatgpt" and lines)
    whole = "\n".join(texts) + "\n" if lines else "[" + ", ".join(texts) + "]"
    if source == "aihub":
        whole = '{"dataset_info": {"a": [1]}, "data_info": ' + whole + "}"
    return whole


def sound_file(source: str, part: str) -> bytes:
    return joined([json.dumps(row) for row in sound(source, part)], source, True).encode()


@st.composite
def damaged(draw: st.DrawFn, text: str) -> bytes:
    """A text as bytes, as it should be or not."""
    how = draw(st.sampled_from(["utf-8"] * 9 + ["utf-8-sig", "crlf"] * 2 + ["cp949", "utf-16"]))
    if how == "crlf":
        text, how = text.replace("\n", "\r\n"), "utf-8"
    data = text.encode(how, "surrogatepass" if how.startswith("utf") else "replace")
    return draw(bitten(data)) if draw(st.integers(0, 4)) == 0 else data


@st.composite
def bitten(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with a few of them changed, put in, taken out or cut off."""
    content = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["flip", "insert", "delete", "cut", "double"])):
            case "flip" if place < len(content):
                content[place] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                content[place:place] = draw(st.sampled_from(CRUMBS))
            case "delete":
                del content[place : place + draw(st.integers(1, 40))]
            case "cut":
                del content[place:]
            case "double":
                content[place:place] = content[place : place + 200]
    return bytes(content)


PLACES = (
    *("", "", "/", "../../", "..\\", "/etc/", "Validation/", "VL.zip/", "a" * 300 + "/"),
    *("train/", "2.Dev/", "시험/", "test_set/train/", "Testing.zip/"),
)


@st.composite
def zips(draw: st.DrawFn, contents: dict[str, bytes]) -> bytes:
    """The files in a zip that may be broken: links, climbing names, bits flipped, encrypted."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            info = zipfile.ZipInfo(draw(st.sampled_from(PLACES)) + name)
            if draw(st.integers(0, 9)) == 0:
                info.external_attr = 0o120777 << 16  # a symbolic link
            method = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
            archive.writestr(info, content, method)
        info = draw(st.sampled_from(archive.infolist()))
        match draw(st.integers(0, 15)):  # else the zip stays as it is
            case 0:
                info.flag_bits |= draw(st.sampled_from([1, 0x20, 0x40, 0x800]))
            case 1:
                info.file_size = draw(st.sampled_from([0, 1, 100, 2**31, 2**40]))
            case 2:
                info.compress_type = draw(st.sampled_from([0, 8, 9, 12, 14, 99]))
            case 3:
                info.header_offset = draw(st.sampled_from([0, 1, 2**20]))
    data = buffer.getvalue()
    if draw(st.integers(0, 5)) == 0:
        data = draw(bitten(data))
    if draw(st.integers(0, 4)) == 0:
        data = draw(zips({"inner.zip": data}))
    return data


@st.composite
def sources(draw: st.DrawFn) -> tuple[str, dict[str, bytes]]:
    """A format, and the files below `data.path` by their place."""
    source = draw(st.sampled_from(list(NAMES)))
    bytewise = draw(st.booleans())
    named = dict(zip(PARTS, NAMES[source], strict=True))
    contents = {name: sound_file(source, part) for part, name in named.items()}
    for part in draw(st.sets(st.sampled_from(PARTS), min_size=1)):
        table = source == "jsonl" and draw(st.integers(0, 4)) == 0
        content = draw(files(source, part, bytewise, table))
        if table:
            del contents[named[part]]
        contents[f"{part}.csv" if table else named[part]] = content
    if not bytewise:
        return source, contents
    if draw(st.integers(0, 3)) == 0:
        texts = [json.dumps({"text": noun(n)}) for n in range(3)] + [json.dumps(draw(values))]
        contents["corpus.jsonl"] = draw(damaged("\n".join(texts)))
    if draw(st.integers(0, 19)) == 0:
        contents[draw(st.sampled_from(list(contents)))] = b""
    match draw(st.sampled_from(["folder", "folder", "zip", "zip", "sides", "pieces"])):
        case "folder":
            return source, contents
        case "zip":
            return source, {"all.zip": draw(zips(contents))}
        case "sides":
            folder = draw(
                st.sampled_from(["Validation", "dev", "Test", "3.시험", "train", "other"])
            )
            held_out = {f"{folder}/{name}": content for name, content in contents.items()}
            bad = draw(st.sampled_from(list(held_out)))
            return source, contents | held_out | {bad: draw(bitten(held_out[bad]))}
        case _:
            data = draw(zips(contents))
            cuts = [0, *sorted(draw(st.lists(st.integers(0, len(data)), max_size=3))), len(data)]
            pairs = enumerate(pairwise(cuts))
            return source, {f"all.zip.part{n}": data[a:b] for n, (a, b) in pairs}


# ---- what must hold


WRITES: list[str] | None = None


def _watch(name: str, given: tuple[Any, ...]) -> None:
    """Note each path that this process opens for writing, makes, moves or takes away."""
    if WRITES is None:
        return
    if name == "open":
        path, mode, flags = given
        if isinstance(path, str) and (
            set(mode or "") & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            WRITES.append(path)
    elif name in {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link"}:
        WRITES.extend(str(path) for path in given[:2] if isinstance(path, str))
    elif name == "sqlite3.connect":
        WRITES.append(str(given[0]))


@contextmanager
def only_below(folder: Path) -> Iterator[None]:
    global WRITES
    WRITES = []
    try:
        yield
        outside = [path for path in WRITES if not Path(path).is_relative_to(folder)]
        assert outside == [], "written outside the folder of the stage"
        assert WRITES
    finally:
        WRITES = None


sys.addaudithook(_watch)


@cache
def knobs(source: str) -> Params:
    with tempfile.TemporaryDirectory() as folder:
        changed = {"data.source": source, "data.path": "nowhere", "model": "micro"}
        changed |= {f"preprocess.{name}_share": 0.3 for name in ("validation", "test", "judge")}
        file = write_params(Path(folder), **changed, **{"models.micro.max_prompt_tokens": 96})
        return load_params(file)


@cache
def tokenizer() -> Tokenizer:
    return bpe()


def lay(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        file = folder / "source" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder / "source"


def check(out: Path, report: dict[str, Any]) -> None:
    """Every row read is in a file or among the rejects."""
    rejected = Counter(row["part"] for row in read_jsonl(out / "rejects.jsonl"))
    for part, schema in SCHEMAS.items():
        folders = ["rm", "judge"] if part == "rm" else [part]
        names = [file for folder in folders for file in (out / folder).iterdir()]
        kept = sum(len(read_rows(file, schema)) for file in names)
        told = report[part]
        merged = told.get("merged", 0)
        assert kept + merged + rejected[part] == told["read"]
        assert told["read"] == told["kept"] + sum(told["rejected"].values())
        assert kept + merged == told["kept"] == sum(told["rows"].values()) + merged
    told = report["corpus"]
    assert told["kept"] + rejected["corpus"] == told["read"]


def survive(source: str, contents: dict[str, bytes]) -> str:
    """What the library says of the files, if it does not read them."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        path = lay(folder, contents)
        patch.setattr(pipeline, "_own_tokenizer", lambda *given: tokenizer())
        shipped = knobs(source)
        data = shipped.data.model_copy(update={"path": path})
        out = folder / "out"
        said = ""
        try:
            with only_below(out):
                report, _ = pipeline.prepare(shipped.model_copy(update={"data": data}), out)
                write_metrics(out / "metrics.json", report)
        except ValueError as error:
            said = str(error)
        if said:
            assert str(path) in said, "the message names no file"
            assert "\n" not in said
        else:
            check(out, report)
        return said


def budget(examples: int) -> Any:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@budget(500)
@given(sources())
def test_every_file_is_read_or_refused(drawn: tuple[str, dict[str, bytes]]) -> None:
    event("refused" if survive(*drawn) else "read")


@pytest.mark.slow
@pytest.mark.timeout(1500)
@budget(3000)
@given(sources())
def test_every_one_of_thousands(drawn: tuple[str, dict[str, bytes]]) -> None:
    event("refused" if survive(*drawn) else "read")


@pytest.mark.parametrize("source", NAMES)
def test_sound_files_are_read_whole(source: str) -> None:
    """Else the tests above would hold of a reader that refuses all."""
    with tempfile.TemporaryDirectory() as name:
        contents = {
            file: sound_file(source, part) for part, file in zip(PARTS, NAMES[source], strict=True)
        }
        shipped = knobs(source)
        data = shipped.data.model_copy(update={"path": lay(Path(name), contents)})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "_own_tokenizer", lambda *given: tokenizer())
            shipped = shipped.model_copy(update={"data": data})
            report, _ = pipeline.prepare(shipped, Path(name) / "out")
        assert [report[part]["read"] for part in PARTS] == [ROWS] * 3
        check(Path(name) / "out", report)


@budget(12)
@given(sources())
def test_the_stage_says_it_in_a_sentence(drawn: tuple[str, dict[str, bytes]]) -> None:
    """With a tokenizer of its own too."""
    source, contents = drawn
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        changed = {"data.source": source, "data.path": lay(folder, contents), "model": "micro"}
        write_params(folder, **changed, **{"models.micro.architecture.vocab_size": 300})
        patch.chdir(folder)
        arguments = ["--code", str(write_fingerprint(folder, "preprocess"))]
        arguments += ["--out", str(folder / "out"), "--metrics", str(folder / "out.json")]
        arguments += ["--model", "data/check/model.json"]
        result = CliRunner().invoke(preprocess.main, arguments, catch_exceptions=False)
        assert result.exit_code in (0, 1)
        assert (result.exit_code == 0) == (folder / "out.json").is_file()
        assert ("Error: " in result.output) == (result.exit_code == 1)


# ---- what was found


@pytest.mark.parametrize(
    ("source", "name"),
    [("jsonl", "\ud800"), ("jsonl", "가\udfff"), ("jsonl", "\u200b"), ("aihub", "\ud800")],
)
def test_an_id_that_utf8_cannot_hold(source: str, name: str) -> None:
    """It met the table of rows as it was, and the error named no file."""
    rows = [dict(row) for row in sound(source, "sft")]
    rows[0]["data_id" if source == "aihub" else "id"] = name
    named = dict(zip(PARTS, NAMES[source], strict=True))
    contents = {file: sound_file(source, part) for part, file in named.items()}
    contents[named["sft"]] = joined([json.dumps(row) for row in rows], source, True).encode()
    assert survive(source, contents) == ""


@pytest.mark.parametrize("place", [-300, 70])
def test_damage_within_a_zip_within_a_zip(place: int) -> None:
    """zipfile unpacks the inner one when it looks for its end: zlib's error, or a bad checksum."""
    named = dict(zip(PARTS, NAMES["aihub"], strict=True))
    inner, outer = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        for part, file in named.items():
            archive.writestr(file, sound_file("aihub", part))
    method = zipfile.ZIP_DEFLATED if place > 0 else zipfile.ZIP_STORED
    with zipfile.ZipFile(outer, "w", method) as archive:
        archive.writestr("inner.zip", inner.getvalue())
    data = bytearray(outer.getvalue())
    data[place] ^= 255
    assert "inner.zip: not a readable zip" in survive("aihub", {"all.zip": bytes(data)})
