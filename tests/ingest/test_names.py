"""What the names of files and folders mean: the part, and the split."""

import unicodedata
from pathlib import Path

import pytest

from stages.rlhf.ingest.sources import Reader
from stages.rlhf.ingest.sources.names import part_named, split_named
from tests.source_fixtures import aihub, jsonl, read

SFT = jsonl({"question": "수도는?", "answer": "서울."})
RM = jsonl({"question": "강은?", "answers": ["가", "나"], "ranks": [1, 2]})
PPO = jsonl({"question": "산은?"})


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train/sft.jsonl", "train"),
        ("Test/sft.jsonl", "test"),
        ("validation/sft.jsonl", "validation"),
        ("VAL/sft.jsonl", "validation"),
        ("valid/sft.jsonl", "validation"),
        ("dev/sft.jsonl", "validation"),
        ("Eval/sft.jsonl", "validation"),
        ("2.Validation/sft.jsonl", "validation"),
        ("1. Training/sft.jsonl", "train"),
        ("03_test/sft.jsonl", "test"),
        ("test_set/sft.jsonl", "test"),
        (unicodedata.normalize("NFD", "검증") + "/sft.jsonl", "validation"),
        ("학습데이터/sft.jsonl", "train"),
        ("data/dev/v1/sft.jsonl", "validation"),
        ("train/dev/sft.jsonl", "validation"),  # the innermost name
        ("train/sft_dev.jsonl", "validation"),
        ("sft-test.jsonl", "test"),
        ("train.sft.csv", "train"),
        ("test.zip/sft.jsonl", "test"),
        ("02.라벨링데이터/VL.zip/SFTlabel.json", "validation"),
        ("TS_02.RLHF데이터.zip/PPOdata.json", "train"),
        ("sft.jsonl", None),
        ("latest/sft.jsonl", None),
        ("contest/devices/sft.jsonl", None),
        ("VLSI.zip/sft.jsonl", None),
    ],
)
def test_split(path: str, split: str | None) -> None:
    *folders, name = path.split("/")
    assert split_named(tuple(folders), name) == split


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("sft.jsonl", "sft"),
        ("RM.JSONL", "rm"),
        ("ppo.json", "ppo"),
        ("sft.csv", "sft"),
        ("rm_train.parquet", "rm"),
        ("train-sft.tsv", "sft"),
        ("ppo.jsonl.gz", "ppo"),
        ("sft/train-00000-of-00002.parquet", "sft"),
        ("RM/validation.jsonl", "rm"),
        ("ppo/dev/test.csv", "ppo"),
        ("rm/data/train-00000-of-00001-8dbb0c5e7ac1e3f2.parquet", "rm"),
        ("sft/default/train/0000.parquet", "sft"),
        ("ppo/data.jsonl", "ppo"),
        ("sft/dataset_infos.json", None),
        ("train.jsonl", None),
        ("other/train.jsonl", None),
        ("sft/README.md", None),
        ("sft_backup.jsonl", None),
        ("sft.jsonl.bak", None),
        ("._sft.jsonl", None),
        ("~sft.csv", None),
        ("sft_rm.jsonl", None),
        ("sft.txt", None),
        ("corpus.jsonl", None),
    ],
)
def test_part(path: str, part: str | None) -> None:
    *folders, name = path.split("/")
    assert part_named(tuple(folders), name) == part


def write(root: Path, **files: bytes) -> Path:
    for name, content in files.items():
        file = root / name.replace("__", "/").replace("_jsonl", ".jsonl")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root


def test_each_row_is_in_the_split_that_its_folder_names(tmp_path: Path) -> None:
    for folder in ("train", "2.Validation", "test"):
        write(tmp_path / folder, sft_jsonl=SFT, rm_jsonl=RM, ppo_jsonl=PPO)
    for part in ("sft", "rm", "ppo"):
        sides = [row.side for row in read(tmp_path, part, "jsonl")]  # type: ignore[arg-type]
        assert sides == ["train", "validation", "test"]


def test_files_of_a_hub_download(tmp_path: Path) -> None:
    for part, content in {"sft": SFT, "rm": RM, "ppo": PPO}.items():
        write(tmp_path / part, train_jsonl=content, test_jsonl=content)
    assert [row.side for row in read(tmp_path, "rm", "jsonl")] == ["train", "test"]


def test_only_within_the_path(tmp_path: Path) -> None:
    """A data set that is kept below a folder named test is not a test set."""
    path = write(tmp_path / "test" / "mine", sft_jsonl=SFT, rm_jsonl=RM, ppo_jsonl=PPO)
    assert [row.side for row in read(path, "sft", "jsonl")] == [None]


def test_aihub_publishes_its_test_split_as_validation(tmp_path: Path) -> None:
    aihub(tmp_path / "1.Training")
    aihub(tmp_path / "2.Validation")
    assert [row.side for row in read(tmp_path, "sft")] == ["train", "test"]
    aihub(tmp_path / "3.Test")
    assert [row.side for row in read(tmp_path, "sft")] == ["train", "validation", "test"]


def test_held_out_corpus_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, sft_jsonl=SFT, rm_jsonl=RM, ppo_jsonl=PPO)
    for folder in ("train", "test", "dev"):
        write(tmp_path / folder, corpus_jsonl=jsonl({"text": folder}))
    assert list(Reader("jsonl", tmp_path, None).corpus()) == [{"text": "train"}]
