"""CSV, TSV and Parquet as people have them: Excel's, pandas', within zips, damaged."""

import csv
import datetime
import gzip
import io
import json
import os
import subprocess
import sys
import tracemalloc
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.rlhf.ingest.files import tables
from stages.rlhf.ingest.files.document import ROW_BYTES
from stages.rlhf.ingest.files.entries import ZIP_RATIO, Entry, list_entries
from stages.rlhf.ingest.files.tables import is_table, stream_table
from tests.conftest import naming
from tests.source_fixtures import zipped

ROWS = [
    {"id": "001", "question": "수도는, 그리고 강은?", "answer": "서울.\n한강."},
    {"id": "002", "question": '그는 "뭐"라고?', "answer": "3.10"},
]


def entry(content: bytes, name: str = "sft.csv") -> Entry:
    return Entry(name, f"/data/{name}", False, partial(io.BytesIO, content))


def rows(content: bytes | str, name: str = "sft.csv", limit: int | None = None) -> list[Any]:
    data = content if isinstance(content, bytes) else content.encode()
    return list(stream_table(entry(data, name), limit))


def csv_text(given: list[dict[str, str]], **how: Any) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(given[0]), **how)
    writer.writeheader()
    writer.writerows(given)
    return out.getvalue()


def packed(columns: dict[str, Any], **how: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, **how)
    return out.getvalue()


def test_names_of_tables() -> None:
    names = ["sft.csv", "RM.CSV", "ppo.tsv", "sft.parquet", "sft.jsonl", "csv", "sft.csv.bak"]
    assert [is_table(name) for name in names] == [True] * 4 + [False] * 3


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "cp949", "utf-16"])
@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_cells_are_texts_as_they_are(codec: str, separator: str, end: str) -> None:
    text = csv_text(ROWS, delimiter=separator, lineterminator=end)
    assert rows(text.encode(codec)) == ROWS


def test_the_encoding_is_found_far_behind_the_header() -> None:
    many = [{"question": "why? " * 20, "answer": "so."}] * 3000
    for codec in ("utf-8", "cp949"):
        text = csv_text([*many, {"question": "왜?", "answer": "힣뷁똠."}])
        assert rows(text.encode(codec))[-1] == {"question": "왜?", "answer": "힣뷁똠."}


def test_damaged_utf8_is_not_taken_for_another_encoding() -> None:
    text = csv_text([{"question": "수도는?", "answer": "서울입니다."}] * 3).encode()
    at = text.index("서".encode())
    damaged = text[: at + 1] + b"\xff" + text[at + 1 :]
    found = rows(damaged)
    assert found[1:] == [{"question": "수도는?", "answer": "서울입니다."}] * 2
    assert isinstance(found[0], str)
    assert found[0].startswith("수도는?,")
    assert "\ufffd" in found[0]


def test_empty_cells_are_none_and_empty_rows_are_none() -> None:
    text = "\n,question,answer,\n0,가?,나.,\n\n,,,\n1,,다.,\n2,라?,,\n"
    assert rows(text) == [
        {"question": "가?", "answer": "나."},
        {"question": None, "answer": "다."},
        {"question": "라?", "answer": None},
    ]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ('["가, 나", "다"]', ["가, 나", "다"]),
        ("[2, 1, 3]", [2, 1, 3]),
        ('[{"role": "user", "content": "가?"}]', [{"role": "user", "content": "가?"}]),
        (' {"a": [NaN, null]} ', None),
        ("['가', \"나's\", None, 1.5]", ["가", "나's", None, 1.5]),
        ("[{'role': 'user', 'content': '가?'}]", [{"role": "user", "content": "가?"}]),
        ("[1, 2, 3]의 합은?", "[1, 2, 3]의 합은?"),
        ("{a, b}", "{a, b}"),
        ("['가' '나']", "['가' '나']"),
        ("['가'\n '나']", "['가'\n '나']"),
        ("[1 2 3]", "[1 2 3]"),
        ("{1, 2}", "{1, 2}"),
        ("[b'a']", "[b'a']"),
        ("[__import__('os')]", "[__import__('os')]"),
        ("[" * 70 + "]" * 70, "[" * 70 + "]" * 70),
        ("[" * 9000 + "]" * 9000, "[" * 9000 + "]" * 9000),
        ("[" * 100_000, "[" * 100_000),
        ("=1+2", "=1+2"),
        ("NA", "NA"),
        ("1e5", "1e5"),
    ],
)
def test_a_cell_may_hold_a_list(cell: str, value: Any) -> None:
    (row,) = rows(csv_text([{"question": "가?", "answers": cell}]))
    if value is None:
        assert json.dumps(row["answers"]) == '{"a": [NaN, null]}'
    else:
        assert row == {"question": "가?", "answers": value}


def test_lists_that_pandas_wrote(tmp_path: Path) -> None:
    given = {
        "prompt": ["가?", "나?"],
        "answers": [["다", "라"], ["마", "바'"]],
        "ranks": [[1, 2]] * 2,
    }
    pd.DataFrame(given).to_csv(tmp_path / "rm.csv")
    pd.DataFrame(given).to_parquet(tmp_path / "rm.parquet")
    for listed in list_entries(tmp_path):
        assert list(stream_table(listed, None)) == [
            {"prompt": "가?", "answers": ["다", "라"], "ranks": [1, 2]},
            {"prompt": "나?", "answers": ["마", "바'"], "ranks": [1, 2]},
        ]


@pytest.mark.parametrize(
    "bad",
    [
        "가?,나.,다.",  # a comma that is not quoted
        "가?",
        '"가"?,나.',
        '"가?\n한 줄 더" 나,다',
    ],
)
def test_a_row_that_does_not_fit_is_its_text(bad: str) -> None:
    good = {"question": "수도는?", "answer": "서울."}
    assert rows(f"question,answer\n수도는?,서울.\n{bad}\n수도는?,서울.\n{bad}\n") == [
        good, bad, good, bad,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"", ["found none"]),
        (b"\n \n", ["found none"]),
        (b"question,answer\n", ["no rows"]),
        (b"question,answer,question\na,b,c\n", ["question twice"]),
        (b'question,answer\na,b\nc,"d\ne,f\n', ["line 3", "truncated", "quotation"]),
        (b"question,answer\na," + b"b" * ROW_BYTES, ["line 2", ROW_BYTES]),
        (b'question,answer\na,"' + b"b\n" * ROW_BYTES, ["line 2", ROW_BYTES]),
        (b'question,answer\na,"' + b'b\n","' * ROW_BYTES, ["line 2", ROW_BYTES]),
        ("question,answer\n가,나\n".encode("utf-16") + b"\0", ["line ", "utf-16"]),
    ],
)
def test_csv_that_is_none(content: bytes, facts: list[Any]) -> None:
    with pytest.raises(ValueError, match=naming("/data/sft.csv", *facts)):
        rows(content)


def test_a_long_row_is_read() -> None:
    given = [{"question": "가?", "answer": "나" * (ROW_BYTES // 3 - 100)}]
    assert rows(csv_text(given)) == given
    assert rows(packed({"question": ["가?"], "answer": [given[0]["answer"]]}), "a.parquet") == given


def test_most_rows() -> None:
    many = csv_text(ROWS * 3)
    columns = {name: [row[name] for row in ROWS * 3] for name in ROWS[0]}
    for content, name in ((many.encode(), "a.csv"), (packed(columns), "a.parquet")):
        assert rows(content, name, 3) == [*ROWS, ROWS[0]]
        assert rows(content, name) == ROWS * 3


def test_parquet_values() -> None:
    columns = {
        "id": [1, None],
        "answers": [["가", "나"], None],
        "messages": [[{"role": "user", "content": "가?"}], []],
        "score": pa.array([0.5, float("inf")], pa.float32()),
        "when": [datetime.date(2024, 5, 1), None],
        "price": [Decimal("1.10"), None],
        "raw": [b"\xea\xb0\x80", None],
        "kind": pa.array(["a", "a"]).dictionary_encode(),
        "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    }
    assert rows(packed(columns), "a.parquet") == [
        {
            "id": 1,
            "answers": ["가", "나"],
            "messages": [{"role": "user", "content": "가?"}],
            "score": 0.5,
            "when": "2024-05-01",
            "price": "1.10",
            "raw": "가",
            "kind": "a",
            "map": [["k", 1]],
        },
        dict.fromkeys(columns) | {"messages": [], "score": float("inf"), "kind": "a"},
    ]


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"", []),
        (b"PAR1 not really PAR1", []),
        (packed({"question": ["가?"] * 99})[:-30], []),
        (packed({"question": []}), ["no rows"]),
        (packed({"question": ["가?", "b" * (ROW_BYTES + 9)]}), ["row 2", ROW_BYTES]),
    ],
)
def test_parquet_that_is_none(content: bytes, facts: list[Any]) -> None:
    with pytest.raises(ValueError, match=naming("/data/a.parquet", *facts)):
        rows(content, "a.parquet")


def test_a_parquet_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ZIP_FREE", 1000)
    content = packed({"question": ["b" * 100_000 + str(n) for n in range(60)]}, compression="zstd")
    with pytest.raises(ValueError, match=naming("/data/a.parquet", len(content), ZIP_RATIO)):
        rows(content, "a.parquet")


def test_damage_within_a_parquet_file_is_named() -> None:
    whole = packed({"question": [f"{n}가?" for n in range(500)]}, compression="zstd")
    errors = []
    for at in range(10, len(whole), 37):
        try:
            rows(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :], "a.parquet")
        except ValueError as error:
            errors.append(str(error))
    assert len(errors) > 10
    assert all("/data/a.parquet" in error for error in errors)


@pytest.mark.parametrize("in_memory", [tables._IN_MEMORY, 1])
def test_tables_in_folders_zips_and_gzips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(tables, "_IN_MEMORY", in_memory)
    parquet = packed({name: [row[name] for row in ROWS] for name in ROWS[0]})
    text = csv_text(ROWS).encode("cp949")
    (tmp_path / "a.csv").write_bytes(text)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(text))
    (tmp_path / "c.parquet").write_bytes(parquet)
    (tmp_path / "d.zip").write_bytes(zipped({"x/d.csv": text, "x/d.parquet": parquet}))
    found = [listed for listed in list_entries(tmp_path) if is_table(listed.name)]
    assert [listed.name for listed in found] == [
        "a.csv",
        "b.csv",
        "c.parquet",
        "d.csv",
        "d.parquet",
    ]
    assert all(list(stream_table(listed, None)) == ROWS for listed in found)


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    peaks: dict[str, list[int]] = {"a.csv": [], "b.parquet": []}
    letters = "".join(map(chr, draw.integers(0xAC00, 0xD7A3, 60_000)))
    for count in (7_000, 50_000):
        texts = [letters[n : n + 100] for n in range(count)]
        columns = {"question": texts, "answer": texts[::-1]}
        pd.DataFrame(columns).to_csv(tmp_path / "a.csv", index=False)
        (tmp_path / "b.parquet").write_bytes(packed(columns))
        for table in list_entries(tmp_path):
            tracemalloc.start()
            before = pa.total_allocated_bytes()
            beyond = 0
            for _ in stream_table(table, None):
                beyond = max(beyond, pa.total_allocated_bytes() - before)
            peaks[table.name].append(tracemalloc.get_traced_memory()[1] + beyond)
            tracemalloc.stop()
    for small, large in peaks.values():
        assert large < small + 2_000_000  # of 30 MB


def test_nothing_is_imported_unasked_and_nothing_written(tmp_path: Path) -> None:
    """Without network and cache: Parquet from a zip goes to a temporary file of no name."""
    parquet = packed({"question": ["가?"]})
    (tmp_path / "a.zip").write_bytes(zipped({"a.parquet": parquet}))
    code = (
        "import sys; from pathlib import Path; import stages.preprocess;"
        "from stages.rlhf.ingest.files.tables import stream_table;"
        "from stages.rlhf.ingest.files.entries import list_entries;"
        "print('pyarrow' in sys.modules);"
        "print(*[list(stream_table(e, None)) for e in list_entries(Path(sys.argv[1]))]);"
        "print([m for m in ('torch', 'datasets') if m in sys.modules])"
    )
    home = tmp_path / "home"
    home.mkdir()
    shown = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HOME": str(home), "HF_HOME": str(home), "TMPDIR": str(home)},
    )
    assert shown.stdout.splitlines() == ["False", "[{'question': '가?'}]", "[]"]
    assert list(home.iterdir()) == []
