"""Stage `evaluate`: base, SFT, PPO and best-of-n on the test questions, against the references.

python -m stages.evaluate --code data/check/evaluate.json --base data/base --sft data/sft
    --ppo data/ppo/best --rm data/rm --judge data/judge --gate metrics/gate.json
    --embedder data/embedder --rows data/rows/sft/test.jsonl --index data/index
    --metrics-dir metrics --plots-dir plots
    --out data/evaluate --metrics metrics/evaluate.json --plots plots/evaluate

`--metrics-dir` and `--plots-dir` hold the other stages' metrics and figures, for the report.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import click
import numpy as np
import pandas as pd

from stages.cli.options import one_sentence_errors, path_options
from stages.rlhf import runtime
from stages.rlhf.chat import message
from stages.rlhf.config.base import load
from stages.rlhf.config.limits import Limits
from stages.rlhf.config.measure import EvaluateParams
from stages.rlhf.evidence.grounding import TRIES, about, checked, unstated
from stages.rlhf.files import RUN
from stages.rlhf.measure.text import length
from stages.rlhf.model import embedder
from stages.rlhf.model.roles import POLICY
from stages.rlhf.records import (
    WITHOUT_EVIDENCE,
    Response,
    SftRow,
    details_file,
    read_rows,
    runtime_file,
    write_jsonl,
    write_stage_metrics,
)
from stages.rlhf.report import comparison, comparison_figures, grounded, html, structure
from stages.rlhf.retrieval.support import Support
from stages.rlhf.reward.gate import read_gate
from stages.rlhf.reward.generations import Generations, again, generate, greedy
from stages.rlhf.runs.parallel import run_parallel
from stages.rlhf.runs.process_group import SINGLE_PROCESS, ProcessGroup
from stages.rlhf.runs.provenance import Stage
from stages.rlhf.runtime import derive_seed

Paths = dict[str, Path]

HEADLINE = (
    "base.cosine",
    "base.chrf",
    "sft.cosine",
    "sft.chrf",
    "sft.exact",
    "ppo.cosine",
    "ppo.chrf",
    "ppo.exact",
    "ppo.wrong_fact_rate",
    "ppo.eos_rate",
    "ppo_vs_sft.win_rate_decided",
    "gates.ppo_beats_sft",
)
UPSTREAM_METRICS = ("preprocess", "rm", "judge", "ppo")  # stages whose details the report shows
UPSTREAM_PLOTS = ("eda", "rm", "ppo/validation.csv")


class Evaluated(NamedTuple):
    """All that is written."""

    metrics: dict[str, Any]
    models: dict[str, comparison.Measured]
    samples: list[dict[str, Any]]
    structure: list[structure.Part]  # of the PPO model
    numbers: dict[str, Any]  # of the structure


def run(
    params: EvaluateParams,
    paths: Paths,
    clock: runtime.Clock,
    work: Path,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> Evaluated | None:
    """The metrics, each model's measured responses, and the sample rows: of the main process.

    The others help to answer, and come to None.
    """
    shown = comparison.spread(read_rows(paths["rows"], SftRow), params.evaluate.max_questions)
    if not shown:
        raise ValueError(f"{paths['rows']}: no rows; expected test questions")
    messages = [row.message for row in shown]
    found = generate(params, paths, messages, clock.lap, work, process_group)
    conditions = None
    if any(row.passages for row in shown):
        conditions = with_and_without(params, paths, shown, found, work, process_group)
        clock.lap("rag")
    process_group.destroy()  # what follows takes one process, and may take it long
    if not process_group.is_main:
        return None
    rows = [grounded.plain(row) for row in shown]
    spoken = {name: grounded.spoken(own, shown) for name, own in found.responses.items()}
    similarity_model = embedder.load(paths["embedder"])
    texts = [row.answer for row in rows]
    for responses in spoken.values():
        texts += [response.text for response in responses]
    references, *encoded = np.split(embedder.encode(similarity_model, texts), 1 + len(spoken))
    models = {}
    for (name, responses), vectors in zip(spoken.items(), encoded, strict=True):
        scores, judge_scores = found.scores[name], found.judge_scores[name]
        models[name] = comparison.measure(
            responses, scores, judge_scores, rows, vectors, references
        )
    clock.lap("measure")
    bootstrap = comparison.Bootstrap(
        params.evaluate.resamples, derive_seed(params.seed, "evaluate", "resamples")
    )
    verdict = read_gate(paths["gate"])
    doubt = verdict.reason if verdict.passed is None else None
    blocks = comparison.report(models, rows, found.temperature, bootstrap, doubt)
    gates = comparison.gates(
        blocks,
        fmean(length(row.answer) for row in rows),
        params.limits,
        verdict.passed,
        params.data.source == "sample",
        doubt,
    )
    metrics = {
        "embedder_sha256": embedder.embedder_hash(paths["embedder"]),
        "embedder": embedder.summary(similarity_model, texts),
        **blocks,
        "gates": gates,
    }
    if conditions:
        metrics["rag"] = grounded.matrix(*conditions, bootstrap)
    return Evaluated(
        metrics,
        models,
        comparison.sample_rows(models, rows),
        structure.parts(found.roles.model),
        structure.summary(found.roles, POLICY),
    )


def with_and_without(
    params: EvaluateParams,
    paths: Paths,
    shown: list[SftRow],
    found: Generations,
    work: Path,
    process_group: ProcessGroup,
) -> tuple[dict[str, dict[str, list[Response]]], dict[str, list[SftRow]]]:
    """Answers and rows by condition: without passages, with them, with the evidence gone.

    Of models, and of PPO where its answers are compared with the passages.
    """
    gone = read_rows(paths["index"] / WITHOUT_EVIDENCE, SftRow)
    rows = {
        grounded.CLOSED: [grounded.closed(row) for row in shown],
        grounded.RAG: shown,
        grounded.WITHOUT: comparison.spread(gone, params.evaluate.max_questions),
    }
    answers = {grounded.RAG: {name: found.responses[name] for name in comparison_figures.NAMES}}
    for condition in (grounded.CLOSED, grounded.WITHOUT):
        messages = [row.message for row in rows[condition]]
        own = work / condition
        answers[condition] = greedy(params, paths["base"], found, messages, own, process_group)
    support = Support.load(paths["index"])
    for condition in (grounded.RAG, grounded.WITHOUT):
        first, of_condition = answers[condition]["ppo"], rows[condition]
        others: dict[int, list[Response]] = {i: [] for i in unstated(first, of_condition, support)}
        alone = [
            (index, message(row.question, (passage,)))
            for index, row in ((index, of_condition[index]) for index in others)
            for passage in about(support, row.question, row.passages or ())
        ]
        messages = [text for _, text in alone]
        own = work / f"{condition}_again"
        more = again(params, paths["base"], found, messages, TRIES, own, process_group)
        for (index, _), responses in zip(alone, more, strict=True):
            others[index] += responses
        answers[condition][grounded.CHECKED] = checked(first, others, of_condition, support)
    return answers, rows


def draw(found: Evaluated, shown: int, paths: Paths, plots: Path) -> None:
    """Every figure and table below `plots`."""
    models = {name: found.models[name] for name in comparison_figures.NAMES}
    comparison_figures.draw_all(models, found.samples, shown, plots)
    curves = pd.read_csv(paths["plots_dir"] / "ppo" / "validation.csv")
    comparison_figures.draw_curves(curves, plots / "ppo_curves")
    comparison_figures.draw_structure(found.structure, found.numbers, plots / "17_structure")


def report_page(found: Evaluated, shown: int, limits: Limits, paths: Paths) -> str:
    """The report's HTML, from this stage's figures and from those of the stages before it."""
    metrics = {
        name: json.loads(details_file(paths["metrics_dir"] / f"{name}.json").read_text("utf-8"))
        for name in UPSTREAM_METRICS
    }
    cards = {
        name: json.loads((paths[name] / "model.json").read_text("utf-8"))
        for name in ("sft", "rm", "judge", "ppo")
    }
    inputs = html.ReportInputs(
        {**metrics, "evaluate": found.metrics},
        comparison.spread(found.samples, shown),
        found.structure,
        found.numbers,
        cards,
        limits,
        html.settings(params_of(paths)),
    )
    return html.page(inputs, paths["plots_dir"])


def params_of(paths: Paths) -> Iterator[dict[str, Any]]:
    """The params in the run.json of each stage that made a model."""
    for name in ("base", "embedder", "sft", "rm", "judge", "ppo"):
        yield json.loads(run_file(paths, name).read_text(encoding="utf-8"))["params"]


def run_file(paths: Paths, name: str) -> Path:
    """A stage's run.json; PPO's is one folder above its two models."""
    return (paths[name].parent if name == "ppo" else paths[name]) / RUN


def inputs_of(paths: Paths) -> Paths:
    """What is read: of the folders of metrics and of plots, the other stages' files alone."""
    folder = paths["metrics_dir"]
    metrics = {f"metrics {n}": details_file(folder / f"{n}.json") for n in UPSTREAM_METRICS}
    plots = {f"plots {name}": paths["plots_dir"] / name for name in UPSTREAM_PLOTS}
    own = {k: v for k, v in paths.items() if k not in ("metrics_dir", "plots_dir")}
    return own | {"ppo run": run_file(paths, "ppo")} | metrics | plots


@click.command(help=__doc__)
@path_options("code", "base", "sft", "ppo", "rm", "judge", "gate", "embedder", "rows", "index")
@path_options("metrics-dir", "plots-dir", "out", "metrics", "plots")
def main(code: Path, out: Path, metrics: Path, plots: Path, **paths: Path) -> None:
    """Compare the models on test."""
    clock = runtime.Clock()
    seconds = runtime_file(metrics)
    with one_sentence_errors():
        params = load(EvaluateParams)
        runtime.start(params.threads, params.seed, "evaluate")

        def make(work: Path, process_group: ProcessGroup) -> None:
            found = run(params, paths, clock, work, process_group)
            shown = params.evaluate.samples_shown
            if found is None:
                return
            for folder in (out, plots):
                shutil.rmtree(folder, ignore_errors=True)
            write_jsonl(out / "samples.jsonl", found.samples)
            draw(found, shown, paths, plots)
            text = report_page(found, shown, params.limits, paths)
            (out / "report.html").write_text(text, encoding="utf-8", newline="\n")
            clock.lap("draw")
            write_stage_metrics(metrics, found.metrics, HEADLINE)
            clock.write(seconds)

        outs = [out, plots, metrics, details_file(metrics), seconds]
        run_parallel(Stage("evaluate", params, code, inputs_of(paths)), outs, make)
    gates = json.loads(details_file(metrics).read_text(encoding="utf-8"))["gates"]
    click.echo(f"evaluate: {comparison.gates_line(gates)}")


if __name__ == "__main__":
    main()
