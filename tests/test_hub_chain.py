"""Every stage from base to evaluate on twins of models from elsewhere: LoRA, bf16, offline.

llama3 stands for Llama-3.2-1B and kanana-1.5-2.1b, whose architecture and tokenizer kind are one.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file

from stages import base, embedder, evaluate, gate, judge, ppo, rm, sft
from stages.rlhf.chat import Codec, prepare_tokenizer
from stages.rlhf.hub import local_files
from stages.rlhf.model.store import check_card, load_sft
from stages.rlhf.records import PromptRow, RmRow, SftRow, read_jsonl, write_jsonl, write_metrics
from stages.rlhf.report import html
from tests.conftest import write_fingerprint, write_params
from tests.model_fixtures import fake_hub, shipped, tiny_gemma2, tiny_llama
from tests.tokenizer_fixtures import (
    QUESTIONS,
    SENTENCES,
    gemma_tokenizer,
    llama2_tokenizer,
    llama3_tokenizer,
)

TWIN = {
    "model": "micro",
    "models.micro.hub": "org/twin",
    "models.micro.architecture": None,
    "models.micro.base": None,
    "models.micro.dtype": "bfloat16",
    "models.micro.max_answer_tokens": 8,
    "models.micro.sft.method": "lora",
    "models.micro.ppo.updates": 1,
    "models.micro.ppo.corpus_check": 0.0,
    "rm.members": 2,
    "ppo.uncertainty_coef": 0.1,
    "ppo.advantage": "gae",
    "ppo.answers_per_prompt": 1,
    "ppo.value_warmup": 1,
    "ppo.require_gate": False,
    "judge.validation_share": 0.5,
    "threads": 1,
}
STAGES = {
    "base": (base, "--model data/check/model.json --rows rows --out data/base"),
    "sft": (sft, "--base data/base --rows rows/sft --groups rows/rm/train.jsonl --out data/sft"),
    "rm": (rm, "--base data/base --sft data/sft --rows rows/rm --prompts rows/sft/validation.jsonl"
               " --out data/rm --plots plots/rm"),
    "judge": (judge, "--base data/base --rows rows/rm --out data/judge"),
    "gate": (gate, "--base data/base --sft data/sft --rm data/rm --judge data/judge"
                   " --judge-metrics metrics/details/judge.json"
                   " --prompts rows/ppo/train.jsonl --out data/gate"),
    "ppo": (ppo, "--base data/base --sft data/sft --rm data/rm --judge data/judge"
                 " --gate metrics/gate.json --prompts rows/ppo/train.jsonl"
                 " --validation rows/sft/validation.jsonl --corpus rows/corpus.jsonl --index rows"
                 " --out data/ppo --plots plots/ppo"),
    "embedder": (embedder, "--out data/embedder --runtime metrics/runtime/embedder.json"),
    "evaluate": (evaluate, "--base data/base --sft data/sft --ppo data/ppo/best --rm data/rm"
                           " --judge data/judge --gate metrics/gate.json --embedder data/embedder"
                           " --rows rows/sft/test.jsonl --index rows"
                           " --metrics-dir metrics --plots-dir plots"
                           " --out data/evaluate --plots plots/evaluate"),
}  # fmt: skip


def write_rows(folder: Path) -> None:
    numbered = [*enumerate(QUESTIONS)]
    answers = [SftRow(id=str(i), question=q, answer=SENTENCES[i % 4]) for i, q in numbered]
    groups = [
        RmRow(id=str(i), question=q, answers=tuple(SENTENCES[:3]), ranks=(1.0 + i % 3, 2.5, 3.5))
        for i, q in numbered
    ]
    for split in ("train", "validation", "test"):
        write_jsonl(folder / "sft" / f"{split}.jsonl", answers)
        write_jsonl(folder / "rm" / f"{split}.jsonl", groups)
    write_jsonl(folder / "corpus.jsonl", [])
    write_jsonl(
        folder / "ppo" / "train.jsonl", [PromptRow(id=str(i), question=q) for i, q in numbered]
    )


def write_stubs(folder: Path) -> None:
    """What the stages that are not run here would have told and drawn for the html."""
    write_metrics(folder / "metrics" / "details" / "preprocess.json", {"dropped_answers": {}})
    for name in html.FIGURES:
        if name.startswith("eda/"):
            file = folder / "plots" / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2)).save(file)


TWINS = {
    "llama3": (llama3_tokenizer, lambda vocab_size: tiny_llama(vocab_size, eos_id=1)),
    "gemma2": (gemma_tokenizer, lambda vocab_size: tiny_gemma2(vocab_size, eos_id=1)),
    "llama2": (llama2_tokenizer, lambda vocab_size: tiny_llama(vocab_size, eos_id=2)),
}
LOCAL = "gemma2"  # which lies in a folder of its own; the others are in the hub cache
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("gemma2", "llama2")]


NF4 = "nf4"  # a twin of llama3 whose rows are whole blocks, in 4-bit weights
NF4_TWIN = (llama3_tokenizer, lambda vocab_size: tiny_llama(vocab_size, eos_id=1, width=64))


LACKS = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs the extra qlora")
SLOW.append(pytest.param(NF4, marks=[pytest.mark.slow, LACKS]))


@pytest.fixture(scope="module", params=["llama3", *SLOW])
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder after all five stages."""
    folder = tmp_path_factory.mktemp("hub")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        make_tokenizer, make_model = TWINS.get(request.param, NF4_TWIN)
        tokenizer = make_tokenizer()
        twin = fake_hub(folder / "cache", "org/twin", make_model(len(tokenizer)), tokenizer)
        dtype = NF4 if request.param == NF4 else "bfloat16"
        write_params(folder, **{**TWIN, "models.micro.dtype": dtype})
        if request.param == LOCAL:
            write_params(folder, **{**TWIN, "models.micro.hub": None, "models.micro.path": twin})
            files = json.dumps(local_files(twin))
            (folder / "data" / "check").mkdir(parents=True)
            (folder / "data" / "check" / "model.json").write_text(files)
        write_rows(folder / "rows")
        write_stubs(folder)
        for name, (module, options) in STAGES.items():
            command = ["--code", str(write_fingerprint(folder, name)), *options.split()]
            command += ["--metrics", f"metrics/{name}.json"] if name != "embedder" else []
            result = CliRunner().invoke(module.main, command, catch_exceptions=False)
            assert result.exit_code == 0, f"{name}: {result.output}"
        yield folder
    torch.set_num_threads(threads)


def test_base_is_a_pointer_and_the_others_are_adapters(chain: Path) -> None:
    names = {str(file.relative_to(chain / "data")) for file in (chain / "data").rglob("*.*")}
    names = {name for name in names if name.split("/")[0] not in {"check", "embedder", "evaluate"}}
    adapter = ("adapter_config.json", "adapter_model.safetensors", "model.json")
    assert names == {
        "base/pointer.json",
        *(f"sft/{name}" for name in adapter),
        "rm/model.json",
        "rm/reward.json",
        *(f"rm/reward{i}/{name}" for i in range(2) for name in (*adapter[:2], "head.safetensors")),
        "judge/model.json",
        "judge/reward.json",
        *(f"judge/judge0/{name}" for name in (*adapter[:2], "head.safetensors")),
        *(f"ppo/{kept}/{name}" for kept in ("best", "last") for name in adapter),
        "gate/samples.jsonl",
        *(f"{stage}/run.json" for stage in ("base", "sft", "rm", "judge", "gate", "ppo")),
    }
    for file in (chain / "data").rglob("*.json"):
        assert str(chain) not in file.read_text(), f"{file} names a place"


def test_sft_trained_its_adapter_through_the_frozen_backbone(chain: Path) -> None:
    state = load_file(chain / "data" / "sft" / "adapter_model.safetensors")
    dead = [name for name, tensor in state.items() if "lora_B" in name and not tensor.any()]
    assert dead == [], f"{len(dead)} of {len(state) // 2} layers got no gradient"


def test_ppo_started_at_the_reference_and_moved(chain: Path) -> None:
    lines = (chain / "plots" / "ppo" / "updates.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    assert [row["update"] for row in rows] == ["0", "1"]
    assert [float(row["kl"]) for row in rows] == [0.0, 0.0]
    assert all(float(row["uncertainty"]) > 0 for row in rows), "the members agree on everything"
    states = [
        load_file(chain / "data" / where / "adapter_model.safetensors")
        for where in ("sft", "ppo/last")
    ]
    assert states[0].keys() == states[1].keys()
    assert not any(states[0][name].equal(states[1][name]) for name in states[0])
    metrics = json.loads((chain / "metrics" / "details" / "ppo.json").read_text())
    assert metrics["updates"] == 1
    assert metrics["bad_steps"] == 0


def test_the_policy_stands_on_all_that_made_it(chain: Path) -> None:
    data = chain / "data"
    parents = {name: data / name for name in ("base", "sft", "rm")}
    assert check_card(data / "ppo" / "best", parents)["kind"] == "ppo"
    roles = load_sft(data / "base", data / "sft", "bfloat16", shipped().models["micro"].lora)
    roles.load("policy", data / "ppo" / "best")
    assert roles.model.dtype == torch.bfloat16


def test_every_model_was_evaluated(chain: Path) -> None:
    metrics = json.loads((chain / "metrics" / "details" / "evaluate.json").read_text())
    assert metrics["questions"] == len(QUESTIONS)
    for name in ("base", "sft", "ppo", "best_of_n"):
        assert -1 <= metrics[name]["cosine"] <= 1
        assert 0 <= metrics[name]["eos_rate"] <= 1
    samples = list(read_jsonl(chain / "data" / "evaluate" / "samples.jsonl"))
    assert any(sample["sft"]["answer"] for sample in samples), "no model said a word"
    structure = (chain / "plots" / "evaluate" / "17_structure.csv").read_text()
    assert "self_attn.q_proj" in structure
    html = (chain / "data" / "evaluate" / "report.html").read_text()
    assert samples[0]["question"] in html


@pytest.mark.parametrize("name", TWINS)
def test_twins_have_their_tokenizers_rules(name: str) -> None:
    tokenizer = TWINS[name][0]()
    pad_before = tokenizer.pad_token_id
    codec = Codec(prepare_tokenizer(tokenizer))
    assert (pad_before is None) == (name != "gemma2")
    assert codec.pad_id != codec.eos_id
    prompt = codec.prompt_ids(QUESTIONS[0])
    assert prompt.count(tokenizer.bos_token_id) == 1
    assert prompt[0] == tokenizer.bos_token_id
    answer = "경주는 경상북도에 있습니다. 龍"
    ids = codec.response_ids(answer)
    assert codec.text(ids) == answer, "a character that the vocabulary lacks is lost"
    assert ids.count(codec.eos_id) == 1
