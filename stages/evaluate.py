"""Stage `evaluate`: base, SFT and PPO on the test questions, greedy, against the references.

python -m stages.evaluate --base data/base --sft data/sft --ppo data/ppo/best --rm data/rm
    --embedder data/embedder --rows data/preprocess/sft/test.jsonl
    --out data/evaluate --metrics metrics/evaluate.json --plots plots/evaluate
"""

import shutil
from pathlib import Path
from typing import Any

import click

from stages.rlhf import embedder, evaluation, evaluation_figures, runtime
from stages.rlhf.chat import Codec
from stages.rlhf.config import Params, load_params
from stages.rlhf.generation import Answer, answer_questions
from stages.rlhf.models import check_card, load_causal_lm, load_sft, load_tokenizer
from stages.rlhf.records import SftRow, read_rows, write_jsonl, write_metrics
from stages.rlhf.reward_model import load_reward_model
from stages.rlhf.rollout import POLICY

Paths = dict[str, Path]


def answers_and_scores(
    params: Params, paths: Paths, questions: list[str], clock: runtime.Clock
) -> tuple[dict[str, list[Answer]], dict[str, list[float]]]:
    """Every model's greedy answers, and their scores by the reward model."""
    chosen = params.chosen
    stands_on = {"base": paths["base"], "sft": paths["sft"]}
    check_card(paths["rm"], stands_on)
    check_card(paths["ppo"], {**stands_on, "rm": paths["rm"]})
    codec = Codec(load_tokenizer(paths["base"]))

    def ask(model: Any) -> list[Answer]:
        return answer_questions(
            model, codec, questions, chosen.max_answer_tokens, chosen.generate.batch_size
        )

    answers = {"base": ask(load_causal_lm(paths["base"], chosen.dtype))}
    roles = load_sft(paths["base"], paths["sft"], chosen.dtype, chosen.lora)
    roles.load(POLICY, paths["ppo"])
    for name, role in {"sft": roles.reference, "ppo": POLICY}.items():
        with roles.use(role) as model:
            answers[name] = ask(model)
    clock.lap("generate")
    reward_model = load_reward_model(roles, paths["rm"])
    prompts = [codec.prompt_ids(question) for question in questions]
    scores = {}
    for name, said in answers.items():
        ids = [answer_ids(codec, answer) for answer in said]
        read = [(p, [a]) for p, a in zip(prompts, ids, strict=True)]
        scores[name] = reward_model.corrected_scores(read, codec).tolist()
    clock.lap("score")
    return answers, scores


def answer_ids(codec: Codec, answer: Answer) -> list[int]:
    """The answer's ids, with EOS where it ended by itself, or where it has no other token."""
    ids = codec.answer_ids(answer.text)
    return ids if answer.ended or len(ids) == 1 else ids[:-1]


def run(params: Params, paths: Paths, clock: runtime.Clock) -> tuple[dict[str, Any], Any, Any]:
    """The metrics, each model's measured answers, and the sample rows."""
    rows = evaluation.spread(read_rows(paths["rows"], SftRow), params.evaluate.max_questions)
    if not rows:
        raise ValueError(f"{paths['rows']}: no rows; test questions were expected")
    answers, scores = answers_and_scores(params, paths, [row.question for row in rows], clock)
    ruler = embedder.load(paths["embedder"])
    references = embedder.encode(ruler, [row.answer for row in rows])
    models = {}
    for name, said in answers.items():
        vectors = embedder.encode(ruler, [answer.text for answer in said])
        models[name] = evaluation.measure(said, scores[name], rows, vectors, references)
    clock.lap("measure")
    metrics = {
        "embedder_sha256": embedder.embedder_hash(paths["embedder"]),
        **evaluation.report(models, rows),
    }
    return metrics, models, evaluation.sample_rows(models, rows)


def folder_option(name: str) -> Any:
    """A required path option."""
    return click.option(f"--{name}", type=click.Path(path_type=Path), required=True)


@click.command(help=__doc__)
@folder_option("base")
@folder_option("sft")
@folder_option("ppo")
@folder_option("rm")
@folder_option("embedder")
@folder_option("rows")
@folder_option("out")
@folder_option("metrics")
@folder_option("plots")
def main(out: Path, metrics: Path, plots: Path, **paths: Path) -> None:
    """Compare the models on test."""
    clock = runtime.Clock()
    try:
        params = load_params()
        runtime.start(params.threads, params.seed, "evaluate")
        found, models, samples = run(params, paths, clock)
        shutil.rmtree(out, ignore_errors=True)
        write_jsonl(out / "samples.jsonl", samples)
        evaluation_figures.draw_all(models, samples, params.evaluate.samples_shown, plots)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    clock.lap("draw")
    write_metrics(metrics, found)
    clock.write(metrics.parent / "runtime" / metrics.name)


if __name__ == "__main__":
    main()
