"""`koqa export`."""

import warnings
from pathlib import Path

import click

from stages.cli.options import one_sentence_errors


@click.command()
@click.option(
    "--model",
    "name",
    type=click.Choice(["base", "sft", "ppo", "rm"]),
    default="ppo",
    show_default=True,
    help="Which of data/.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--adapter", is_flag=True, help="The adapter alone, for peft.  [merged]")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the weights that are written; the merge is in float32.",
)
@click.option("--questions", type=click.IntRange(min=1), default=64, show_default=True)
@click.option(
    "--served/--no-served",
    default=None,
    help="Compare what `transformers serve` answers, too.  [default: if the extra is installed]",
)
def main(
    name: str, out: Path, adapter: bool, dtype: str, questions: int, served: bool | None
) -> None:
    """Write a model of data/ for transformers or peft.

    Before the folder gets its name, it must give the same greedy tokens as the model in data/ for
    as many test questions (a reward model: the same scores); else nothing is written.
    """
    with one_sentence_errors():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        from stages.rlhf import runtime
        from stages.rlhf.bot import export
        from stages.rlhf.bot.merge import to_export
        from stages.rlhf.bot.model_card import card
        from stages.rlhf.bot.models import BotParams
        from stages.rlhf.bot.served import can_serve
        from stages.rlhf.config.base import load
        from stages.rlhf.records import SftRow, read_rows
        from stages.rlhf.report.comparison import spread

        params, data = load(BotParams), Path("data")
        if adapter and name == "rm":
            raise ValueError("--adapter is of a language model; a reward model has a head besides")
        runtime.start(params.threads, params.seed, "export")
        rows = spread(read_rows(data / "preprocess" / "sft" / "test.jsonl", SftRow), questions)
        test_questions = [row.question for row in rows]
        bot = to_export(params, data, ("sft",) if name == "rm" else (name,), name == "rm")
        if name == "rm":
            write = export.export_reward(bot, data, dtype, test_questions)
        elif adapter:
            write = export.export_adapter(bot, name, data)
        else:
            if served and not can_serve():
                raise ValueError('--served needs more packages: pip install -e ".[serve]"')
            served = can_serve() if served is None else served
            write = export.export_merged(bot, name, data, dtype, test_questions, served)
        readme = card(name, data, Path("metrics"), Path("dvc.lock"), params.model, dtype)
        found = export.in_draft(out, write, readme)
    click.echo(f"{out}: {found}")
