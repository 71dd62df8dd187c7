"""Passages by meaning: cosine search over the embeddings of a similarity model.

Up to EXACT passages every cosine is computed. Of more, FAISS (Douze et al. 2024) proposes
candidates, from cells of an inverted file with 8 bits a component, and their exact cosines, of the
vectors on disk, order them. Trained on one thread from a fixed seed, so that two builds are equal.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.rlhf.files import file_hash
from stages.rlhf.model import embedder
from stages.rlhf.model.embedder import Embedder
from stages.rlhf.retrieval.parts import in_parts
from stages.rlhf.retrieval.search import Scores, best

EXACT = 100_000  # passages
CANDIDATES = 200  # that are ordered by their exact cosines
PROBED = 1 / 32  # share of the cells that a question looks into
TRAINED_ON = 64  # vectors a cell
CARD, VECTORS, CELLS = "dense.json", "vectors.npy", "cells.faiss"

Vectors = NDArray[np.float32]


class Dense:
    """Finds passages by cosine. `vectors`: (P, D), of length 1 or 0; `cells`: FAISS's index."""

    def __init__(self, model: Embedder, vectors: Vectors, cells: Any = None) -> None:
        self.model, self.vectors, self.cells = model, vectors, cells

    @classmethod
    def build(
        cls, model: Embedder, texts: Sequence[str], model_hash: str, folder: Path, kept: Path | None
    ) -> "Dense":
        """Embed P passages and write the index to `folder`, with the hash of what embeds.

        `kept`: a folder from which a build that was killed resumes.
        """
        folder.mkdir(parents=True, exist_ok=True)

        def make(part: Sequence[str]) -> bytes:
            return unit(embedder.encode(model, part)).tobytes()

        width = embedder.encode(model, texts[:1]).shape[1]
        vectors = np.lib.format.open_memmap(
            folder / VECTORS, mode="w+", dtype=np.float32, shape=(len(texts), width)
        )
        row = 0
        for content in in_parts(texts, make, kept, model_hash):
            part = np.frombuffer(content, dtype=np.float32).reshape(-1, width)
            vectors[row : row + len(part)] = part
            row += len(part)
        vectors.flush()
        card = {"embedder_sha256": model_hash, "dimensions": width, "cells_sha256": None}
        if len(texts) > EXACT:
            write_cells(vectors, folder / CELLS)
            card["cells_sha256"] = file_hash(folder / CELLS)
        (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        return cls.load(folder, model, model_hash)

    @classmethod
    def load(cls, folder: Path, model: Embedder, model_hash: str) -> "Dense":
        """What `build` wrote, its vectors mapped into memory.

        Raises ValueError if another embedder made it: its vectors mean something else.
        """
        if not (folder / CARD).is_file():
            raise ValueError(f"{folder}: no {CARD}; no index here")
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        if card["embedder_sha256"] != model_hash:
            raise ValueError(
                f"{folder}: made by the embedder {card['embedder_sha256'][:12]}, but questions are"
                f" embedded by {model_hash[:12]}; expected the same one: build the index again"
            )
        vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
        if card["cells_sha256"] is None:
            return cls(model, vectors)
        if file_hash(folder / CELLS) != card["cells_sha256"]:
            raise ValueError(f"{folder / CELLS}: damaged; build the index again")
        return cls(model, vectors, _faiss().read_index(str(folder / CELLS)))

    def find(self, question: str, count: int) -> list[int]:
        """At most `count` passages, the best first."""
        (vector,) = unit(embedder.encode(self.model, [question]))
        return self.nearest(vector, count)

    def nearest(self, vector: Vectors, count: int) -> list[int]:
        """The same for the (D) embedding of a question."""
        if self.cells is None:
            return best(self.scores(vector), count)
        _, (found,) = self.cells.search(vector[None], max(count, CANDIDATES))
        candidates = np.sort(found[found >= 0])
        return [int(candidates[i]) for i in best(self.vectors[candidates] @ vector, count)]

    def scores(self, vector: Vectors) -> Scores:
        """(P) cosines, 0 for those that are not positive."""
        return np.maximum(np.asarray(self.vectors @ vector), 0)


def write_cells(vectors: Vectors, file: Path) -> None:
    """Train FAISS's inverted file on a sample of the (P, D) vectors, add all, and write it."""
    faiss = _faiss()
    count, width = vectors.shape
    cells = max(1, round(4 * count**0.5))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width),
        width,
        cells,
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
    )
    rows = np.random.default_rng(0).choice(count, min(count, TRAINED_ON * cells), replace=False)
    index.train(np.ascontiguousarray(vectors[np.sort(rows)]))
    for start in range(0, count, EXACT):
        index.add(np.ascontiguousarray(vectors[start : start + EXACT]))
    index.nprobe = max(1, round(PROBED * cells))
    faiss.write_index(index, str(file))


def unit(vectors: Vectors) -> Vectors:
    """Rows divided by their lengths; a zero row stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32)


def _faiss() -> Any:
    """FAISS on one thread. Raises ValueError where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise ValueError(
            f"embeddings of more than {EXACT:,} passages are searched by FAISS, which is not"
            " installed: pip install 'koqa[faiss]'"
        ) from error
    faiss.omp_set_num_threads(1)
    return faiss
