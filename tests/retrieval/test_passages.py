"""Texts of every source as passages: whole sentences that fit; what cannot be read is counted."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from pypdf import PdfWriter

from stages.rlhf.records import write_jsonl
from stages.rlhf.retrieval.passages import LONGEST_SENTENCE, Corpus, Passage, sentences_of, split


def pdf(file: Path, text: str) -> None:
    """A page with a text that can be selected, in a font that has Korean."""
    with plt.rc_context({"pdf.fonttype": 42, "font.family": "NanumGothic"}):
        figure = plt.figure()
        figure.text(0.1, 0.5, text)
        figure.savefig(file)
        plt.close(figure)


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    import koreanize_matplotlib  # noqa: F401  # the font

    (tmp_path / "나").mkdir()
    (tmp_path / "나" / "글.md").write_text("\ufeff둘째 글이다.\r\n", encoding="utf-8")
    (tmp_path / "가.txt").write_text("첫 글이다.", encoding="utf-8")
    write_jsonl(tmp_path / "다.jsonl", [{"text": "셋째다."}, {"text": "  "}, {"text": "넷째다."}])
    pdf(tmp_path / "라.pdf", "한라산은 제주도에 있다.")
    scanned = PdfWriter()
    scanned.add_blank_page(100, 100)
    scanned.write(tmp_path / "마.pdf")
    (tmp_path / "바.pdf").write_bytes(b"no PDF at all")
    (tmp_path / "사.txt").write_bytes("수원".encode("cp949"))
    (tmp_path / "아.hwp").write_bytes(b"")
    corpus = Corpus(tmp_path)
    assert list(corpus.texts()) == [
        ("가.txt", "첫 글이다."),
        ("나/글.md", "둘째 글이다."),
        ("다.jsonl:1", "셋째다."),
        ("다.jsonl:3", "넷째다."),
        ("라.pdf:1", "한라산은 제주도에 있다."),
    ]
    assert corpus.set_aside == {
        "no text": 2,
        "not a readable PDF": 1,
        "not UTF-8": 1,
        "not one of .txt, .md, .pdf, .jsonl": 1,
    }
    assert corpus.examples["no text"] == "다.jsonl:2"
    assert corpus.examples["not a readable PDF"] == "바.pdf"


def test_a_source_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none: no such file or folder; expected a corpus"):
        list(Corpus(tmp_path / "none").texts())
    write_jsonl(tmp_path / "c.jsonl", [{"text": "글."}, {"Text": "글."}])
    with pytest.raises(ValueError, match=r"c\.jsonl, line 2: expected a text under the key 'text'"):
        list(Corpus(tmp_path / "c.jsonl").texts())


def test_passages_are_whole_sentences_of_one_text() -> None:
    texts = [("a", "가나다라. 마바사. 아자차카타. 파."), ("b", "하.")]
    assert list(split(texts, 10)) == [
        Passage("a", ("가나다라.", "마바사.")),  # 10 characters with the space
        Passage("a", ("아자차카타.", "파.")),
        Passage("b", ("하.",)),
    ]
    assert next(split(texts, 9)).text == "가나다라."  # 10 do not fit
    assert [p.text for p in split(texts, 1)] == [
        "가나다라.",
        "마바사.",
        "아자차카타.",
        "파.",
        "하.",
    ]
    assert next(split(texts, 1000)).text == "가나다라. 마바사. 아자차카타. 파."


def test_a_sentence_without_an_end_is_cut_at_blanks() -> None:
    megabyte = "글자 " * 350_000
    found = sentences_of(megabyte)
    assert max(map(len, found)) <= LONGEST_SENTENCE
    assert " ".join(found) == megabyte.strip()
    assert [len(piece) for piece in sentences_of("가" * 2500)] == [1000, 1000, 500]
    assert all(len(p.text) <= LONGEST_SENTENCE for p in split([("a", megabyte)], 200))
