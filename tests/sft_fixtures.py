"""Demonstrations, ranked groups, and params for SFT on the tiny models."""

from pathlib import Path
from typing import Any

from stages import sft
from stages.rlhf.config.whole import Params
from stages.rlhf.records import RmRow, SftRow, write_jsonl
from tests.model_fixtures import LORA, micro_params, save_base, shipped
from tests.tokenizer_fixtures import QUESTIONS, SENTENCES

ROWS = [
    SftRow(id=str(i), question=question, answer=SENTENCES[i % 4])
    for i, question in enumerate(QUESTIONS)
]
STRANGERS = [
    SftRow(id="v0", question="대구는?", answer="부산입니다."),
    SftRow(id="v1", question="대전은?", answer="인천입니다."),
]
GROUPS = [
    RmRow(id="g0", question="대구는?", answers=("가", "나", "다"), ranks=(2.0, 1.0, 1.0)),
    RmRow(id="g1", question="대전은?", answers=("라", "마", "바"), ranks=(3.0, 2.5, 1.5)),
    RmRow(id="g2", question="울산은?", answers=("사", "아"), ranks=(1.0, 2.0)),
]
BEST = ["나", "바", "사"]


def write_inputs(folder: Path) -> Path:
    """A base model, and what SFT reads."""
    save_base(folder / "base")
    write_jsonl(folder / "rows" / "train.jsonl", ROWS)
    write_jsonl(folder / "rows" / "validation.jsonl", STRANGERS)
    return folder


def train(params: Params, folder: Path) -> dict[str, Any]:
    """The stage's training, on what lies in the folder."""
    places = [folder / name for name in ("base", "rows", "groups.jsonl", "sft", "work")]
    return sft.train(params, *places)


def micro(**changed: Any) -> Params:
    """params.yaml with model micro and other SFT settings, on demonstrations alone."""
    small = {"epochs": 1, "batch_size": 4, "micro_batch_size": 2, **changed}
    scale = shipped().models["micro"].sft.model_copy(update=small)
    params = micro_params(lora=LORA, sft=scale)
    alone = params.sft.model_copy(update={"data": "demonstrations"})
    return params.model_copy(update={"sft": alone})


def rank1(params: Params, epochs: int = 1) -> Params:
    """The same, going on with the best answers."""
    knobs = params.sft.model_copy(update={"data": "rank1", "rank1_epochs": epochs})
    return params.model_copy(update={"sft": knobs})
