"""The ruler: made from training text, the same bytes every time, and it sees a wrong fact."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizer

from stages.embedder import main
from stages.rlhf.config.measure import EmbedderConfig
from stages.rlhf.model import embedder, similarity
from stages.rlhf.records import SftRow, write_jsonl
from tests.conftest import naming, write_fingerprint, write_params

KNOBS = EmbedderConfig(
    hub=None, revision=None, seed=0, vocab_size=1200, dimensions=64, epochs=3, batch_size=64,
    learning_rate=0.02,
)  # fmt: skip
HEADS = ["한", "설", "지", "태", "오", "치", "덕", "월", "속", "가"]
TAILS = ["라산", "악산", "리산", "백산", "대산"]
PLACES = ["제주", "강원", "전남", "경북", "충북", "경기"]


def world() -> list[tuple[str, str, str]]:
    """(name, height, place) of 50 mountains."""
    names = [head + tail for head in HEADS for tail in TAILS]
    return [(n, f"{700 + 23 * i}m", PLACES[i % len(PLACES)]) for i, n in enumerate(names)]


def texts() -> tuple[list[str], list[tuple[str, str]]]:
    corpus, questions = [], []
    for name, height, place in world():
        corpus.append(f"{name}의 높이는 {height}입니다.")
        corpus.append(f"{name}은 높이가 {height}인 산입니다. {name}은 {place}에 있습니다.")
        corpus.append(f"{name}의 높이는 {height}이다. {name}은 {place}에 있다.")
        corpus.append(f"{place}에 있는 {name}은 {height}까지 올라갑니다.")
        questions.append((f"{name}은 얼마나 높나요?", f"{name}의 높이는 {height}입니다."))
    return corpus, questions


@pytest.fixture(scope="module")
def ruler() -> SentenceTransformer:
    return embedder.train(*texts(), KNOBS)


@pytest.fixture(scope="module")
def saved(ruler: SentenceTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedder")
    embedder.save(ruler, folder)
    return folder


def cosine(ruler: SentenceTransformer, a: list[str], b: list[str]) -> np.ndarray:
    return similarity.cosine(embedder.encode(ruler, a), embedder.encode(ruler, b))


def test_a_wrong_fact_costs(ruler: SentenceTransformer) -> None:
    facts = world()
    right = [f"{n}의 높이는 {h}입니다." for n, h, _ in facts]
    wrong = [
        a.replace(h, other[1])
        for a, (_, h, _), other in zip(right, facts, facts[7:] + facts[:7], strict=True)
    ]
    other_name = [*right[7:], *right[:7]]
    mannered = [f"{n}의 높이는 {h}이다." for n, h, _ in facts]
    vague = ["잘 모르겠습니다."] * len(facts)
    assert (cosine(ruler, right, wrong) < cosine(ruler, right, mannered)).mean() > 0.9
    assert (cosine(ruler, right, other_name) < cosine(ruler, right, wrong)).mean() > 0.9
    assert cosine(ruler, right, vague).mean() < 0.3
    assert (cosine(ruler, right, right) > 0.9999).all()


def test_saved_files_and_reload(ruler: SentenceTransformer, saved: Path) -> None:
    assert {p.name for p in saved.rglob("*")} == {
        "config_sentence_transformers.json", "model.safetensors", "modules.json", "tokenizer.json"
    }  # fmt: skip
    again = embedder.load(saved)
    np.testing.assert_array_equal(
        embedder.encode(ruler, ["한라산", "", "zebra 🦓"]),
        embedder.encode(again, ["한라산", "", "zebra 🦓"]),
    )
    assert embedder.encode(again, ["가"]).dtype == np.float32


def test_same_seed_same_bytes(saved: Path, tmp_path: Path) -> None:
    embedder.save(embedder.train(*texts(), KNOBS), tmp_path / "same")
    assert embedder.embedder_hash(tmp_path / "same") == embedder.embedder_hash(saved)
    other = KNOBS.model_copy(update={"seed": 1})
    embedder.save(embedder.train(*texts(), other), tmp_path / "other")
    assert embedder.embedder_hash(tmp_path / "other") != embedder.embedder_hash(saved)


def test_hash_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = embedder.embedder_hash(tmp_path)
    (tmp_path / "a").write_text("2")
    second = embedder.embedder_hash(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, embedder.embedder_hash(tmp_path)}) == 3


def test_halves() -> None:
    assert embedder.halves("하나다. 둘이다. 셋이다.") == ("하나다. 둘이다.", "셋이다.")
    assert embedder.halves("하나 둘 셋 넷") == ("하나 둘", "셋 넷")
    assert embedder.halves("하나") is None
    left, right = embedder.halves("가 " * 400 + "끝. " + "나 " * 400) or ("", "")
    assert (len(left), len(right)) == (embedder.WINDOW, embedder.WINDOW)
    assert left.endswith("끝.")


def test_no_pair_twice() -> None:
    pairs = embedder.training_pairs(["하나 둘"], [("질문", "하나 둘")])
    assert pairs == [("하나", "둘"), ("질문", "하나 둘")]


@pytest.mark.parametrize("corpus", [["하나 둘"], ["하나"], ["하나 둘", "하나 둘"]])
def test_without_two_pairs_the_initial_vectors_stay(corpus: list[str]) -> None:
    model = embedder.train(corpus, [], KNOBS)
    initial = embedder.initial_weights(model.tokenizer, corpus, KNOBS)
    assert torch.equal(model[0].embedding.weight, initial)
    assert 256 < len(initial) < KNOBS.vocab_size  # as many as there are
    assert np.isfinite(embedder.encode(model, [*corpus, "없는 말"])).all()


def run_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **knobs: Any) -> Any:
    write_params(tmp_path, **{f"embedder.{key}": value for key, value in knobs.items()})
    monkeypatch.chdir(tmp_path)
    corpus, questions = texts()
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in corpus])
    rows = [SftRow(id=str(i), question=q, answer=a) for i, (q, a) in enumerate(questions)]
    write_jsonl(tmp_path / "sft" / "train.jsonl", rows)
    arguments = ["--code", str(write_fingerprint(tmp_path, "embedder"))]
    arguments += ["--corpus", "corpus.jsonl", "--sft", "sft", "--out", "out"]
    return CliRunner().invoke(main, [*arguments, "--runtime", "runtime.json"])


def test_stage_reads_no_held_out_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    for split in ("validation", "test"):
        (tmp_path / "sft" / f"{split}.jsonl").write_text("unreadable", encoding="utf-8")
    result = run_stage(monkeypatch, tmp_path, epochs=1)
    assert result.exit_code == 0, result.output
    assert "total_s" in json.loads((tmp_path / "runtime.json").read_text(encoding="utf-8"))
    held = "unreadable"
    assert all(held not in p.read_text("utf-8", "ignore") for p in (tmp_path / "out").iterdir())


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub cache of our own, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(cache: Path, ruler: SentenceTransformer) -> Path:
    repo = cache / "models--some--ruler"
    snapshot = repo / "snapshots" / ("a" * 40)
    SentenceTransformer(modules=[ruler[0], Normalize()]).save(
        str(snapshot), create_model_card=False
    )
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    return snapshot


def test_hub_pointer(
    cache: Path, ruler: SentenceTransformer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    snapshot = fill(cache, ruler)
    result = run_stage(monkeypatch, tmp_path, hub="some/ruler")
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == ["pointer.json", "run.json"]
    pointer = json.loads((out / "pointer.json").read_text(encoding="utf-8"))
    assert pointer["hub"] == "some/ruler"
    assert pointer["revision"] == "a" * 40
    assert "model.safetensors" in pointer["files"]
    # Its Normalize layer is off: raw embeddings, as those of the model it was made from.
    np.testing.assert_allclose(
        embedder.encode(embedder.load(out), ["한라산의 높이"]),
        embedder.encode(ruler, ["한라산의 높이"]),
        rtol=1e-6,
    )
    (snapshot / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(
        ValueError, match=naming(snapshot / "model.safetensors", out / "pointer.json")
    ):
        embedder.load(out)


def test_a_special_token_in_a_response_is_text_to_a_hub_embedder(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "mask", "in"]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(
        tmp_path / "bert"
    )
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(words), intermediate_size=8, **sizes)
    BertModel(config).save_pretrained(tmp_path / "bert")
    bert = Transformer(str(tmp_path / "bert"))
    fill(cache, SentenceTransformer(modules=[bert, Pooling(8)]))
    assert run_stage(monkeypatch, tmp_path, hub="some/ruler").exit_code == 0
    loaded = embedder.load(tmp_path / "out")
    assert loaded.tokenizer("[MASK] in")["input_ids"] == [2, 5, 7, 6, 8, 3]


def test_hub_without_cache_is_one_sentence(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = run_stage(monkeypatch, tmp_path, hub="some/ruler")
    assert result.exit_code == 1
    assert re.search(naming("some/ruler", "latest"), result.output)
    assert len(result.output.strip().splitlines()) == 1


def test_hub_without_safetensors(
    cache: Path, ruler: SentenceTransformer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    snapshot = fill(cache, ruler)
    (snapshot / "model.safetensors").unlink()
    result = run_stage(monkeypatch, tmp_path, hub="some/ruler")
    assert result.exit_code == 1
    assert re.search(naming("some/ruler", ".safetensors"), result.output)


def test_nothing_there(tmp_path: Path, saved: Path) -> None:
    lost = "modules.json", "pointer.json"
    with pytest.raises(ValueError, match=naming(tmp_path, *lost)):
        embedder.load(tmp_path)
    shutil.copytree(saved, tmp_path / "copy")
    (tmp_path / "copy" / "modules.json").unlink()
    with pytest.raises(ValueError, match=naming(tmp_path / "copy", *lost)):
        embedder.load(tmp_path / "copy")
