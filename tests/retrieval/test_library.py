"""A library that is built, saved and loaded; what is missing or made by another is refused."""

import shutil
from pathlib import Path

import pytest

from stages.rlhf.model import embedder
from stages.rlhf.model.embedder import Embedder
from stages.rlhf.records import read_jsonl
from stages.rlhf.retrieval.library import Library
from stages.rlhf.retrieval.passages import LONGEST_SENTENCE, Passage, has_library, split
from stages.rlhf.retrieval.support import Support
from stages.rlhf.retrieval.tokens import Name
from tests.conftest import naming
from tests.embedder_fixtures import static_embedder
from tests.retrieval_fixtures import PASSAGES, TEXTS, demonstrations

BOTH: tuple[Name, Name] = ("pieces", "morphemes")


@pytest.fixture
def embedders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders of two that embed alike and differ in their hash."""
    monkeypatch.setattr(embedder, "load", lambda folder: Embedder(static_embedder(16)))
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
        (folder / "weights").write_text(folder.name)
    return folders


def test_what_is_loaded_finds_what_was_built(tmp_path: Path) -> None:
    built = Library.build(PASSAGES, BOTH, tmp_path)
    loaded = Library.load(tmp_path)
    assert loaded.texts == built.texts == TEXTS
    for row in demonstrations():
        found = built.find(row.question, 5)
        assert loaded.find(row.question, 5) == found
        assert row.answer.removesuffix("입니다.").split()[-1] in TEXTS[found[0]]
    for support in (loaded.support, Support.load(tmp_path)):
        assert support.count == built.support.count == len(TEXTS)
        assert support.frequencies == built.support.frequencies


def test_two_builds_are_equal(tmp_path: Path) -> None:
    for name in "ab":
        Library.build(PASSAGES, BOTH, tmp_path / name)
    files = [file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*.*")]
    assert len(files) > 5
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_equal_passages_are_indexed_once(tmp_path: Path) -> None:
    copies = [Passage(f"copy:{i}", passage.sentences) for i, passage in enumerate(PASSAGES)]
    built = Library.build([*PASSAGES, *copies], BOTH, tmp_path)
    assert built.texts == TEXTS
    assert built.support.count == len(TEXTS)
    found = built.find("프랑스의 수도는?", 40)
    assert len(set(found)) == len(found) <= len(TEXTS)


def test_of_equal_passages_the_first_source_is_kept(tmp_path: Path) -> None:
    Library.build([Passage("a", ("글이다.",)), Passage("b", ("글이다.",))], BOTH, tmp_path)
    (row,) = read_jsonl(tmp_path / "passages.jsonl")
    assert row["source"] == "a"


def test_no_index_is_an_error(tmp_path: Path) -> None:
    assert not has_library(tmp_path)
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=naming(folder, "passages.jsonl", "rag.enabled")):
            Library.load(folder)
    Library.build(PASSAGES, ["pieces"], tmp_path)
    assert has_library(tmp_path)
    shutil.rmtree(tmp_path / "lexical")
    with pytest.raises(ValueError, match=naming(tmp_path / "lexical", "no index")):
        Library.load(tmp_path)


@pytest.mark.parametrize("passages", [[], [Passage("a", ("?!",))]])
def test_an_empty_corpus_is_refused(tmp_path: Path, passages: list[Passage]) -> None:
    with pytest.raises(ValueError, match=naming("the corpus has no")):
        Library.build(passages, BOTH, tmp_path)
    assert not has_library(tmp_path)


def test_embeddings_are_of_one_embedder(tmp_path: Path, embedders: list[Path]) -> None:
    one, other = embedders
    folder = tmp_path / "index"
    built = Library.build(PASSAGES, BOTH, folder, one)
    assert len(built.indexes) == 2
    loaded = Library.load(folder, one)
    assert loaded.find("프랑스의 수도는?", 20) == built.find("프랑스의 수도는?", 20)
    hashes = [embedder.embedder_hash(folder)[:12] for folder in embedders]
    assert hashes[0] != hashes[1]
    with pytest.raises(ValueError, match=naming(folder / "dense", *hashes)):
        Library.load(folder, other)
    with pytest.raises(ValueError, match=naming(folder / "dense", "embedder is needed")):
        Library.load(folder)


def test_a_megabyte_is_split_and_found(tmp_path: Path) -> None:
    filler = "아무 말이나 길게 적는다. " * 35_000
    text = f"{filler}한라산의 높이는 1947미터이다. {filler}"
    assert len(text.encode()) > 1_000_000
    unmarked = "가" * 400_000
    passages = list(split([("a", text), ("b", unmarked)], 200))
    built = Library.build(passages, ["pieces"], tmp_path)
    assert len(built.texts) < len(passages)
    assert max(map(len, built.texts)) <= LONGEST_SENTENCE
    for made in (built, Library.load(tmp_path)):
        assert "1947미터" in made.texts[made.find("한라산의 높이는?", 1)[0]]
