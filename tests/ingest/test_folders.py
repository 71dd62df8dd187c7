"""Files as disks hold them: links, loops, what systems leave behind, files packed by gzip."""

import gzip
import os
from pathlib import Path

import pytest

from stages.rlhf.ingest.files.entries import ZIP_FREE, ZIP_RATIO
from stages.rlhf.ingest.sources import Reader
from tests.conftest import naming
from tests.source_fixtures import NAMES, SFT, aihub, document, jsonl, read, write, zipped


def rows(question: str) -> bytes:
    return document([SFT | {"question": question}])


def questions(path: Path) -> list[str]:
    return [row.question for row in read(path, "sft")]


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    disk = aihub(tmp_path / "disk", sft=rows("디스크?"))
    (disk / "more").mkdir()
    (disk / "more" / NAMES["sft"]).write_bytes(rows("더?"))
    source = tmp_path / "source"
    (source / "Validation").mkdir(parents=True)
    (source / "Training").symlink_to(disk)
    (tmp_path / "elsewhere.json").write_bytes(rows("시험?"))
    (source / "Validation" / NAMES["sft"]).symlink_to(tmp_path / "elsewhere.json")
    found = read(source, "sft")
    assert [row.question for row in found] == ["디스크?", "더?", "시험?"]
    assert [row.side for row in found] == ["train", "train", "test"]


def test_loops_end(tmp_path: Path) -> None:
    path = aihub(tmp_path / "a")
    (path / "self").symlink_to(path)
    (path / "b").mkdir()
    (path / "b" / "up").symlink_to(tmp_path)
    (path / "c").symlink_to(path / "b")
    assert questions(path) == ["수도는?"]


def test_the_same_file_by_links_is_read_once(tmp_path: Path) -> None:
    """The one that is no link; else the first by name."""
    path = aihub(tmp_path)
    for folder in ("A", "Validation"):
        (path / folder).mkdir()
    (path / "A" / NAMES["sft"]).symlink_to(path / NAMES["sft"])
    os.link(path / NAMES["sft"], path / "Validation" / NAMES["sft"])
    (path / "twice").symlink_to(path / "A")
    assert [row.side for row in read(path, "sft")] == [None]


def test_equal_files_that_are_no_links_are_all_read(tmp_path: Path) -> None:
    path = aihub(tmp_path)
    (path / "A").mkdir()
    (path / "A" / NAMES["sft"]).write_bytes((path / NAMES["sft"]).read_bytes())
    assert len(questions(path)) == 2


@pytest.mark.parametrize("hard", [False, True])
def test_a_part_may_be_a_link_to_another_part(tmp_path: Path, hard: bool) -> None:
    path = write(tmp_path, sft=jsonl({"question": "q", "answer": "a"}), rm=jsonl({}))
    if hard:
        os.link(path / "sft.jsonl", path / "ppo.jsonl")
    else:
        (path / "ppo.jsonl").symlink_to("sft.jsonl")
    assert [row.question for row in read(path, "ppo", "jsonl")] == ["q"]


@pytest.mark.parametrize("name", ["Training", "TL.zip", "notes.txt"])
def test_a_link_to_what_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    """A folder of a disk that is not mounted is no folder, and its rows were not missed."""
    path = aihub(tmp_path / "source")
    (path / name).symlink_to(tmp_path / "mnt" / name)
    facts = path / name, tmp_path / "mnt" / name, "does not exist"
    with pytest.raises(ValueError, match=naming(*facts)):
        read(path, "sft")
    (path / name).rename(path / f".#{name}")  # an editor's lock
    assert len(questions(path)) == 1


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = aihub(tmp_path)
    (path / "A").mkdir()
    whole = Path.iterdir

    def broken(folder: Path) -> object:
        if folder.name == "A":
            raise OSError(5, "Input/output error")
        return whole(folder)

    monkeypatch.setattr(Path, "iterdir", broken)
    with pytest.raises(ValueError, match=naming(path / "A", "Input/output error")):
        read(path, "sft")


def test_data_path_may_be_a_link(tmp_path: Path) -> None:
    folder = aihub(tmp_path / "folder")
    everything = {name: (folder / name).read_bytes() for name in NAMES.values()}
    (tmp_path / "all.zip").write_bytes(zipped(everything))
    cached = tmp_path / "cache" / "3f2a"  # as DVC keeps a file: linked under its own name
    cached.parent.mkdir()
    cached.write_bytes(zipped(everything))
    for name, target in {"a": folder, "b": tmp_path / "all.zip", "c.zip": cached}.items():
        (tmp_path / name).symlink_to(target)
        assert questions(tmp_path / name) == ["수도는?"]


LITTER = (
    "._SFTlabel.json",
    ".ipynb_checkpoints/SFTlabel.json",
    ".Trash-1000/files/SFTlabel.json",
    "$RECYCLE.BIN/SFTlabel.json",
    "System Volume Information/SFTlabel.json",
    "lost+found/SFTlabel.json",
    "@eaDir/SFTlabel.json",
    "__MACOSX/SFTlabel.json",
    "__MACOSX/._TL.zip",
    "~$TL.zip",
    ".~lock.TL.zip",
    "Thumbs.db",
)


def test_what_systems_leave_behind_is_no_data(tmp_path: Path) -> None:
    path = aihub(tmp_path / "source")
    bad = rows("버린 것?")
    for name in LITTER:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(bad)
    (path / "TL.zip").write_bytes(
        zipped(dict.fromkeys(LITTER, bad) | {"./SFTlabel.json": rows("산은?")})
    )
    assert questions(path) == ["수도는?", "산은?"]
    hidden = path.rename(tmp_path / ".hidden")  # the user's own choice
    assert questions(hidden) == ["수도는?", "산은?"]
    (hidden / "TL.zip").rename(tmp_path / ".TL.zip")
    with pytest.raises(ValueError, match=r"expects .* found SFTlabel\.json$"):
        Reader("aihub", tmp_path / ".TL.zip", None)


def test_gzipped_files(tmp_path: Path) -> None:
    path = aihub(tmp_path)
    content = (path / NAMES["sft"]).read_bytes()
    (path / NAMES["sft"]).unlink()
    (path / "SFTlabel.json.gz").write_bytes(gzip.compress(content))
    (path / "TL.zip").write_bytes(zipped({"SFT.json.GZ": gzip.compress(content)}))
    assert questions(path) == ["수도는?"] * 2
    (path / NAMES["sft"]).write_bytes(content)  # unpacked, and the original kept
    assert questions(path) == ["수도는?"] * 2


@pytest.mark.parametrize("end", [-20, None])
def test_a_gzipped_file_that_is_cut_off_or_a_bomb(tmp_path: Path, end: int | None) -> None:
    path = aihub(tmp_path)
    (path / NAMES["sft"]).unlink()
    count = 90 if end else ZIP_FREE // 500_000 + 1
    answer = {"contents": "a" if end else "a" * 500_000}
    content = document([SFT | {"answer": answer}] * count)
    (path / "SFTlabel.json.gz").write_bytes(gzip.compress(content)[:end])
    facts = "SFTlabel.json.gz", "end-of-stream" if end else ZIP_RATIO
    with pytest.raises(ValueError, match=naming(*facts)):
        read(path, "sft")
