"""Stage `evaluate`: base, SFT, PPO and best-of-n on the test questions, against the references.

python -m stages.evaluate --base data/base --sft data/sft --ppo data/ppo/best --rm data/rm
    --judge data/judge --gate metrics/judge.json --embedder data/embedder
    --rows data/preprocess/sft/test.jsonl --metrics-dir metrics --plots-dir plots
    --out data/evaluate --metrics metrics/evaluate.json --plots plots/evaluate

`--told` and `--drawn` hold the other stages' metrics and figures, for the html.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import click
import pandas as pd

from stages.rlhf import runtime
from stages.rlhf.chat import Codec
from stages.rlhf.config.base import load
from stages.rlhf.config.report import EvaluateParams
from stages.rlhf.files import RUN
from stages.rlhf.measure.text import length
from stages.rlhf.model import embedder
from stages.rlhf.model.generation import Answer, answer_of, generate_all
from stages.rlhf.model.roles import POLICY
from stages.rlhf.model.store import check_card, load_base, load_sft, load_tokenizer
from stages.rlhf.records import SftRow, read_rows, write_jsonl, write_metrics
from stages.rlhf.report import comparison, comparison_figures, html, structure
from stages.rlhf.reward.best_of_n import best_of_n_indices, gate_failure, sample
from stages.rlhf.reward.model import load_reward_model
from stages.rlhf.runs.cache import run_cached
from stages.rlhf.runs.checkpoints import Checkpointer
from stages.rlhf.runtime import derive_seed

Paths = dict[str, Path]


UPSTREAM_METRICS = ("preprocess", "rm", "judge", "ppo")  # stages whose metrics the report holds
UPSTREAM_PLOTS = ("eda", "rm", "ppo/validation.csv")  # what it shows of their plots


class Asked(NamedTuple):
    """What every model says to the questions, and what reward model and judge say of it."""

    answers: dict[str, list[Answer]]
    scores: dict[str, list[float]]
    judged: dict[str, list[float]]
    temperature: float  # of the judge
    structure: list[structure.Part]
    numbers: dict[str, Any]  # of the structure


class Evaluated(NamedTuple):
    """All that is written."""

    metrics: dict[str, Any]
    models: dict[str, comparison.Measured]
    samples: list[dict[str, Any]]
    asked: Asked


def asked(
    params: EvaluateParams, paths: Paths, questions: list[str], clock: runtime.Clock, work: Path
) -> Asked:
    """Greedy answers of base, SFT and PPO, best-of-n of SFT's samples; all of them scored."""
    base_model = params.base_model
    parents = {"base": paths["base"], "sft": paths["sft"]}
    check_card(paths["rm"], parents)
    check_card(paths["ppo"], {**parents, "rm": paths["rm"]})
    check_card(paths["judge"], {"base": paths["base"]})
    codec = Codec(load_tokenizer(paths["base"]))
    prompts = [codec.prompt_ids(question) for question in questions]
    limits = codec, base_model.max_answer_tokens, base_model.generate.batch_size
    bare = load_base(paths["base"], base_model.dtype, base_model.lora)
    roles = load_sft(paths["base"], paths["sft"], base_model.dtype, base_model.lora, bare)
    roles.load(POLICY, paths["ppo"])

    said = {}
    places = {"base": (bare, None), "sft": (roles, roles.reference), "ppo": (roles, POLICY)}
    for name, (holder, role) in places.items():
        with holder.use(role) as model:
            said[name] = generate_all(
                model, prompts, *limits, checkpointer=Checkpointer(work / name)
            )
    n, temperature = params.evaluate.best_of, params.ppo.temperature
    with roles.use(roles.reference) as model:
        drawn = sample(
            model,
            prompts,
            n,
            *limits,
            temperature,
            params.seed,
            "evaluate",
            "best_of_n",
            checkpointer=Checkpointer(work / "best_of_n"),
        )
    clock.lap("generate")
    reward_model = load_reward_model(roles, paths["rm"])
    best = best_of_n_indices(reward_model, drawn, codec).tolist()
    said["best_of_n"] = [own[k] for (_, own), k in zip(drawn, best, strict=True)]
    judge = load_reward_model(bare, paths["judge"])
    assert judge.calibration is not None, "stage judge calibrates what it saves"
    scores, judged = {}, {}
    for name, ids in said.items():
        read = [(prompt, [answer]) for prompt, answer in zip(prompts, ids, strict=True)]
        scores[name] = reward_model.corrected_scores(read, codec).tolist()
        judged[name] = judge.score(read, codec).mean.tolist()
    clock.lap("score")
    answers = {name: [answer_of(one, codec) for one in ids] for name, ids in said.items()}
    return Asked(
        answers,
        scores,
        judged,
        judge.calibration.temperature,
        structure.parts(roles.model),
        structure.summary(roles, POLICY),
    )


def run(params: EvaluateParams, paths: Paths, clock: runtime.Clock, work: Path) -> Evaluated:
    """The metrics, each model's measured answers, and the sample rows."""
    rows = comparison.spread(read_rows(paths["rows"], SftRow), params.evaluate.max_questions)
    if not rows:
        raise ValueError(f"{paths['rows']}: no rows; test questions were expected")
    found = asked(params, paths, [row.question for row in rows], clock, work)
    ruler = embedder.load(paths["embedder"])
    references = embedder.encode(ruler, [row.answer for row in rows])
    models = {}
    for name, said in found.answers.items():
        vectors = embedder.encode(ruler, [answer.text for answer in said])
        models[name] = comparison.measure(
            said, found.scores[name], found.judged[name], rows, vectors, references
        )
    clock.lap("measure")
    bootstrap = comparison.Bootstrap(
        params.evaluate.resamples, derive_seed(params.seed, "evaluate", "resamples")
    )
    blocks = comparison.report(models, rows, found.temperature, bootstrap)
    gates = comparison.gates(
        blocks,
        fmean(length(row.answer) for row in rows),
        params.limits,
        gate_failure(paths["gate"]) is None,
        params.data.source == "sample",
    )
    metrics = {
        "embedder_sha256": embedder.embedder_hash(paths["embedder"]),
        **blocks,
        "gates": gates,
    }
    return Evaluated(metrics, models, comparison.sample_rows(models, rows), found)


def draw(found: Evaluated, shown: int, paths: Paths, plots: Path) -> None:
    """Every figure and table below `plots`."""
    drawn = {name: found.models[name] for name in comparison_figures.NAMES}
    comparison_figures.draw_all(drawn, found.samples, shown, plots)
    curves = pd.read_csv(paths["drawn"] / "ppo" / "validation.csv")
    comparison_figures.draw_curves(curves, plots / "ppo_curves")
    asked = found.asked
    comparison_figures.draw_structure(asked.structure, asked.numbers, plots / "17_structure")


def report_page(found: Evaluated, shown: int, paths: Paths) -> str:
    """The report's HTML, from this stage's figures and from those of the stages before it."""
    told = {
        name: json.loads((paths["told"] / f"{name}.json").read_text(encoding="utf-8"))
        for name in UPSTREAM_METRICS
    }
    cards = {
        name: json.loads((paths[name] / "model.json").read_text(encoding="utf-8"))
        for name in ("sft", "rm", "judge", "ppo")
    }
    told["evaluate"] = found.metrics
    samples = comparison.spread(found.samples, shown)
    asked, settings = found.asked, html.settings(params_of(paths))
    return html.page(
        html.ReportInputs(told, samples, asked.structure, asked.numbers, cards, settings),
        paths["drawn"],
    )


def params_of(paths: Paths) -> Iterator[dict[str, Any]]:
    """What run.json tells of each stage that made a model."""
    for name in ("base", "embedder", "sft", "rm", "judge", "ppo"):
        yield json.loads(run_file(paths, name).read_text(encoding="utf-8"))["params"]


def run_file(paths: Paths, name: str) -> Path:
    """A stage's run.json; of PPO's two models one lies here."""
    return (paths[name].parent if name == "ppo" else paths[name]) / RUN


def inputs_of(paths: Paths) -> Paths:
    """What is read: of the folders of metrics and of plots, the other stages' files alone."""
    told = {f"told {name}": paths["told"] / f"{name}.json" for name in UPSTREAM_METRICS}
    drawn = {f"drawn {name}": paths["drawn"] / name for name in UPSTREAM_PLOTS}
    own = {k: v for k, v in paths.items() if k not in ("told", "drawn")}
    return own | {"ppo run": run_file(paths, "ppo")} | told | drawn


def folder_option(name: str) -> Any:
    """A required path option."""
    return click.option(f"--{name}", type=click.Path(path_type=Path), required=True)


@click.command(help=__doc__)
@folder_option("base")
@folder_option("sft")
@folder_option("ppo")
@folder_option("rm")
@folder_option("judge")
@folder_option("gate")
@folder_option("embedder")
@folder_option("rows")
@folder_option("told")
@folder_option("drawn")
@folder_option("out")
@folder_option("metrics")
@folder_option("plots")
def main(out: Path, metrics: Path, plots: Path, **paths: Path) -> None:
    """Compare the models on test."""
    clock = runtime.Clock()
    seconds = metrics.parent / "runtime" / metrics.name
    try:
        params = load(EvaluateParams)
        runtime.start(params.threads, params.seed, "evaluate")

        def make(work: Path) -> None:
            found, shown = run(params, paths, clock, work), params.evaluate.samples_shown
            for folder in (out, plots):
                shutil.rmtree(folder, ignore_errors=True)
            write_jsonl(out / "samples.jsonl", found.samples)
            draw(found, shown, paths, plots)
            html = report_page(found, shown, paths)
            (out / "report.html").write_text(html, encoding="utf-8", newline="\n")
            clock.lap("draw")
            write_metrics(metrics, found.metrics)
            clock.write(seconds)

        run_cached("evaluate", params, inputs_of(paths), [out, plots, metrics, seconds], make)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    gates = json.loads(metrics.read_text(encoding="utf-8"))["gates"]
    failed = [name for name, passed in gates.items() if not passed]
    click.echo(f"evaluate: gates that failed: {', '.join(failed) or 'none'}")


if __name__ == "__main__":
    main()
