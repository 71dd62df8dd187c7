"""Models on disk.

A model is one of
    a folder with model.safetensors, config.json and the tokenizer  (trained here in full)
    pointer.json {hub, revision, files}                             (weights stay in the hub cache)
    pointer.json {files}                                            (weights stay in params' `path`)
    adapter_config.json + adapter_model.safetensors                 (LoRA on one of the above)
and model.json next to it records the sha256 of its parents.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.rlhf.chat import prepare_tokenizer, template_hash
from stages.rlhf.config.base import load
from stages.rlhf.config.models import LocalModel, Lora
from stages.rlhf.files import RUN, file_hash
from stages.rlhf.hub import POINTER, follow_pointer, refuse_pickles
from stages.rlhf.model.families import check_config, check_model
from stages.rlhf.model.quantized import options, trainable_through
from stages.rlhf.model.roles import Roles
from stages.rlhf.model.sequences import decoder_of
from stages.rlhf.precision import NF4, SDPA_FLOAT32, WEIGHTS, autocasts, check_gpu, device
from stages.rlhf.runs import sharding

CARD = "model.json"
TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def weights_folder(folder: Path) -> Path:
    """The folder with a model's weights: itself, or the one its pointer stands for.

    Raises ValueError if that one no longer has the files the pointer was made from.
    """
    if (folder / POINTER).is_file():
        local = "hub" not in json.loads((folder / POINTER).read_text(encoding="utf-8"))
        return follow_pointer(folder, load(LocalModel).base_model.path if local else None)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: neither config.json nor {POINTER}; no model here")
    return folder


def model_hash(folder: Path) -> str:
    """One sha256 for a model on disk: pointer or weights, tokenizer and config."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        known = path.suffix in {".safetensors", ".json", ".model"}
        if known and path.name not in {CARD, RUN}:
            digest.update(f"{path.relative_to(folder).as_posix()}:{file_hash(path)}\n".encode())
    return digest.hexdigest()


def tokenizer_hash(folder: Path) -> str:
    """One sha256 for a model's tokenizer files, local or in the hub cache."""
    where = weights_folder(folder)
    found = [where / name for name in TOKENIZER if (where / name).is_file()]
    lines = [f"{path.name}:{file_hash(path)}\n" for path in found]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a base model, with our chat template and a padding token besides EOS.

    Raises ValueError if there is none, or one with more tokens than the model has embeddings.
    """
    where = weights_folder(folder)
    config = json.loads((where / "config.json").read_text(encoding="utf-8"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        tokenizer.init_kwargs.pop("local_files_only", None)  # the environment's: not to be saved
        return prepare_tokenizer(tokenizer, config.get("vocab_size"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: no usable tokenizer: {_first_line(error)}") from error


def load_causal_lm(folder: Path, dtype: str) -> Any:
    """A causal language model in `dtype` (a key of precision.WEIGHTS), frozen and in eval mode.

    Raises ValueError for a pickle, for an adapter, for a model of a family that this library would
    compute wrongly (`families.py`), or that needs custom code, and for nf4 without bitsandbytes.
    """
    where = weights_folder(folder)
    refuse_pickles(where)
    _check_shards(where)
    if (where / "adapter_config.json").is_file():  # transformers would load the model it names
        raise ValueError(f"{where / 'adapter_config.json'}: an adapter; expected a full model")
    check_config(where)
    check_gpu(dtype)
    more = options(where, dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=WEIGHTS[dtype],
            use_safetensors=True,
            trust_remote_code=False,
            **more,
        )  # attention is sdpa; eager for Gemma-2, whose soft-cap sdpa does not support
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{where}: no usable model: {_first_line(error)}") from error
    sdpa = model.config._attn_implementation == "sdpa"  # where it is not, sdpa would be wrong
    if device() == "cpu" and autocasts(dtype) and sdpa:
        model.set_attn_implementation(SDPA_FLOAT32)
    model = model.eval().requires_grad_(False)
    if sharding.wanted():
        sharding.shard(model, decoder_of(model), device())
    else:
        model = model.to(device())
    try:
        if dtype == NF4:
            trainable_through(model)
        check_model(model)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return model


def save_on_every_host(model: Any) -> None:
    """Let `save_pretrained` write on each rank that calls it; on all but rank 0 it does nothing."""
    model.should_save_on_this_rank = lambda is_main_process: is_main_process


def _check_shards(folder: Path) -> None:
    """Reject an index of other files: transformers would read a pickle, or a file elsewhere.

    Raises ValueError also if there are no weights at all.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        odd = sorted(n for n in names if Path(n).name != n or not n.endswith(".safetensors"))
        if odd:
            raise ValueError(f"{index}: names {odd[0]!r}; expected a *.safetensors file next to it")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder}: no *.safetensors here; expected a model's weights")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def save_card(folder: Path, kind: str, parents: dict[str, Path], **more: Any) -> None:
    """Write model.json: the kind of model, and the hashes of its parents."""
    card = {"kind": kind, **_hashes(parents), **more}
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _hashes(parents: dict[str, Path]) -> dict[str, str]:
    return {
        "chat_template_sha256": template_hash(),
        "tokenizer_sha256": tokenizer_hash(parents["base"]),
        **{f"{name}_sha256": model_hash(path) for name, path in parents.items()},
    }


def check_card(folder: Path, parents: dict[str, Path]) -> dict[str, Any]:
    """Read model.json. Raises ValueError if template, tokenizer or a parent has changed since."""
    file = folder / CARD
    if not file.is_file():
        raise ValueError(f"{file}: no such file; no trained model here")
    card: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for key, value in _hashes(parents).items():
        if card.get(key) != value:
            raise ValueError(f"{file}: {key} is {card.get(key)}, but now {value}")
    return card


def load_base(base: Path, dtype: str, lora: Lora) -> Roles:
    """The base model as a frozen backbone without adapters."""
    return Roles(load_causal_lm(base, dtype), lora, autocasts(dtype))


def load_sft(base: Path, sft: Path, dtype: str, lora: Lora, bare: Roles | None = None) -> Roles:
    """The SFT model as a frozen backbone with `reference` set, ready for further adapters.

    If SFT is an adapter, it is added to `bare`, the base model, if that is in memory already: one
    copy serves both. Raises ValueError if data/sft was trained on another base or chat template.
    """
    card = check_card(sft, {"base": base})
    if card["method"] == "full":
        return Roles(load_causal_lm(sft, dtype), lora, autocasts(dtype))
    roles = bare or load_base(base, dtype, lora)
    roles.load("sft", sft)
    roles.reference = "sft"
    return roles
