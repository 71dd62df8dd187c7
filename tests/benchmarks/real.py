"""The real run: a pretrained model taught on Korean that people wrote: metrics/tables/real.csv.

    python -m tests.benchmarks.real --data FOLDER --model FOLDER --seed 0 --seed 1

FOLDER of `--data` has the rows in AI-Hub 71748's shape, that of `--model` is what
`python -m tests.real_base` makes. real.yaml has the settings. Every seed is two DVC experiments,
the whole pipeline, whose SFT ends with the rank-1 answers, and SFT on the demonstrations alone,
which is measured here as stage evaluate measures SFT. What is done is not done again, and what was
interrupted resumes.
"""

import contextlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from ruamel.yaml import YAML

from stages.rlhf import runtime
from stages.rlhf.chat import Codec
from stages.rlhf.config.whole import load_params
from stages.rlhf.decoding.generation import generate_all, to_response
from stages.rlhf.measure.text import fold
from stages.rlhf.measure.win_rate import mean_and_interval, win_rates
from stages.rlhf.model import embedder
from stages.rlhf.model.store import load_base, load_sft, load_tokenizer
from stages.rlhf.records import SftRow, read_jsonl, read_rows
from stages.rlhf.report import comparison
from stages.rlhf.reward.model import load_reward_model
from tests.benchmarks import experiments
from tests.benchmarks.experiments import Table
from tests.benchmarks.rivals import ENDS, fetch
from tests.conftest import ROOT

SETTINGS = Path(__file__).with_suffix(".yaml")
DEMONSTRATIONS = "demonstrations"
MODELS = ("base", DEMONSTRATIONS, "sft", "best_of_n", "ppo")
ANSWERS = ("cosine", "chrf", "eos_rate", "repetition", "copy_rate", "length", "polite_rate")
RANKERS = ("rm", "judge")
RANKING = (
    *("accuracy", "length_only_accuracy", "accuracy_above_length", "accuracy_length_matched"),
    *("length_correlation_given_rank", "kendall_tau"),
)
TEST = "data/preprocess/sft/test.jsonl"
SAMPLES = "data/evaluate/samples.jsonl"
DETAILS = "metrics/details"
WHOLE = ("params.yaml", "stages/models.yaml", DETAILS, TEST, SAMPLES, "data/base", "data/judge")

Cells = dict[str, Any]
# Of the scores after the length curve, which are what PPO and best-of-n follow.
CORRECTED = ("accuracy", "accuracy_above_length", "length_correlation_given_rank")


def settings(data: Path, model: Path, seed: int) -> dict[str, Any]:
    """real.yaml with the two folders and the seed, as `dvc exp run -S` takes them."""
    found: dict[str, Any] = YAML(typ="safe").load(SETTINGS)
    entry = f"stages/models.yaml:models.{found['model']}"
    places = {"data.path": data.resolve(), f"{entry}.hub": None, f"{entry}.path": model.resolve()}
    return {**found, **{key: v and str(v) for key, v in places.items()}, "seed": seed}


def run(data: Path, model: Path, seeds: Sequence[int], alone: bool) -> dict[str, dict[int, str]]:
    """Revisions by kind of run (the whole pipeline, SFT alone) and seed; runs what is missing."""
    whole = {f"seed {seed}": settings(data, model, seed) for seed in seeds}
    tables = {"real": Table(("evaluate",), whole, read)}
    if alone:
        rows = {row: {**changed, "sft.data": DEMONSTRATIONS} for row, changed in whole.items()}
        tables[DEMONSTRATIONS] = Table(("sft",), rows, read)
    found: dict[str, dict[int, str]] = {}
    for name, table in tables.items():
        name_of = f"real-{name}" if name == DEMONSTRATIONS else name
        done, _ = experiments.run(name_of, table, jobs=1)
        found[name] = {seed: done[f"seed {seed}"]["rev"] for seed in seeds}
    return found


def read(found: Mapping[str, Any], done: Mapping[str, Any]) -> dict[str, Cells]:
    """No cells: `measured` makes them of both experiments of a seed."""
    return {}


def measured(whole: str, alone: str | None, seed: int) -> list[Cells]:
    """Revisions of the pipeline and of SFT alone, if any -> a row per model, then per ranker."""
    with tempfile.TemporaryDirectory(prefix="koqa-real-") as name:
        folder = Path(name)
        fetch(whole, (*WHOLE, "data/embedder"), folder)
        if alone:
            fetch(alone, ("data/sft",), folder / DEMONSTRATIONS)
        with contextlib.chdir(folder):  # a local model's folder is that of params.yaml
            return rows_of_run(seed)


def rows_of_run(seed: int) -> list[Cells]:
    """The same, of what lies in the current folder."""
    params = load_params()
    asked = comparison.spread(read_rows(Path(TEST), SftRow), params.evaluate.max_questions)
    samples = {sample["id"]: sample for sample in read_jsonl(Path(SAMPLES))}
    evaluate = json.loads(Path(DETAILS, "evaluate.json").read_text(encoding="utf-8"))
    boot = comparison.Bootstrap(
        params.evaluate.resamples, runtime.derive_seed(params.seed, "evaluate", "resamples")
    )
    frames = {
        model: pd.DataFrame([samples[row.id][model] for row in asked])
        for model in MODELS
        if model != DEMONSTRATIONS
    }
    blocks = {model: evaluate[model] for model in frames}
    if Path(DEMONSTRATIONS).is_dir():
        frames[DEMONSTRATIONS], blocks[DEMONSTRATIONS] = answers_alone(asked, boot)
    rows = []
    for model in (name for name in MODELS if name in frames):
        cells: Cells = {"model": model, "seed": seed, "questions": len(asked)}
        cells |= picked(blocks[model], ANSWERS)
        if model != "sft":
            cells |= against(frames[model], frames["sft"], boot)
        rows.append(cells)
    for ranker in RANKERS:
        block = json.loads(Path(DETAILS, f"{ranker}.json").read_text(encoding="utf-8"))
        cells = {"model": ranker, "seed": seed, "questions": block["questions"]}
        rows.append(cells | ranking(block))
    return rows


def ranking(block: Mapping[str, Any]) -> Cells:
    """A ranker's metrics, and those of its scores after the length curve, if it has one."""
    corrected = picked(block.get("length_corrected", {}), CORRECTED)
    return picked(block, RANKING) | {f"corrected_{key}": v for key, v in corrected.items()}


def picked(block: Mapping[str, Any], keys: Sequence[str]) -> Cells:
    """These metrics with their intervals; None where there is none."""
    return {f"{key}{end}": block.get(f"{key}{end}") for key in keys for end in ENDS}


def against(ours: pd.DataFrame, sft: pd.DataFrame, boot: comparison.Bootstrap) -> Cells:
    """Answers, cosines, chrF and judge's scores (N rows each) -> gains over SFT, and win rates."""
    limits = boot.resamples, boot.seed
    same = np.array([fold(a) == fold(b) for a, b in zip(ours.answer, sft.answer, strict=True)])
    found: Cells = {"same_as_sft": int(same.sum())}
    for key in ("cosine", "judged"):
        gap: NDArray[np.float64] = (ours[key] - sft[key]).to_numpy(dtype=np.float64)
        found |= mean_and_interval(f"{key}_gain", gap, *limits, "no questions")
    scores = (frame.judged.to_numpy(dtype=np.float64) for frame in (ours, sft))
    return found | win_rates(*scores, same, *limits)


def answers_alone(
    asked: Sequence[SftRow], boot: comparison.Bootstrap
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Greedy answers of SFT alone: answer, cosine and judged (N rows), and their block."""
    params = load_params()
    model = params.base_model
    runtime.start(params.threads, params.seed, "evaluate")
    base = Path("data/base")
    codec = Codec(load_tokenizer(base))
    bare = load_base(base, model.dtype, model.lora)
    roles = load_sft(base, Path(DEMONSTRATIONS, "data/sft"), model.dtype, model.lora, bare)
    prompts = [codec.prompt_ids(row.question) for row in asked]
    limits = codec, model.max_answer_tokens, model.generate
    with roles.use(roles.reference) as used:
        ids = generate_all(used, prompts, *limits)
    read = [(prompt, [one]) for prompt, one in zip(prompts, ids, strict=True)]
    judged = load_reward_model(bare, Path("data/judge")).score(read, codec).mean.tolist()
    answers = [to_response(one, codec) for one in ids]
    ruler = embedder.load(Path("data/embedder"))
    vectors = embedder.encode(ruler, [answer.text for answer in answers])
    references = embedder.encode(ruler, [row.answer for row in asked])
    unscored = [np.nan] * len(asked)
    values = comparison.measure(answers, unscored, judged, asked, vectors, references).values
    frame = pd.DataFrame({"answer": [a.text for a in answers], "judged": judged})
    return frame.assign(cosine=values["cosine"]), comparison.block(values, boot)


@click.command(help=__doc__)
@click.option("--data", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--model", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1), show_default=True)
@click.option("--alone/--no-alone", default=True, help="SFT on the demonstrations alone, too.")
def main(data: Path, model: Path, seeds: tuple[int, ...], alone: bool) -> None:
    """Run what is missing and write the table."""
    found = run(data, model, seeds, alone)
    rows: list[Cells] = []
    for seed in seeds:
        rows += measured(found["real"][seed], found.get(DEMONSTRATIONS, {}).get(seed), seed)
    write(rows)


def write(rows: Sequence[Cells]) -> None:
    """To the table, where other seeds keep their rows; the first columns to the terminal."""
    table = pd.DataFrame(rows)
    file = ROOT / "metrics" / "tables" / "real.csv"
    if file.is_file():
        before = pd.read_csv(file)
        table = pd.concat([before[~before.seed.isin(table.seed)], table])
    table.to_csv(file, index=False, float_format="%.6g")
    click.echo(table.iloc[:, :12].to_string(index=False))


if __name__ == "__main__":
    main()
