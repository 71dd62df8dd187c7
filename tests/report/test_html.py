"""The report: its verdict, what it shows, and that nothing from data is anything but text."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image

from stages.rlhf.config.limits import Limits
from stages.rlhf.ingest.cleaning import Reason
from stages.rlhf.report import html
from stages.rlhf.report.html import FIGURES, MODELS, ReportInputs, page, verdict
from stages.rlhf.report.structure import Part
from tests.conftest import naming

HOSTILE = "<script>alert(1)</script> {{ 1234567 * 7654321 }} \" onload='x' <img src=http://evil.example/a.png>"
GATES = dict.fromkeys(html.GATES, True)


def block(**more: Any) -> dict[str, Any]:
    keys = {*html.METRICS, *html.PAIRED, *html.RANKING}
    low = {f"{key}_ci_low": 0.25 for key in keys}
    high = {f"{key}_ci_high": 0.75 for key in keys}
    return {**dict.fromkeys(keys, 0.5), **low, **high, **more}


@pytest.fixture
def inputs() -> ReportInputs:
    kinds = {"never_asked": block(), "mine <b>": block(exact=None)}
    said = {"answer": HOSTILE, "score": 1.0, "judged": 0.5, "cosine": 0.25}
    evaluate = {
        **{name: block(by_kind=kinds) for name in MODELS},
        "questions": 1234,
        "embedder_sha256": "fedc",
        "embedder": {"klue_sts_spearman": 0.75, "truncated_share": 0.125},
        "sft_gain": {"cosine": 0.1, "percent": None, "percent_reason": "no answers"},
        "ppo_vs_sft": block(by_kind=kinds),
        "gates": GATES,
    }
    part = {"read": 12, "kept": 10, "rejected": {"leak": 2}, "rows": {"train": 10}}
    return ReportInputs(
        {
            "preprocess": {
                "sft": part,
                "ppo": {**part, "rejected": {}},
                "corpus": {"read": 5, "kept": 2, "rejected": {"leak": 1, "of its own": 2}},
                "dropped_answers": {"duplicate_answer": 7},
                "tokens": {},
            },
            "rm": block(by_kind=kinds),
            "judge": block(),
            "ppo": {"skipped": False},
            "evaluate": evaluate,
        },
        [{"question": HOSTILE, "reference": "참조 & 답", **dict.fromkeys(MODELS, said)}],
        [Part("model.norm", "192", 1, 192)],
        {"architecture": "llama", "parameters": 2_164_416, "trained_share": 0.0974},
        {"sft": {"kind": "sft", "base_sha256": "abc"}},
        Limits(eos_slack=0.005, repetition_slack=0.0071, length_band=0.23),
        {"ppo.kl_coef": 0.02, "data.source": HOSTILE, "base.hub": None},
    )


@pytest.fixture
def plots(tmp_path: Path) -> Path:
    for name in FIGURES:
        file = tmp_path / f"{name}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(file)
    return tmp_path


class Reader(HTMLParser):
    """Tags, their addresses, and all text outside the style."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.cells: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for key, value in attrs if key in {"src", "href"}]
        self.handlers += [key for key, _ in attrs if key.startswith("on")]
        if tag in {"th", "td"}:
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cells:
            self.cells[-1] += data.rstrip("\n")


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


def test_nothing_from_data_is_markup_and_nothing_is_asked_for(
    inputs: ReportInputs, plots: Path
) -> None:
    made = page(inputs, plots)
    reader = read(made)
    assert reader.text.count(HOSTILE) == 1 + len(html.SHOWN) + 1
    assert not {"script", "link", "iframe", "object", "form"} & set(reader.tags)
    assert reader.tags.count("img") == len(FIGURES)
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in reader.sources)
    assert reader.handlers == []
    assert "default-src 'none'" in made
    assert str(1234567 * 7654321) not in reader.text, "data are rendered as a template"
    assert "mine <b>" in reader.text


def test_what_it_shows(inputs: ReportInputs, plots: Path) -> None:
    found = read(page(inputs, plots))
    text = " ".join(found.text.split())
    assert "시험 질문 1,234개" in text
    assert "0.500 [0.250, 0.750]" in text
    assert "2,164,416" in text
    assert "9.74%" in text
    shown = {"base_sha256": "abc", "embedder_sha256": "fedc", "truncated_share": 0.125}
    for name, value in {**shown, "klue_sts_spearman": 0.75}.items():
        assert f"{name} {value}" in " ".join(found.cells)
    assert "ppo.kl_coef 0.02" in " ".join(found.cells)
    assert "base.hub null" in " ".join(found.cells)
    assert f"뽑은 {len(inputs.samples)}개" in text
    assert "참조 & 답" in text
    assert f"{len(HOSTILE)}자" in text
    assert text.index("물은 적 없는 사실") < text.index("mine <b>")
    assert "–" in text  # a metric that says nothing


def test_gates_are_told_with_the_limits_of_the_run(inputs: ReportInputs, plots: Path) -> None:
    text = read(page(inputs, plots)).text
    assert "0.0071 넘게" in text
    assert "±23% 안" in text
    assert "0.99 이상" in text


def test_an_unknown_gate_is_shown_with_its_reason(inputs: ReportInputs, plots: Path) -> None:
    gates = {**GATES, "rm_ok": None, "rm_ok_reason": "at <chance>"}
    inputs.metrics["evaluate"]["gates"] = gates  # type: ignore[index]
    found = read(page(inputs, plots))
    at = found.cells.index("rm_ok")
    assert found.cells[at : at + 2] == ["rm_ok", "알 수 없음"]
    assert "rm_ok_reason" not in found.cells
    assert "at <chance>" in found.text


def test_no_reject_is_lost(inputs: ReportInputs, plots: Path) -> None:
    assert set(html.REASONS) == set(get_args(Reason))
    found = html.rejects(inputs.metrics["preprocess"])
    assert found == {  # sft, ppo, corpus, single answers
        "leak": [2, 0, 1, 0],
        "duplicate_answer": [0, 0, 0, 7],
        "of its own": [0, 0, 2, 0],
    }
    cells = read(page(inputs, plots)).cells
    at = cells.index("질문이 다른 분할에 속함 leak")
    assert cells[at : at + 5][1:] == ["2", "–", "1", "–"]
    at = cells.index("SFT", cells.index("쓰지 않음"))
    assert cells[at : at + 6] == ["SFT", "12", "10", "2", "10", "–"]


def test_hold_outs_stand_in_one_order(inputs: ReportInputs, plots: Path) -> None:
    mixed = dict.fromkeys(("mine <b>", "never_asked", "unseen_wording"), block())
    blocks = [inputs.metrics["evaluate"][name] for name in (*MODELS, "ppo_vs_sft")]
    for holder in (*blocks, inputs.metrics["rm"]):
        holder["by_kind"] = mixed
    text = read(page(inputs, plots)).text
    order = re.findall("처음 보는 표현|물은 적 없는 사실|mine <b>", text)
    assert order == ["처음 보는 표현", "물은 적 없는 사실", "mine <b>"] * 3


def test_settings_are_those_of_every_stage() -> None:
    sft = {"seed": 0, "sft": {"data": "rank1"}, "models.${model}.lora": {"r": 8}}
    ppo = {"seed": 0, "ppo": {"kl_coef": 0.1, "kl_target": None}}
    assert list(html.settings([sft, ppo]).items()) == [
        ("models.${model}.lora.r", 8),
        ("ppo.kl_coef", 0.1),
        ("ppo.kl_target", None),
        ("seed", 0),
        ("sft.data", "rank1"),
    ]


def test_every_figure_is_there_at_its_size(inputs: ReportInputs, plots: Path) -> None:
    Image.new("RGB", (1001, 400)).save(plots / "rm" / "11_margins.png")
    made = page(inputs, plots)
    assert made.count('width="2" height="2"') == len(FIGURES) - 1
    assert made.count('width="1001" height="400"') == made.count('class="long"') == 1


def test_the_page_fits_a_phone(inputs: ReportInputs, plots: Path) -> None:
    """What cannot shrink scrolls in a box of its own."""
    made = page(inputs, plots)
    assert made.count("<table>") == made.count('<div class="wide" tabindex="0"><table>')
    assert made.count("<img ") == made.count('<div class="wide" tabindex="0"><img ')
    assert made.count("<tbody>") == made.count("</tbody>") >= made.count("</table>")


def test_rows_without_kinds(inputs: ReportInputs, plots: Path) -> None:
    for name in (*MODELS, "ppo_vs_sft"):
        del inputs.metrics["evaluate"][name]["by_kind"]
    del inputs.metrics["rm"]["by_kind"]
    assert page(inputs, plots).count("<details>") == 1  # the settings


def test_a_missing_figure_is_named(inputs: ReportInputs, plots: Path) -> None:
    (plots / "rm" / "11_margins.png").unlink()
    with pytest.raises(ValueError, match=naming(plots / "rm" / "11_margins.png")):
        page(inputs, plots)


def test_the_verdict(inputs: ReportInputs) -> None:
    evaluate = dict(inputs.metrics["evaluate"])
    evaluate["ppo_vs_sft"] = block(chrf_gain=4.25, chrf_gain_ci_low=3.0, chrf_gain_ci_high=5.5)
    evaluate["ppo"] = block(exact=0.75)
    good = verdict(evaluate, {"skipped": False})
    assert good.startswith("RLHF가 도움이 되었습니다:")
    assert re.search(r"4\.2점 \[3\.0, 5\.5\].*50\.0 %에서 75\.0 %", good)
    failed = {**evaluate, "gates": {**GATES, "ends": False}}
    not_all = verdict(failed, {"skipped": False})
    assert not_all.endswith("통과하지 못한 게이트가 있습니다 (ends).")
    unknown = {**evaluate, "gates": {**GATES, "rm_ok": None, "rm_ok_reason": "at chance"}}
    unsure = verdict(unknown, {"skipped": False})
    assert unsure.endswith("판정할 수 없는 게이트가 있습니다 (rm_ok).")
    assert "4.2점 [3.0, 5.5] 높지만" in unsure
    skipped = verdict(failed, {"skipped": True, "skipped_reason": "no update beats SFT"})
    assert "no update beats SFT" in skipped
    for one in (good, not_all, unsure, skipped):
        assert one.count(". ") == 0, "more than one sentence"
