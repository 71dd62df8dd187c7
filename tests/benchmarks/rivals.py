"""The plain rivals of RLHF: SFT on clean demonstrations, and on those that there are, alone.

Each is trained as far as stage sft and measured here on test as stage evaluate measures SFT, with
the default run's ruler and test rows. PPO's answers to the same questions stand in the samples of
table `seeds`, so PPO's gain over a rival is paired. The sample's demonstrations have a part in the
tiny model's tokenizer: the clean rival's base model is made anew with them.
"""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dvc.api
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from stages.rlhf import runtime
from stages.rlhf.chat import Codec
from stages.rlhf.config.whole import Params, load_params
from stages.rlhf.decoding.generation import greedy_responses
from stages.rlhf.measure.text import TEXT_METRICS, text_values
from stages.rlhf.measure.win_rate import mean_and_interval
from stages.rlhf.model import embedder
from stages.rlhf.model.store import load_sft, load_tokenizer
from stages.rlhf.records import Response, SftRow, read_jsonl, read_rows
from stages.rlhf.report import comparison
from tests.conftest import ROOT

ALL = "all"  # beside the kinds
KINDS = ("unseen_wording", "never_asked", "unseen_ending")
ANSWERS = ("cosine", *TEXT_METRICS)
GAINS = ("cosine", "chrf", "exact", "contains")
ENDS = ("", "_ci_low", "_ci_high")

SEEDS = (0, 1, 2)
POOLED = ("sft", "best_of_n", "ppo")
RIVALS: dict[str, dict[str, Any]] = {
    "clean demonstrations": {"sample.demo_full_right": 1.0, "sft.data": "demonstrations"},
    "demonstrations alone": {"sft.data": "demonstrations"},
}
TEST = "data/preprocess/sft/test.jsonl"
SAMPLES = "data/evaluate/samples.jsonl"
# What a rival may not change: the questions, what the base model reads, what the ranks say.
SHARED = (TEST, "data/preprocess/corpus.jsonl", "data/preprocess/rm/train.jsonl")
CONFIG = ("params.yaml", "stages/models.yaml")
MODEL = (*CONFIG, "data/base", "data/sft")

Cells = dict[str, Any]


def row_name(rival: str, seed: int) -> str:
    """Of one training; the rival's own name is the row of all its seeds."""
    return f"{rival} seed {seed}"


def rows() -> dict[str, dict[str, Any]]:
    """Every rival with every seed, as changed params; seed 0 is params.yaml's."""
    return {
        row_name(rival, seed): changed | ({"seed": seed} if seed else {})
        for rival, changed in RIVALS.items()
        for seed in SEEDS
    }


def read(found: Mapping[str, str], taught: Mapping[int, str]) -> dict[str, Cells]:
    """Revisions of the rivals by row, of the default run and its reruns by seed -> the table.

    Raises ValueError where a rival's test rows, corpus or ranks are not the default run's.
    """
    with tempfile.TemporaryDirectory(prefix="koqa-rivals-") as name:
        folder = Path(name)
        fetch(taught[0], (*CONFIG, "data/embedder", *SHARED), folder / "default")
        params = load_params(folder / "default" / "params.yaml")
        ruler = embedder.load(folder / "default" / "data/embedder")
        asked = comparison.spread(
            read_rows(folder / "default" / TEST, SftRow), params.evaluate.max_questions
        )
        ppo = {}
        for seed in SEEDS:
            fetch(taught[seed], (SAMPLES,), folder / f"seed-{seed}")
            ppo[seed] = ppo_values(folder / f"seed-{seed}" / SAMPLES, asked)
        values = {}
        for row, rev in found.items():
            fetch(rev, (*MODEL, *SHARED), folder / row)
            check_shared(folder / row, folder / "default")
            values[row] = sft_values(folder / row, ruler, asked)
    return table(values, ppo, asked, bootstrap_of(params))


def bootstrap_of(params: Params) -> comparison.Bootstrap:
    """Stage evaluate's own, of the default run."""
    seed = runtime.derive_seed(params.seed, "evaluate", "resamples")
    return comparison.Bootstrap(params.evaluate.resamples, seed)


def fetch(rev: str, paths: Sequence[str], folder: Path) -> None:
    """Files and folders of a revision, under their own paths."""
    files = dvc.api.DVCFileSystem(str(ROOT), rev=rev)
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        files.get(path, str(folder / path), recursive=files.isdir(path))


def check_shared(rival: Path, default: Path) -> None:
    """Raises ValueError, with both hashes, where a file differs that all runs must share."""
    for path in SHARED:
        one, other = (
            hashlib.sha256((folder / path).read_bytes()).hexdigest() for folder in (rival, default)
        )
        if one != other:
            raise ValueError(f"{rival.name}: {path} has sha256 {one}, in the default run {other}")


def sft_values(folder: Path, ruler: SentenceTransformer, asked: Sequence[SftRow]) -> pd.DataFrame:
    """(N, metrics) of greedy answers by the SFT model under `folder`."""
    params = load_params(folder / "params.yaml")
    base_model = params.base_model
    runtime.start(params.threads, params.seed, "evaluate")
    base = folder / "data/base"
    roles = load_sft(base, folder / "data/sft", base_model.dtype, base_model.lora)
    codec = Codec(load_tokenizer(base))
    questions = [row.question for row in asked]
    with roles.use(roles.reference) as model:
        answers = greedy_responses(
            model, codec, questions, base_model.max_answer_tokens, base_model.generate
        )
    unscored = [np.nan] * len(asked)
    vectors = embedder.encode(ruler, [answer.text for answer in answers])
    references = embedder.encode(ruler, [row.answer for row in asked])
    return comparison.measure(answers, unscored, unscored, asked, vectors, references).values


def pooled(taught: Mapping[int, str]) -> dict[str, Cells]:
    """Revisions of the default run's reruns by seed -> a row for SFT, best-of-n and PPO.

    A question's values are means over the seeds, PPO's gains are paired by question, and questions
    are drawn for the intervals: they are of the questions, for these seeds.
    """
    with tempfile.TemporaryDirectory(prefix="koqa-seeds-") as name:
        folder = Path(name)
        fetch(taught[0], (*CONFIG, TEST), folder / "default")
        params = load_params(folder / "default" / "params.yaml")
        rows = read_rows(folder / "default" / TEST, SftRow)
        asked = comparison.spread(rows, params.evaluate.max_questions)
        means = {model: list[pd.DataFrame]() for model in POOLED}
        for seed, rev in taught.items():
            fetch(rev, (SAMPLES,), folder / f"seed-{seed}")
            for model, frames in means.items():
                frames.append(ppo_values(folder / f"seed-{seed}" / SAMPLES, asked, model))
    return pooled_cells(means, places_of(asked), bootstrap_of(params))


def pooled_cells(
    frames: Mapping[str, Sequence[pd.DataFrame]],
    places: Mapping[str, NDArray[np.bool_]],
    bootstrap: comparison.Bootstrap,
) -> dict[str, Cells]:
    """(N, metrics) by model and seed -> the rows of `pooled`."""
    means = {model: pd.concat(own).groupby(level=0).mean() for model, own in frames.items()}
    found: dict[str, Cells] = {}
    for model, mean in means.items():
        found[model] = {"seeds": len(frames[model])}
        for place, chosen in places.items():
            for key in mean.columns:
                found[model][f"{place}.{key}"] = float(mean[key][chosen].mean())
            for key in GAINS:
                gap = (means["ppo"][key] - mean[key])[chosen].to_numpy(dtype=np.float64)
                gain = mean_and_interval(
                    "gain", gap, bootstrap.resamples, bootstrap.seed, "no answers"
                )
                ends = {f"{place}.{key}_ppo_gain{end}": gain.get(f"gain{end}") for end in ENDS}
                found[model] |= ends
    return found


def ppo_values(samples: Path, asked: Sequence[SftRow], model: str = "ppo") -> pd.DataFrame:
    """(N, GAINS and wrong facts) of PPO's answers, or another model's, in a run's samples.

    Raises ValueError where a question lacks.
    """
    said = {sample["id"]: sample[model] for sample in read_jsonl(samples)}
    lost = [row.id for row in asked if row.id not in said]
    if lost:
        raise ValueError(
            f"{samples}: {len(lost)} of {len(asked)} questions lack, such as {lost[0]}"
        )
    answers = [Response(said[row.id]["answer"], tokens=0, ended=True) for row in asked]
    values = text_values(answers, asked)
    values["cosine"] = np.array([said[row.id]["cosine"] for row in asked])
    return pd.DataFrame({key: values[key] for key in (*GAINS, "wrong_fact_rate")})


def table(
    values: Mapping[str, pd.DataFrame],
    ppo: Mapping[int, pd.DataFrame],
    asked: Sequence[SftRow],
    bootstrap: comparison.Bootstrap,
) -> dict[str, Cells]:
    """(N, metrics) by row, PPO's by seed -> a row per training and one per rival, over its seeds.

    There a question's gain is its mean over the seeds, and questions are drawn: the interval is of
    the questions, for these seeds.
    """
    places = places_of(asked)
    found = {}
    for rival in RIVALS:
        own = {seed: values[row_name(rival, seed)] for seed in SEEDS}
        over = {seed: ppo[seed][list(GAINS)] - own[seed][list(GAINS)] for seed in SEEDS}
        for seed in SEEDS:
            found[row_name(rival, seed)] = cells([own[seed]], over[seed], places, bootstrap)
        pooled = pd.concat(over.values()).groupby(level=0).mean()
        found[rival] = cells(list(own.values()), pooled, places, bootstrap)
    return found


def places_of(asked: Sequence[SftRow]) -> dict[str, NDArray[np.bool_]]:
    """(N,) which questions are of each kind, and all."""
    kinds = np.array([row.kind for row in asked])
    return {ALL: np.ones(len(asked), dtype=bool), **{kind: kinds == kind for kind in KINDS}}


def cells(
    frames: Sequence[pd.DataFrame],
    over: pd.DataFrame,
    places: Mapping[str, NDArray[np.bool_]],
    bootstrap: comparison.Bootstrap,
) -> Cells:
    """Figures of a rival over one or more (N, metrics) frames, and PPO's gains over it."""
    found: Cells = {}
    plain = comparison.Bootstrap(0, bootstrap.seed)  # intervals are drawn for the gains alone
    for place, chosen in places.items():
        block = comparison.block(pd.concat([frame[chosen] for frame in frames]), plain)
        found |= {f"{place}.{key}": block[key] for key in ANSWERS}
        for key in GAINS:
            gap = over[key][chosen].to_numpy(dtype=np.float64)
            gain = mean_and_interval("gain", gap, bootstrap.resamples, bootstrap.seed, "no answers")
            found |= {f"{place}.{key}_ppo_gain{end}": gain.get(f"gain{end}") for end in ENDS}
    return found
