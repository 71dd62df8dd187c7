"""Readers: three formats, in folders, zips and pieces of zips, and all that can be wrong there."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.rlhf.ingest.sources import Reader
from stages.rlhf.ingest.sources.items import MISSING
from tests.conftest import naming
from tests.source_fixtures import (
    NAMES,
    PPO,
    RM,
    SFT,
    Rows,
    aihub,
    document,
    jsonl,
    read,
    write,
    zipped,
)


def tree(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*")}


def test_aihub_rows(tmp_path: Path) -> None:
    path = aihub(tmp_path)
    (sft,) = read(path, "sft")
    assert (sft.id, sft.question, sft.answers) == ("s1", "수도는?", ("서울.",))
    (rm,) = read(path, "rm")
    assert rm.answers == ("금강.", "한강.", "낙동강.")
    assert rm.ranks == (1, 2, 3)
    (ppo,) = read(path, "ppo")
    assert (ppo.question, ppo.category, ppo.answers) == ("산은?", "인문", ())
    assert ppo.side is None


def test_aihub_optional_keys(tmp_path: Path) -> None:
    extra = {"split": "test", "kind": "never_asked", "must_contain": "서울", "defects": ["a"]}
    path = aihub(tmp_path, sft=document([SFT | extra]), rm=document([RM | extra]))
    for part in ("sft", "rm"):
        (row,) = read(path, part)  # type: ignore[arg-type]
        assert (row.split, row.kind, row.must_contain) == ("test", "never_asked", "서울")
        assert row.defects == ["a"]


def test_short_names_and_byte_order_mark(tmp_path: Path) -> None:
    for name, row in (("SFT", SFT), ("RM", RM), ("PPO", PPO)):
        (tmp_path / f"{name}.json").write_bytes(b"\xef\xbb\xbf" + document([row]))
    assert [row.id for part in ("sft", "rm", "ppo") for row in read(tmp_path, part)] == [  # type: ignore[arg-type]
        "s1",
        "r1",
        "p1",
    ]


def test_rows_without_id_are_numbered_over_files(tmp_path: Path) -> None:
    bare = {"question": "무엇?", "answer": {"contents": "것."}}
    aihub(tmp_path / "Training", sft=document([bare, SFT]))
    (tmp_path / "Validation").mkdir()
    (tmp_path / "Validation" / "SFTlabel.json").write_bytes(document([bare]))
    rows = read(tmp_path, "sft")
    assert [row.id for row in rows] == ["sft-00000001", "s1", "sft-00000003"]
    assert [row.side for row in rows] == ["train", "train", "test"]


def download(root: Path) -> Path:
    """The folder as AI-Hub gives it: entry names begin with a slash."""
    for place, entries in {
        "Training/01.원천데이터/TS_02.RLHF데이터.zip": {"/PPOdata.json": document([PPO])},
        "Training/02.라벨링데이터/TL_02.RLHF데이터.zip": {
            "/SFTlabel.json": document([SFT]),
            "/RMlabel.json": document([RM]),
            "__MACOSX/._SFTlabel.json": b"\x00\x05",
        },
        "Validation/01.원천데이터/VS_02.RLHF데이터.zip": {
            "/PPOdata.json": document([PPO | {"data_id": "p2"}])
        },
        "Validation/02.라벨링데이터/VL.zip": {
            "/SFTlabel.json": document([SFT | {"data_id": "s2"}]),
            "/RMlabel.json": document([RM | {"data_id": "r2"}]),
        },
    }.items():
        file = root / "3.개방데이터" / "1.데이터" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(zipped(entries))
    return root


def test_download_folder_as_it_is(tmp_path: Path) -> None:
    path = download(tmp_path / "download")
    before = tree(tmp_path)
    for part, ids in {"sft": ["s1", "s2"], "rm": ["r1", "r2"], "ppo": ["p1", "p2"]}.items():
        rows = read(path, part)  # type: ignore[arg-type]
        assert [row.id for row in rows] == ids
        assert [row.side for row in rows] == ["train", "test"]
    assert tree(tmp_path) == before
    assert not Path("/SFTlabel.json").exists()


def test_nan_in_an_array_is_a_row_for_cleaning_to_judge(tmp_path: Path) -> None:
    bad = SFT | {"answer": {"contents": float("nan")}}
    rows = read(aihub(tmp_path, sft=document([SFT, bad, SFT])), "sft")
    assert [row.question for row in rows] == ["수도는?"] * 3
    assert [isinstance(row.answers[0], str) for row in rows] == [True, False, True]


@pytest.mark.parametrize("name", ["VL.zip", "VS_02.RLHF데이터.zip", "VL_1.zip"])
def test_zip_names_of_the_validation_part(tmp_path: Path, name: str) -> None:
    aihub(tmp_path)
    (tmp_path / name).write_bytes(zipped({"/SFTlabel.json": document([SFT])}))
    assert [row.side for row in read(tmp_path, "sft")] == [None, "test"]


def test_other_zip_names_are_training(tmp_path: Path) -> None:
    aihub(tmp_path)
    (tmp_path / "VLSI.zip").write_bytes(zipped({"/SFTlabel.json": document([SFT])}))
    assert [row.side for row in read(tmp_path, "sft")] == [None, None]


def test_entries_that_climb_are_read_where_they_are(tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    names = {"sft": "../../SFTlabel.json", "rm": "../x/RMlabel.json", "ppo": "..\\PPOdata.json"}
    rows = {"sft": SFT, "rm": RM, "ppo": PPO}
    archive = inside / "all.zip"
    archive.write_bytes(zipped({names[part]: document([rows[part]]) for part in rows}))
    before = tree(tmp_path)
    for part in rows:
        assert len(read(archive, part)) == 1  # type: ignore[arg-type]
    assert tree(tmp_path) == before


def test_zip_within_a_zip(tmp_path: Path) -> None:
    everything = {f"/{NAMES[p]}": document([r]) for p, r in (("sft", SFT), ("rm", RM))}
    outer = {"Training/TL.zip": zipped(everything), "Training/PPOdata.json": document([PPO])}
    (tmp_path / "download.zip").write_bytes(zipped(outer))
    assert [row.id for row in read(tmp_path / "download.zip", "rm")] == ["r1"]


def pieces(folder: Path, numbers: list[int], size: int = 100) -> Path:
    content = zipped({f"/{NAMES[p]}": document([r] * 3) for p, r in (("sft", SFT), ("rm", RM))})
    (folder / "PPOdata.json").write_bytes(document([PPO]))
    for number in numbers:
        begin = numbers.index(number) * size
        end = None if number == numbers[-1] else begin + size
        (folder / f"TL.zip.part{number}").write_bytes(content[begin:end])
    return folder


@pytest.mark.parametrize("numbers", [[0, 1, 2, 3, 4], [0, 100, 200], [0]])
def test_zip_in_pieces(tmp_path: Path, numbers: list[int]) -> None:
    path = pieces(tmp_path, numbers)
    assert len(read(path, "sft")) == 3
    assert len(read(path, "rm")) == 3
    assert {p.name for p in path.iterdir()} == {"PPOdata.json"} | {
        f"TL.zip.part{n}" for n in numbers
    }


def test_many_pieces_are_joined_by_number(tmp_path: Path) -> None:
    path = pieces(tmp_path, list(range(12)), size=40)  # part10 sorts before part2 by name
    assert len(read(path, "rm")) == 3


def test_missing_piece(tmp_path: Path) -> None:
    path = pieces(tmp_path, [0, 1, 2, 3])
    (path / "TL.zip.part2").unlink()
    with pytest.raises(ValueError, match=naming(path / "TL.zip.part0", ".part3")):
        read(path, "sft")


def test_pieces_beside_the_joined_zip_are_not_read_again(tmp_path: Path) -> None:
    path = pieces(tmp_path, [0, 1])
    whole = b"".join((path / f"TL.zip.part{n}").read_bytes() for n in (0, 1))
    (path / "TL.zip").write_bytes(whole)
    assert len(read(path, "sft")) == 3


def test_most_items_of_each_side(tmp_path: Path) -> None:
    aihub(tmp_path / "Training", sft=document([SFT] * 5))
    aihub(tmp_path / "Validation", sft=document([SFT] * 5))
    rows = read(tmp_path, "sft", most=2)
    assert [row.side for row in rows] == ["train", "train", "test", "test"]


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=naming(tmp_path / "nowhere", "data.path", "aihub")):
        Reader("aihub", tmp_path / "nowhere", None)


def test_missing_part(tmp_path: Path) -> None:
    (aihub(tmp_path) / "RMlabel.json").unlink()
    facts = "aihub", "RMlabel.json", "RM.json", "(rm)", "PPOdata.json"
    with pytest.raises(ValueError, match=naming(*facts)):
        Reader("aihub", tmp_path, None)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"", ["JSON", "row 0"]),
        (b"<html>nothing here</html>", ["JSON", "row 0"]),
        ("수도는?".encode("cp949"), ["JSON", "row 0"]),
        (document([SFT, SFT])[:-30], ["JSON", "row 1"]),
        (document([SFT, SFT])[:-1], ["JSON", "row 2"]),
        (document([SFT]) + b"{", ["JSON", "row 1"]),
        (b'{"dataset_info": {}, "rows": []}', ["data_info"]),
        (b"[1, 2]", ["data_info"]),
        (b'{"data_info": {"a": 1}}', ["data_info", "array"]),
        (document([]), ["data_info", "empty"]),
    ],
)
def test_files_that_are_no_data(tmp_path: Path, content: bytes, facts: list[str]) -> None:
    path = aihub(tmp_path, sft=content)
    with pytest.raises(ValueError, match=naming(path / "SFTlabel.json", *facts)):
        read(path, "sft")


def test_error_names_a_byte_near_the_damage(tmp_path: Path) -> None:
    rows = document([SFT] * 5000)
    place = rows.index(b"}", 200_000)
    broken = rows[:place] + b"}}" + rows[place:]
    with pytest.raises(ValueError, match=naming("SFTlabel.json", "row")) as caught:
        read(aihub(tmp_path, sft=broken), "sft")
    (byte,) = re.findall(r"byte (\d+)", str(caught.value))
    assert 200_000 <= int(byte) <= 220_000


def test_rows_that_are_no_objects_are_items_all_the_same(tmp_path: Path) -> None:
    rows = read(aihub(tmp_path, sft=document([7, "x", None, [], SFT])), "sft")
    assert [row.raw for row in rows[:4]] == [7, "x", None, []]
    assert all(row.question is MISSING for row in rows[:4])


def test_missing_keys_are_marked(tmp_path: Path) -> None:
    path = aihub(
        tmp_path,
        sft=document([{}, {"question": "q", "answer": "a"}, {"question": "q", "answer": {}}]),
        rm=document([{"question": "q"}, {"question": "q", "answer01": {"contents": "a"}}]),
    )
    assert read(path, "sft")[0].question is MISSING
    assert [row.answers for row in read(path, "sft")] == [(MISSING,)] * 3
    assert [row.answers for row in read(path, "rm")] == [(), ("a",)]
    assert read(path, "rm")[1].ranks == (MISSING,)


def test_damaged_zip(tmp_path: Path) -> None:
    aihub(tmp_path)
    (tmp_path / "TL.zip").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ValueError, match=naming(tmp_path / "TL.zip")):
        read(tmp_path, "sft")


def test_zip_with_a_damaged_entry(tmp_path: Path) -> None:
    content = bytearray(zipped({NAMES["sft"]: document([SFT] * 50)}))
    content[60:70] = b"\xff" * 10
    aihub(tmp_path)
    (tmp_path / "TL.zip").write_bytes(bytes(content))
    with pytest.raises(ValueError, match=naming("TL.zip!SFTlabel.json")):
        read(tmp_path, "sft")


def test_link_to_a_file_that_is_gone(tmp_path: Path) -> None:
    path = aihub(tmp_path)
    (path / "SFTlabel.json").unlink()
    (path / "SFTlabel.json").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=naming(path / "SFTlabel.json")):
        read(path, "sft")


@pytest.mark.parametrize(
    ("source", "expected"), [("kochatgpt", "kochatgpt_1_SFT.jsonl"), ("jsonl", "sft.jsonl")]
)
def test_source_that_does_not_fit_the_path(tmp_path: Path, source: Any, expected: str) -> None:
    facts = source, expected, "(sft)", "PPOdata.json", "data.source: aihub"
    with pytest.raises(ValueError, match=naming(*facts)):
        Reader(source, aihub(tmp_path), None)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=naming(tmp_path, "jsonl", "sft.jsonl", "rm.jsonl")):
        Reader("jsonl", tmp_path, None)


def kochatgpt(folder: Path, lines: bool = False) -> Path:
    rows: Rows = {
        "kochatgpt_1_SFT": [{"prompt": "수도는?", "completion": "서울."}],
        "kochatgpt_2_RM": [
            {"prompt": f"강은 {n}?", "ranking": ranking}
            | {f"completion_{i}": text for i, text in enumerate("가나다")}
            for n, ranking in enumerate([[1, 2, 0], [2, 0, 1]])
        ],
        "kochatgpt_3_PPO": [{"prompt": "산은?"}, {"prompt": "섬은?"}],
    }
    for name, content in rows.items():
        data = jsonl(*content) if lines else json.dumps(content, indent=1).encode()
        (folder / f"{name}.jsonl").write_bytes(b"\xef\xbb\xbf" + data)
    return folder


@pytest.mark.parametrize("lines", [False, True])
def test_kochatgpt(tmp_path: Path, lines: bool) -> None:
    path = kochatgpt(tmp_path, lines)
    (sft,) = read(path, "sft", "kochatgpt")
    assert (sft.id, sft.question, sft.answers) == ("sft-00000001", "수도는?", ("서울.",))
    assert [row.question for row in read(path, "ppo", "kochatgpt")] == ["산은?", "섬은?"]
    for row, ranks in zip(read(path, "rm", "kochatgpt"), [(1, 2, 0), (2, 0, 1)], strict=True):
        assert (row.answers, row.ranks, row.first_rank) == (("가", "나", "다"), ranks, 0)


def test_jsonl(tmp_path: Path) -> None:
    write(
        tmp_path,
        sft=jsonl({"id": "x", "question": "q", "answer": "a", "kind": "k", "category": "c"}),
        rm=jsonl(
            {"question": "q", "answers": ["a", "b"], "ranks": [2, 1]},
            {"prompt": "q", "chosen": "good", "rejected": "bad", "split": "test"},
        ),
        ppo=b"\xef\xbb\xbf" + jsonl({"question": "q"}) + b"\n\n",
        corpus=jsonl({"text": "하나"}, {"text": "둘"}),
    )
    (sft,) = read(tmp_path, "sft", "jsonl")
    assert (sft.id, sft.answers, sft.kind, sft.category) == ("x", ("a",), "k", "c")
    first, second = read(tmp_path, "rm", "jsonl")
    assert (first.answers, first.ranks) == (("a", "b"), (2, 1))
    assert (second.question, second.answers, second.ranks) == ("q", ("good", "bad"), (1, 2))
    assert second.split == "test"
    assert len(read(tmp_path, "ppo", "jsonl")) == 1
    assert list(Reader("jsonl", tmp_path, 1).corpus()) == [{"text": "하나"}]


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"", ["no rows"]),
        (b"\n \n", ["no rows"]),
        (b"question,answer\nq,a\n", ["line 1", "JSON"]),
        (b"[]", ["no rows"]),
        (b'{"question": "q"}\n{"question": "q', ["line 2", "JSON"]),
        (b'[{"question": "q"}, {"que', ["row 1", "JSON"]),
    ],
)
def test_jsonl_that_is_none(tmp_path: Path, content: bytes, facts: list[str]) -> None:
    path = write(tmp_path, sft=content, rm=jsonl({}), ppo=jsonl({}))
    with pytest.raises(ValueError, match=naming(path / "sft.jsonl", *facts)):
        read(path, "sft", "jsonl")


def test_a_bad_line_among_good_ones_is_a_row(tmp_path: Path) -> None:
    good = jsonl({"question": "q", "answer": "a"})
    path = write(tmp_path, sft=good + b"{broken\n" + good, rm=jsonl({}), ppo=jsonl({}))
    assert [row.raw for row in read(path, "sft", "jsonl")][1] == "{broken"


def test_importing_the_stage_imports_no_torch() -> None:
    code = (
        "import sys, stages.preprocess;"
        "print([m for m in ('torch', 'transformers', 'trl') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file forty times as large is read in the same memory."""
    code = (
        "import sys, tracemalloc; from pathlib import Path;"
        "from stages.rlhf.ingest.sources import Reader;"
        "reader = Reader('aihub', Path(sys.argv[1]), None); tracemalloc.start();"
        "print(sum(1 for _ in reader.items('sft')), tracemalloc.get_traced_memory()[1])"
    )
    peaks = []
    for count in (500, 20_000):
        row = SFT | {"answer": {"contents": "서울입니다. " * 20}}
        path = aihub(tmp_path / str(count), sft=document([row] * count))
        shown = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
        )
        rows, peak = map(int, shown.stdout.split())
        assert rows == count
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 500_000
