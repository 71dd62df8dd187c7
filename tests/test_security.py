"""Nothing from outside is run: no pickle, no code beside a model, no path of an archive; no token
leaves the environment.
"""

import json
import pickle
import re
import shutil
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import constants
from safetensors.torch import load_file

from stages import base, preprocess
from stages.embedder import main as embedder_main
from stages.rlhf import files
from stages.rlhf.chat import Codec
from stages.rlhf.ingest.sources import Reader
from stages.rlhf.model import embedder
from stages.rlhf.model.roles import Roles
from stages.rlhf.model.store import load_base, load_causal_lm, load_sft, load_tokenizer
from stages.rlhf.reward.model import load_reward_model
from stages.rlhf.runs import checkpoints
from stages.rlhf.train import sft_trainer
from tests.conftest import ROOT, naming, write_fingerprint, write_params
from tests.embedder_fixtures import static_embedder
from tests.model_fixtures import LORA, pointed, random_reward_model, save_base, save_sft, sft_roles
from tests.sft_fixtures import ROWS, STRANGERS, micro
from tests.source_fixtures import NAMES, SFT, aihub, document, read, zipped
from tests.tokenizer_fixtures import tiny_tokenizer

PICKLES = ("pytorch_model.bin", "model.pt", "adapter_model.bin", "training_args.bin", "state.pkl")


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """A file that is there only if a planted pickle, or planted code, was run."""
    mark = tmp_path / "run"
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists(), "the trap does not work"
    mark.unlink()
    yield mark
    assert not mark.exists(), "what was planted was run"


def plant(folder: Path, mark: Path, names: tuple[str, ...] = PICKLES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        if number % 2:
            torch.save(Trap(mark), folder / name)
        else:
            (folder / name).write_bytes(pickle.dumps(Trap(mark)))


def code(folder: Path, mark: Path) -> None:
    """Python beside a model, named in its configuration as the hub's custom models do."""
    text = f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Evil: pass\n"
    (folder / "evil.py").write_text(text, encoding="utf-8")
    names = ("AutoConfig", "AutoModelForCausalLM")
    change(folder / "config.json", auto_map=dict.fromkeys(names, "evil.Evil"))
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})


def change(file: Path, **keys: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | keys), encoding="utf-8")


# ---- models


def test_pickles_beside_a_base_model_are_passed_over(tmp_path: Path, mark: Path) -> None:
    folder = save_base(tmp_path / "base")
    plant(folder, mark)
    load_tokenizer(folder)
    state = load_causal_lm(folder, "float32").state_dict()
    saved = load_file(folder / "model.safetensors")
    assert all(state[name].equal(tensor) for name, tensor in saved.items())
    load_base(folder, "float32", LORA)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00001.bin"])
def test_a_pickle_instead_of_a_base_model_is_refused(tmp_path: Path, mark: Path, name: str) -> None:
    folder = save_base(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    plant(folder, mark, (name,))
    index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ValueError, match=naming(folder / name, "pickle")):
        load_causal_lm(folder, "float32")


def test_a_pickle_in_the_hubs_cache_is_passed_over(
    tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, folder = pointed(tmp_path, monkeypatch)
    plant(snapshot, mark)
    load_tokenizer(folder)
    load_causal_lm(folder, "float32")


def test_an_adapter_beside_a_base_model_is_refused(tmp_path: Path, mark: Path) -> None:
    """transformers would load what its adapter_config.json names in the base model's place."""
    folder, other = save_base(tmp_path / "base"), tmp_path / "other"
    shutil.copytree(folder, other)
    code(other, mark)
    plant(folder, mark, ("adapter_model.bin",))
    config = {"peft_type": "LORA", "base_model_name_or_path": str(other), "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=naming(folder / "adapter_config.json")):
        load_causal_lm(folder, "float32")


@pytest.mark.parametrize("kind", ["llama", "evil"])
def test_code_beside_a_model_is_not_run(
    tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """An architecture that we know is ours; one that its own code makes is refused unasked."""
    folder = save_base(tmp_path / "base")
    code(folder, mark)
    change(folder / "config.json", model_type=kind)
    monkeypatch.setattr("builtins.input", lambda *given: "y")  # whoever asks is told yes
    if kind == "llama":
        load_causal_lm(folder, "float32")
    else:
        with pytest.raises(ValueError, match=naming(folder, "custom code")):
            load_causal_lm(folder, "float32")
    load_tokenizer(folder)


@pytest.mark.parametrize("name", ["shard.bin", "../shard.safetensors"])
def test_an_index_that_names_something_else_is_not_followed(
    tmp_path: Path, mark: Path, name: str
) -> None:
    base = save_base(tmp_path / "base")
    (base / "model.safetensors").unlink()
    torch.save(Trap(mark), base / name)
    index = {"metadata": {}, "weight_map": {"model.norm.weight": name}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=naming(base, name)):
        load_causal_lm(base, "float32")


def test_pickles_in_an_adapters_folder(tmp_path: Path, mark: Path) -> None:
    base = save_base(tmp_path / "base")
    sft = save_sft(base, tmp_path / "sft", "lora")
    plant(sft, mark)
    load_sft(base, sft, "float32", LORA)
    (sft / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=naming(sft / "adapter_model.safetensors")):
        load_sft(base, sft, "float32", LORA)


def save_reward(folder: Path) -> Roles:
    """A reward model's folder as stage rm writes it; the roles to load it onto."""
    model = random_reward_model(sft_roles(folder, "lora"), members=1)
    model.save(folder / "rm")
    return sft_roles(folder, "lora")


def test_pickles_in_a_reward_models_folder(tmp_path: Path, mark: Path) -> None:
    roles = save_reward(tmp_path)
    plant(tmp_path / "rm", mark)
    plant(tmp_path / "rm" / "reward0", mark)
    load_reward_model(roles, tmp_path / "rm")
    head = tmp_path / "rm" / "reward0" / "head.safetensors"
    head.write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(ValueError, match=naming(head)):
        load_reward_model(sft_roles(tmp_path, "lora"), tmp_path / "rm")


def test_pickles_in_a_checkpoint(
    tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        checkpoints.save(tmp_path / "work", step, {"a": torch.ones(1)}, {})
    plant(tmp_path / "work" / "step-2", mark)
    (tmp_path / "work" / "step-2" / "state.safetensors").write_bytes(pickle.dumps(Trap(mark)))
    found = checkpoints.load(tmp_path / "work")
    assert found is not None
    assert found.step == 1
    assert re.search(naming("step-2", "manifest.json"), capsys.readouterr().err)


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"]
)
def test_a_pickle_in_trainers_checkpoint_is_refused(
    tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(checkpoints.SECONDS, "0")
    codec = Codec(tiny_tokenizer())
    save_base(tmp_path / "base")
    held = sft_trainer.encoded(STRANGERS, codec)
    phase = sft_trainer.Phase(ROWS, 2, 0)
    work = tmp_path / "work"

    def fit() -> Any:
        model = load_causal_lm(tmp_path / "base", "float32").requires_grad_(True)
        return sft_trainer.fit(model, codec, micro(method="full", epochs=2), phase, held, work)

    fit()
    shutil.rmtree(work / "checkpoint-4")
    last = work / "checkpoint-3"
    torch.save(Trap(mark), last / name)
    files.write_manifest(last)
    if name == "training_args.bin":
        fit()  # never opened
    else:
        with pytest.raises(ValueError, match=naming(last)):
            fit()


# ---- the embedder


@pytest.fixture
def similarity_model(tmp_path: Path) -> Path:
    static_embedder(4).save(str(tmp_path / "embedder"), create_model_card=False)
    return tmp_path / "embedder"


def test_pickles_beside_the_embedder_are_passed_over(similarity_model: Path, mark: Path) -> None:
    plant(similarity_model, mark)
    loaded = embedder.sentence_transformer(similarity_model)
    assert loaded.encode(["산"]).shape == (1, 4)


def test_a_pickle_instead_of_the_embedder_is_refused(similarity_model: Path, mark: Path) -> None:
    (similarity_model / "model.safetensors").unlink()
    plant(similarity_model, mark, ("pytorch_model.bin",))
    with pytest.raises(ValueError, match=naming(similarity_model / "pytorch_model.bin", "pickle")):
        embedder.sentence_transformer(similarity_model)


@pytest.mark.parametrize("kind", ["evil.Evil", "org/name--evil.Evil", "os.system"])
def test_code_beside_the_embedder_is_not_run(similarity_model: Path, mark: Path, kind: str) -> None:
    (similarity_model / "config.json").write_text("{}", encoding="utf-8")
    (similarity_model / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    code(similarity_model, mark)
    modules = json.loads((similarity_model / "modules.json").read_text(encoding="utf-8"))
    modules[0]["type"] = kind
    (similarity_model / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(ValueError, match=naming(similarity_model, "third-party code")):
        embedder.sentence_transformer(similarity_model)


# ---- data


def test_pickles_among_the_data(tmp_path: Path, mark: Path) -> None:
    """Passed over by name; under a name that is read, they are no JSON."""
    path = aihub(tmp_path / "data")
    plant(path, mark)
    assert len(read(path, "sft")) == 1
    (path / NAMES["sft"]).write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(ValueError, match=naming(path / NAMES["sft"], "JSON")):
        read(path, "sft")


def test_links_and_climbing_names_in_a_zip(tmp_path: Path) -> None:
    """A link is read as the few bytes that it is; nothing is written, whatever the name."""
    secret = tmp_path / "secret.json"
    secret.write_bytes(document([SFT | {"question": "비밀"}]))
    path = aihub(tmp_path / "data")
    with zipfile.ZipFile(path / "TL.zip", "w") as archive:
        link = zipfile.ZipInfo(NAMES["sft"])
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(secret))
    with pytest.raises(ValueError, match=naming("TL.zip!SFTlabel.json", "JSON")):
        read(path, "sft")
    names = ["../../out.json", "/tmp/out.json", "..\\..\\out.json", "C:\\out.json", "a/../../x"]
    (path / "TL.zip").write_bytes(zipped(dict.fromkeys(names, b"x")))
    before = sorted(tmp_path.rglob("*"))
    Reader("aihub", path, None)
    assert sorted(tmp_path.rglob("*")) == before


# ---- the hub's token


TOKEN = "hf_" + "Sentinel" * 5


class Refusing(BaseHTTPRequestHandler):
    """A hub that knows nobody, and says what it was told."""

    tokens: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.tokens.append(str(self.headers.get("authorization")))
        self.send_response(401)
        self.send_header("X-Error-Message", "Invalid credentials")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *given: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Refusing.tokens.clear()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


MODEL = " --model data/check/model.json"


@pytest.mark.parametrize("stage", ["base", "preprocess", "embedder"])
@pytest.mark.usefixtures("hub")
def test_the_token_is_neither_said_nor_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    main, options = {
        "base": (base.main, "--rows rows --out data/base --metrics metrics/base.json" + MODEL),
        "preprocess": (preprocess.main, "--out data/preprocess --metrics metrics/p.json" + MODEL),
        "embedder": (
            embedder_main,
            "--out data/embedder --runtime t.json",
        ),
    }[stage]
    changed: dict[str, Any] = {"model": "micro", "embedder.hub": "org/secret", "threads": 1}
    changed |= {f"models.micro.{name}": None for name in ("architecture", "base")}
    write_params(tmp_path, **changed, **{"models.micro.hub": "org/secret"})
    (tmp_path / "data" / "sample").mkdir(parents=True)
    (tmp_path / "data" / "sample" / "empty.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    code = write_fingerprint(tmp_path, stage)
    result = CliRunner().invoke(main, [*options.split(), "--code", str(code)])
    assert result.exit_code == 1
    assert re.search(naming("org/secret", "latest"), result.output)
    assert any(TOKEN in token for token in Refusing.tokens), "it was never used"
    said = capfd.readouterr()
    for text in (result.output, repr(result.exception), said.out, said.err, caplog.text):
        assert TOKEN not in text
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file


def test_no_source_file_trusts_code_or_pickles() -> None:
    """What ruff has no rule for; pickle, eval, exec, yaml.load and shells are its S rules'."""
    for file in (ROOT / "stages").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for word in ("trust_remote_code=True", "torch.load(", "weights_only=False"):
            assert word not in text, f"{file}: {word}"
