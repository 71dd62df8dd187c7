"""JSON as people have it: one treatment of odd rows in arrays, in objects and in JSON Lines."""

import io
import json
import math
import time
from functools import partial
from typing import Any

import pytest

from stages.rlhf.ingest.files import document
from stages.rlhf.ingest.files.document import DEPTH, ROW_BYTES
from stages.rlhf.ingest.files.entries import Entry
from stages.rlhf.ingest.files.streams import stream_json, stream_rows
from tests.conftest import naming

SOUND = '{"question": "수도는?"}'
Row = json.loads(SOUND)


def entry(content: bytes, name: str = "sft.jsonl") -> Entry:
    return Entry(name, f"/data/{name}", False, partial(io.BytesIO, content))


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def every_way(*rows: str) -> list[list[Any]]:
    """The rows read from an array, from an object, from a pretty array, and from JSON Lines."""
    array = encoded("[" + ", ".join(rows) + "]")
    pretty = encoded("[\n  " + ",\n  ".join(rows) + "\n]\n")
    document = b'{"dataset_info": {"x": [NaN]}, "data_info": ' + array + b', "y": "]"}'
    lines = encoded("".join(row + "\n" for row in rows))
    return [
        list(stream_rows(entry(array), None)),
        list(stream_json(entry(document), "data_info", None)),
        list(stream_rows(entry(pretty), None)),
        list(stream_rows(entry(lines), None)),
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": -Infinity, "b": 1e999}', {"a": -math.inf, "b": math.inf}),
        ('{"a": "\\ud800", "b": "\\udc80"}', {"a": "\ud800", "b": "\udc80"}),
        (f'{{"a": {2**64}, "b": -{2**200}}}', {"a": 2**64, "b": -(2**200)}),
        ('{"a": "탭\t안"}', {"a": "탭\t안"}),
        ('{"a": 1, "a": 2}', {"a": 2}),
        ('{"a": "[{\\"]}, "}', {"a": '[{"]}, '}),
        ("12", 12),
        ("null", None),
    ],
)
def test_what_json_can_parse_is_a_row(text: str, value: Any) -> None:
    for rows in every_way(text, SOUND, text):
        assert rows == [value, Row, value]


def test_nan_is_a_row() -> None:
    for rows in every_way(SOUND, '{"answer": {"contents": NaN}}', SOUND):
        assert rows[::2] == [Row, Row]
        assert math.isnan(rows[1]["answer"]["contents"])


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "C:\\Users"}',
        "{'question': '수도는?', 'n': [1, 2]}",
        '{"question": "수도는?",}',
        '{"question": }',
        '{"question": "그는 "안녕, 잘 가"라고 했다"}',
        '{"question": "수도는?"} {"question": "산은?"}',
        '{"question" "수도는?"}',
        '{"question": [1, 2,]}',
        '{"question": undefined}',
        "True",
        "[" * (DEPTH + 1) + "]" * (DEPTH + 1),
        '{"a": ' + "[" * 3000 + "]" * 3000 + "}",
        '{"n": ' + "9" * 5000 + "}",
    ],
)
def test_a_later_row_that_is_not_json_is_its_text(text: str) -> None:
    for rows in every_way(SOUND, text, SOUND, text):
        assert rows == [Row, text, Row, text]


@pytest.mark.parametrize("bad", [b"\xff", b"\xed\xa0\x80", "\uc218".encode("cp949")])
def test_a_later_row_that_is_not_utf8_is_its_text(bad: bytes) -> None:
    text = '{"question": "' + bad.decode("utf-8", "surrogateescape") + '"}'
    shown = b'{"question": "' + bad + b'"}'
    for rows in every_way(SOUND, text, SOUND):
        assert rows == [Row, shown.decode("utf-8", "replace"), Row]


def test_a_value_that_is_missing_between_commas_is_a_row() -> None:
    assert list(stream_rows(entry(b"[1, , 2,, 3]"), None)) == [1, "", 2, "", 3]


def test_a_comma_after_the_last_row_is_passed_over() -> None:
    assert list(stream_rows(entry(b"[1, 2, ]"), None)) == [1, 2]
    rows = stream_json(entry(b'{"data_info": [1, 2,],}'), "data_info", None)
    assert list(rows) == [1, 2]


@pytest.mark.parametrize("text", ["{'a': 1}", '{"a": "\\x"}', "NULL", '{"a": 1,}', "", "\udcff"])
def test_a_first_row_that_is_not_json_is_another_format(text: str) -> None:
    for content in (f"[{text}, {SOUND}]", f'{{"data_info": [{text}, {SOUND}]}}'):
        with pytest.raises(ValueError, match=naming("/data/sft.jsonl", "JSON", "row 0", "byte ")):
            list(stream_json(entry(encoded(content)), None if content[0] == "[" else "data_info",
                             None))  # fmt: skip


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b'[{"a": 1}, {"a": "x', ["row 1", "byte 11"]),
        (b'[{"a": 1}, {"a": [1}, {"a": 2}]', ["row 1", "byte 19", "}"]),
        (b'[{"a": 1}}, {"a": 2}]', ["row 0", "byte 9", "}"]),
        (b'[{"a": 1}, {"a": 2}', ["row 1", "byte 11"]),
        (b'[{"a": 1}] x', ["row 1", "byte 11"]),
        ('["가", "나'.encode()[:-1], ["row 1", "byte 8"]),
    ],
)
def test_a_file_whose_end_is_unclear(content: bytes, facts: list[str]) -> None:
    with pytest.raises(ValueError, match=naming("/data/sft.jsonl", "JSON", *facts)):
        list(stream_rows(entry(content), None))


def test_a_last_line_without_line_break_is_cut_off() -> None:
    lines = encoded(SOUND + '\n{"question": "수')
    with pytest.raises(ValueError, match=naming("line 2", "truncated")):
        list(stream_rows(entry(lines), None))
    assert list(stream_rows(entry(lines + b"\n"), None)) == [Row, '{"question": "수']


@pytest.mark.parametrize("chunk", range(1, 14))
def test_rows_do_not_depend_on_where_chunks_end(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(document, "_CHUNK", chunk)
    rows = [SOUND, "12", '{"a": [{"b": "\\\\\\"[" }], "c": -1.5e3}', "{'a': 1}", '{"가": "\udcff"}',
            "true", '"\\\\"', "[]", "345"]  # fmt: skip
    expected = [Row, 12, json.loads(rows[2]), "{'a': 1}", '{"가": "\ufffd"}', True, "\\", [], 345]
    for found in every_way(*rows):
        assert found == expected


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * (ROW_BYTES - 1) + "]", id="open brackets"),
        pytest.param('"' + "\\" * ROW_BYTES, id="backslashes"),
        pytest.param('{"a": "' + "가" * (ROW_BYTES // 3), id="string never closed"),
        pytest.param('{"a": [' + "[]," * (ROW_BYTES // 3), id="lists"),
        pytest.param(SOUND[:-1] + " " * ROW_BYTES + "}", id="blanks"),
    ],
)
def test_a_row_that_never_ends_takes_no_square_of_time(text: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match=naming("/data/sft.jsonl", "row 1", ROW_BYTES)):
        list(stream_rows(entry(f"[1, {text}".encode() + b" " * ROW_BYTES + b"]"), None))
    assert time.process_time() - began < 10


def test_many_rows_that_are_not_json_take_no_square_of_time() -> None:
    text = '{"a": ' + "[{}, " * 30 + "'x'" + "]" * 30 + "}"
    content = ("[1" + f", {text}" * 10_000 + "]").encode()
    began = time.process_time()
    assert list(stream_rows(entry(content), None)) == [1] + [text] * 10_000
    assert time.process_time() - began < 10


@pytest.mark.parametrize("content", ['{\n  "data": [{}]\n}\n', SOUND + ",\n" + SOUND, "가"])
def test_the_form_of_json_lines_is_said(content: str) -> None:
    """An object over several lines and lines that end in commas are JSON of some kind, too."""
    with pytest.raises(
        ValueError, match=naming("sft.jsonl", "line 1", "object on each line", "UTF-8")
    ):
        list(stream_rows(entry(content.encode("cp949")), None))
