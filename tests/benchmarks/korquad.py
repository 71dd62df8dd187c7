"""KorQuAD 1.0, open book: did alignment cost the model what it could read?

python -m tests.benchmarks.korquad KorQuAD_v1.0_dev.json --questions 500 --out korquad.csv

Reads data/base, data/sft and data/ppo/best of the run in this folder, asks each the same questions
with their paragraphs, greedily, and prints exact match and F1 in percent with 95 % intervals
(paired bootstrap over questions). Normal forms and F1 over characters are those of KorQuAD's own
evaluation (Lim, Kim and Lee 2019, arXiv 1909.07005). An answer is the first line of what a model
says: base models go on.
"""

import json
import random
import string
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pandas as pd

from stages.rlhf import runtime
from stages.rlhf.chat import Codec
from stages.rlhf.config.models import GenerationScale
from stages.rlhf.config.whole import load_params
from stages.rlhf.decoding.generation import greedy_responses
from stages.rlhf.measure.win_rate import mean_and_interval
from stages.rlhf.model.roles import POLICY
from stages.rlhf.model.store import load_base, load_sft, load_tokenizer

TASK = "{context}\n\n윗글에서 답을 찾아 짧게 답하세요. {question}"
MAX_NEW_TOKENS = 48
RESAMPLES = 1000
_SYMBOLS = str.maketrans(dict.fromkeys("'\"《》<>〈〉()‘’", " "))
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, ""))


class Question(NamedTuple):
    """A question about a paragraph, and the answers that count as right."""

    context: str
    question: str
    answers: tuple[str, ...]


def read(file: Path, count: int, seed: int) -> list[Question]:
    """`count` questions of a file in SQuAD's form, drawn by the seed; all if there are no more."""
    articles = json.loads(file.read_text(encoding="utf-8"))["data"]
    found = [
        Question(p["context"], q["question"], tuple(a["text"] for a in q["answers"]))
        for article in articles
        for p in article["paragraphs"]
        for q in p["qas"]
    ]
    chosen = random.Random(runtime.derive_seed(seed, "korquad")).sample(
        range(len(found)), min(count, len(found))
    )
    return [found[i] for i in sorted(chosen)]


def normal(text: str) -> str:
    """Lower case, without brackets, quotes and punctuation, single spaces."""
    return " ".join(text.translate(_SYMBOLS).lower().translate(_PUNCTUATION).split())


def exact_match(answer: str, rights: tuple[str, ...]) -> float:
    """1 if the answer is one of the right ones, else 0."""
    return float(any(normal(answer) == normal(right) for right in rights))


def f1(answer: str, rights: tuple[str, ...]) -> float:
    """In [0, 1]: the best harmonic mean of precision and recall over characters, spaces aside."""
    return max(_f1(normal(answer).replace(" ", ""), normal(r).replace(" ", "")) for r in rights)


def _f1(one: str, other: str) -> float:
    shared = sum((Counter(one) & Counter(other)).values())
    return 2 * shared / (len(one) + len(other)) if shared else 0.0


def asked(
    model: Any, codec: Codec, questions: list[Question], scale: GenerationScale
) -> pd.DataFrame:
    """A row per question: the answer, exact_match and f1."""
    texts = [TASK.format(context=q.context, question=q.question) for q in questions]
    responses = greedy_responses(model, codec, texts, MAX_NEW_TOKENS, scale)
    answers = [(r.text.strip().splitlines() or [""])[0] for r in responses]
    return pd.DataFrame(
        {
            "answer": answers,
            "exact_match": [
                exact_match(a, q.answers) for a, q in zip(answers, questions, strict=True)
            ],
            "f1": [f1(a, q.answers) for a, q in zip(answers, questions, strict=True)],
        }
    )


def table(models: dict[str, pd.DataFrame], seed: int) -> pd.DataFrame:
    """A row per model: means with intervals, and the difference from the base model."""
    rows: list[dict[str, Any]] = []
    for name, found in models.items():
        row: dict[str, Any] = {"model": name, "questions": len(found)}
        for metric in ("exact_match", "f1"):
            values = 100 * found[metric].to_numpy(dtype=np.float64)
            base = 100 * models["base"][metric].to_numpy(dtype=np.float64)
            for key, column in ((metric, values), (f"{metric}_gain", values - base)):
                row |= mean_and_interval(key, column, RESAMPLES, seed, "no questions")
        rows.append(row)
    return pd.DataFrame(rows)


@click.command(help=__doc__)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--questions", default=500)
@click.option("--batch-size", default=16)
@click.option("--out", type=click.Path(path_type=Path), help="A CSV of the table.")
def main(file: Path, questions: int, batch_size: int, out: Path | None) -> None:
    """Ask base, SFT and PPO."""
    params, data = load_params(), Path("data")
    runtime.start(params.threads, params.seed, "korquad")
    chosen = read(file, questions, params.seed)
    model = params.base_model
    scale = model.generate.model_copy(update={"batch_size": batch_size})
    codec = Codec(load_tokenizer(data / "base"))
    bare = load_base(data / "base", model.dtype, model.lora)
    roles = load_sft(data / "base", data / "sft", model.dtype, model.lora, bare)
    roles.load(POLICY, data / "ppo" / "best")
    found: dict[str, pd.DataFrame] = {}
    for name, holder, role in (
        ("base", bare, None),
        ("sft", roles, roles.reference),
        ("ppo", roles, POLICY),
    ):
        with holder.use(role) as used:
            found[name] = asked(used, codec, chosen, scale)
        for i in range(0, len(chosen), max(1, len(chosen) // 10)):
            said = found[name]["answer"].iloc[i]
            click.echo(f"{name}: {chosen[i].question} -> {said} [{' | '.join(chosen[i].answers)}]")
    done = table(found, params.seed)
    click.echo(done.to_string(index=False, float_format="{:.2f}".format))
    if out:
        done.to_csv(out, index=False, float_format="%.3f")


if __name__ == "__main__":
    main()
