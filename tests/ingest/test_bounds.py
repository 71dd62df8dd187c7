"""What is too large, too deep or a bomb ends with a sentence, before memory or patience does."""

import json
import os
import random
import re
import subprocess
import sys
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.rlhf.ingest.cleaning import Answer, settle
from stages.rlhf.ingest.files.document import DEPTH, ROW_BYTES
from stages.rlhf.ingest.files.entries import (
    ZIP_DEPTH,
    ZIP_DIRECTORY,
    ZIP_ENTRIES,
    ZIP_FREE,
    ZIP_RATIO,
)
from stages.rlhf.ingest.splitting import near_duplicates, shared_grams
from stages.rlhf.ingest.tokenizer import train_tokenizer
from stages.rlhf.keys import question_key
from stages.rlhf.korean import clean, has_placeholder, sentence_ends
from tests.conftest import ROOT, naming
from tests.source_fixtures import NAMES, RM, SFT, aihub, document, jsonl, read, write, zipped

GIB = 1 << 30
READ = """
import sys
from pathlib import Path
from stages.rlhf.ingest.sources import Reader
from tests.benchmarks.process_memory import memory
try:
    for part in ("sft", "rm", "ppo"):
        for item in Reader(sys.argv[1], Path(sys.argv[2]), None).items(part): pass
except ValueError as error:
    print(error)
print(memory("VmHWM"))
"""


def refusal(source: str, path: Path, most_mib: int = 150) -> str:
    """What reading a source says, in a process that may not grow."""
    done = subprocess.run(
        [sys.executable, "-c", READ, source, path],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=60,
    )
    said, peak = done.stdout.rsplit("\n", 2)[:2]
    assert float(peak) < most_mib
    return said


def lines(folder: Path, **files: bytes) -> Path:
    return write(folder, **({part: jsonl({}) for part in ("sft", "rm", "ppo")} | files))


# ---- rows


@pytest.mark.parametrize("before", [0, 3])
def test_a_line_of_ten_gigabytes(tmp_path: Path, before: int) -> None:
    path = lines(tmp_path, sft=jsonl({}) * before + b'{"question": "')
    os.truncate(path / "sft.jsonl", 10 * GIB)
    said = refusal("jsonl", path)
    assert re.search(naming("sft.jsonl", f"line {before + 1}", ROW_BYTES), said)


HEAD = b'{"data_info": [1, '


@pytest.mark.parametrize(
    ("head", "filling", "row"),
    [
        (HEAD + b'{"question": "', b"a", 1),
        (HEAD + b'{"question": [', b"[],", 1),
        (HEAD, b" ", 1),
        (b'{"dataset_info": "', b"a", 0),
    ],
)
def test_a_document_whose_row_never_ends(
    tmp_path: Path, head: bytes, filling: bytes, row: int
) -> None:
    """In a zip, to which such a stream is a few KB."""
    path = aihub(tmp_path)
    stream = head + filling * (90_000_000 // len(filling))
    (path / "TL.zip").write_bytes(zipped({NAMES["sft"]: stream}))
    said = refusal("aihub", path)
    assert re.search(naming("TL.zip!SFTlabel.json", f"row {row}", ROW_BYTES), said)


def test_rows_up_to_the_bound_are_read(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "a" * (ROW_BYTES - 100)}
    assert len(read(lines(tmp_path / "l", sft=jsonl(row)), "sft", "jsonl")) == 1
    path = aihub(tmp_path / "a", sft=document([row, row]))
    assert len(read(path, "sft")) == 2


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize("levels", [DEPTH + 1, 900, 200_000])
@pytest.mark.parametrize("where", ["row", "beside"])
def test_nesting_that_is_too_deep(tmp_path: Path, levels: int, where: str) -> None:
    inner = b'{"question": ' + deep(levels) + b"}"
    document = {
        "row": b'{"data_info": [' + inner + b"]}",
        "beside": b'{"x": ' + inner + b', "data_info": [1]}',
    }[where]
    said = refusal("aihub", aihub(tmp_path, sft=document))
    assert re.search(naming("SFTlabel.json", "row 0", DEPTH), said)


@pytest.mark.parametrize("levels", [DEPTH, 900, 200_000])
def test_a_deep_line_among_others_is_a_row_that_is_not_json(tmp_path: Path, levels: int) -> None:
    line = b'{"question": ' + deep(levels) + b"}"
    path = lines(tmp_path, sft=jsonl({}) + line + b"\n" + jsonl({}))
    assert [row.raw for row in read(path, "sft", "jsonl")] == [{}, line.decode(), {}]


def test_nesting_within_the_bound(tmp_path: Path) -> None:
    row = {"question": json.loads(deep(DEPTH - 1))}
    assert read(aihub(tmp_path / "a", sft=document([row])), "sft")[0].raw == row
    assert read(lines(tmp_path / "l", sft=jsonl(row)), "sft", "jsonl")[0].raw == row


@pytest.mark.parametrize("key", ["answer", "completion_"])
def test_an_to_response_five_thousand_digits(tmp_path: Path, key: str) -> None:
    """int() refuses them, and named no file."""
    row = RM | {key + "9" * 5000: {"contents": "a"}, "prompt": "q"}
    assert len(read(aihub(tmp_path, rm=document([row])), "rm")) == 1
    for name in ("1_SFT", "2_RM", "3_PPO"):
        (tmp_path / f"kochatgpt_{name}.jsonl").write_bytes(jsonl(row))
    assert len(read(tmp_path, "rm", "kochatgpt")) == 1


def test_a_number_of_five_thousand_digits(tmp_path: Path) -> None:
    number = b"9" * 5000
    path = aihub(tmp_path, sft=b'{"data_info": [' + number + b"]}")
    with pytest.raises(ValueError, match=naming(path / "SFTlabel.json", "JSON", "row 0")):
        read(path, "sft")
    path = lines(tmp_path, sft=jsonl({}) + number + b"\n" + jsonl({}))
    assert len(read(path, "sft", "jsonl")) == 3


def test_utf16_is_named_at_its_first_line(tmp_path: Path) -> None:
    path = lines(tmp_path, sft=(jsonl(SFT) * 3).decode().encode("utf-16"))
    with pytest.raises(ValueError, match=naming("sft.jsonl", "line 1", "utf-8")):
        read(path, "sft", "jsonl")


# ---- zips


def bomb(path: Path, size: int, says: int) -> None:
    """A zip whose one entry gives `size` zeros; made block by block, without compressing them."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = squeezer.compress(bytes(1 << 20)) + squeezer.flush(zlib.Z_FULL_FLUSH)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(NAMES["sft"], block * (size >> 20) + squeezer.flush())
        (info,) = archive.infolist()
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, says


def test_zip_bomb(tmp_path: Path) -> None:
    path = aihub(tmp_path)
    bomb(path / "TL.zip", 2 * GIB, 2 * GIB)
    size = (path / "TL.zip").stat().st_size
    assert size < 4 << 20
    assert re.search(naming("TL.zip", size, 2 * GIB, ZIP_RATIO), refusal("aihub", path))


def test_zip_bomb_that_says_it_is_small(tmp_path: Path) -> None:
    path = aihub(tmp_path)
    bomb(path / "TL.zip", 2 * GIB, 1000)
    assert re.search(naming("TL.zip!SFTlabel.json", "CRC-32"), refusal("aihub", path))


def test_entries_of_a_zip_are_counted_together(tmp_path: Path) -> None:
    """Entries that lie over one another make a bomb out of small ones."""
    path = aihub(tmp_path)
    with zipfile.ZipFile(path / "TL.zip", "w") as archive:
        for number in range(8):
            archive.writestr(f"{number}.json", b"")
        each = ZIP_FREE // 8 + 1
        for info in archive.infolist():
            info.file_size = each
    with pytest.raises(ValueError, match=naming(path / "TL.zip", 8 * each)):
        read(path, "sft")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_in_bursts(tmp_path: Path, method: int) -> None:
    path = aihub(tmp_path)
    with zipfile.ZipFile(path / "TL.zip", "w", method) as archive:
        archive.writestr(NAMES["sft"], document([SFT]))
    with pytest.raises(ValueError, match=naming("TL.zip!SFTlabel.json", method)):
        read(path, "sft")


def test_too_many_entries(tmp_path: Path) -> None:
    path = aihub(tmp_path)
    (path / "TL.zip").write_bytes(zipped({str(n): b"" for n in range(ZIP_ENTRIES + 1)}))
    with pytest.raises(ValueError, match=naming(path / "TL.zip", ZIP_ENTRIES + 1, ZIP_ENTRIES)):
        read(path, "sft")


def test_a_list_of_entries_that_is_too_long(tmp_path: Path) -> None:
    path = aihub(tmp_path)
    with zipfile.ZipFile(path / "TL.zip", "w") as archive:
        for number in range(ZIP_DIRECTORY // 65_000 + 1):
            info = zipfile.ZipInfo(str(number))
            info.comment = bytes(65_000)
            archive.writestr(info, b"")
    with pytest.raises(ValueError, match=naming(path / "TL.zip", ZIP_DIRECTORY)):
        read(path, "sft")


def test_zips_in_zips_in_zips(tmp_path: Path) -> None:
    path = aihub(tmp_path)
    inner = document([SFT])
    for name in (NAMES["sft"], "c.zip", "b.zip"):
        inner = zipped({name: inner})
    (path / "a.zip").write_bytes(inner)
    assert len(read(path, "sft")) == 2
    (path / "a.zip").write_bytes(zipped({"d.zip": inner}))
    with pytest.raises(ValueError, match=naming("a.zip", ZIP_DEPTH)):
        read(path, "sft")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = aihub(tmp_path)
    (path / NAMES["sft"]).unlink()
    os.mkfifo(path / NAMES["sft"])
    with pytest.raises(ValueError, match=naming(path / "SFTlabel.json", "pipe")):
        read(path, "sft")


# ---- texts


def growth(work: Callable[[Any], Any], given: Callable[[int], Any], size: int) -> float:
    """How much longer `work` computes on a thing of 16 times the size: 16 times, if in line.

    The shortest of several tries: other processes only ever add to one.
    """

    def seconds(thing: Any, tries: int) -> float:
        def once() -> float:
            began = time.process_time()
            work(thing)
            return time.process_time() - began

        return min(once() for _ in range(tries))

    return seconds(given(16 * size), 2) / seconds(given(size), 10)


NO_SQUARE = 64  # of 16 and 16^2, the mean by factors


@pytest.mark.timeout(60)
@pytest.mark.parametrize("work", [clean, question_key, has_placeholder, sentence_ends])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(lambda n: "가" + " " * 4 * n + "나", id="blanks"),
        pytest.param(lambda n: " \n" * 2 * n + "나", id="breaks"),
        pytest.param(lambda n: "." * 4 * n + "나", id="marks"),
        pytest.param(lambda n: "다" * 4 * n, id="endings"),
        pytest.param(lambda n: "다" + ")" * 4 * n + "나", id="closers"),
        pytest.param(lambda n: "\n" + "x  \n" * n + " y", id="lines"),
        pytest.param(lambda n: "  x\n" * n + "y", id="indented"),
        pytest.param(lambda n: "```\n" * n, id="fences"),
        pytest.param(lambda n: "- " * n + "`" * n + "\n`", id="ticks"),
        pytest.param(lambda n: "5!. ," * n, id="digits"),
        pytest.param(lambda n: "1" + " " * n + "a" + "_" * n, id="gaps"),
        pytest.param(lambda n: "(1+" * n, id="brackets"),
        pytest.param(lambda n: "가" + "</s> " * n, id="trailers"),
        pytest.param(lambda n: "<NAME>" * n + "</X>", id="placeholders"),
    ],
)
def test_long_texts_take_no_square_of_time(
    work: Callable[[str], Any], text: Callable[[int], str]
) -> None:
    assert growth(work, text, 3_000) < NO_SQUARE


def test_a_group_of_many_answers_takes_no_square_of_time() -> None:
    def group(count: int) -> tuple[Answer, ...]:
        return tuple(Answer(str(n), n) for n in range(1, count + 1))

    def settled(given: tuple[Answer, ...]) -> None:
        assert settle(given, [None] * len(given)) == (given, [])

    assert growth(settled, group, 1_000) < NO_SQUARE


def test_long_questions_are_compared_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_grams, "_CHARACTERS", 20_000)
    monkeypatch.setattr(near_duplicates, "_CACHED", 20_000)
    rng = random.Random(0)
    count = near_duplicates.CROWD - 1
    one = "".join(chr(0xAC00 + rng.randrange(11172)) for _ in range(10_000))
    texts = [f"{number} {one}" for number in range(count)]
    tracemalloc.start()
    try:
        groups, _ = near_duplicates.group_near_duplicates(texts, 0.9, np.ones(count, dtype=bool))
        assert tracemalloc.get_traced_memory()[1] < 30 << 20  # 16 of them count the grams
    finally:
        tracemalloc.stop()
    assert {groups.find(number) for number in range(count)} == {0}


@pytest.mark.timeout(60)
def test_a_tokenizer_is_trained_in_spite_of_an_endless_word() -> None:
    """BPE would take minutes over it; pytest ends this test before."""
    texts = ["a" * 100_000, "가다. " * 100, "ab" * 50_000 + " 나라"]
    trained = train_tokenizer(texts, 262, ())
    assert trained.decode(trained.encode("나라 aaa").ids) == "나라 aaa"
