"""The whole chain on micro, from preprocess to evaluate, on data in the shapes that people have."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.chain import run_chain
from tests.source_fixtures import noun
from tests.test_preprocess import Rows, question, world, write_source

pytestmark = pytest.mark.slow


def same_questions(folder: Path) -> dict[str, Any]:
    """KoChatGPT's own layout: the prompts of PPO are those of SFT and RM."""
    folder.mkdir()
    rows = {
        "1_SFT": [{"prompt": question(n), "completion": f"{noun(-n)}다."} for n in range(120)],
        "2_RM": [
            {"prompt": question(n), "ranking": [1, 0, 2]}
            | {f"completion_{i}": f"{noun(-n)}{a}." for i, a in enumerate("가나다")}
            for n in range(100)
        ],
        "3_PPO": [{"prompt": question(n)} for n in range(120)],
    }
    for name, content in rows.items():
        (folder / f"kochatgpt_{name}.jsonl").write_text(json.dumps(content), encoding="utf-8")
    return {"data.source": "kochatgpt"}


def several_pairs(folder: Path) -> dict[str, Any]:
    rows = world(120)
    rows["rm"] = [
        {"prompt": row["question"], "chosen": row["answers"][a], "rejected": row["answers"][b]}
        for row in rows["rm"]
        for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    return jsonl(folder, rows)


def scores(folder: Path) -> dict[str, Any]:
    rows = world(120)
    for row in rows["rm"]:
        row["scores"] = [-rank for rank in row.pop("ranks")]
    return jsonl(folder, rows)


def messages(folder: Path) -> dict[str, Any]:
    def turns(*texts: str) -> list[dict[str, str]]:
        return [
            {"role": role, "content": text}
            for role, text in zip(("user", "assistant"), texts, strict=False)
        ]

    rows = world(120)
    return jsonl(
        folder,
        {
            "sft": [{"messages": turns(row["question"], row["answer"])} for row in rows["sft"]],
            "rm": [
                {
                    "chosen": turns(row["question"], row["answers"][0]),
                    "rejected": turns(row["question"], row["answers"][1]),
                }
                for row in rows["rm"]
            ],
            "ppo": [{"messages": turns(row["question"])} for row in rows["ppo"]],
        },
    )


def jsonl(folder: Path, rows: Rows) -> dict[str, Any]:
    write_source(folder, rows)
    return {"data.source": "jsonl"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("write", [same_questions, several_pairs, scores, messages])
def test_chain_ends_with_a_report(tmp_path: Path, write: Any) -> None:
    params = write(tmp_path / "source")
    params |= {
        "data.path": tmp_path / "source",
        "models.micro.architecture.vocab_size": 320,
        "models.micro.ppo.corpus_check": 0.0,  # these sources state no facts
    }
    run_chain(tmp_path, **params)
    found = json.loads((tmp_path / "metrics" / "evaluate.json").read_text(encoding="utf-8"))
    assert {"base", "sft", "ppo"} <= set(found)
    assert (tmp_path / "data" / "evaluate" / "report.html").stat().st_size > 10_000
    assert any((tmp_path / "data" / "ppo").iterdir())
