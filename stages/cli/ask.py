"""`koqa ask`."""

import gc
import json
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from stages.cli.options import one_sentence_errors

MODELS = ("base", "sft", "ppo")


@click.command()
@click.argument("questions", nargs=-1)
@click.option(
    "--model",
    "chosen",
    type=click.Choice([*MODELS, "all"]),
    default="ppo",
    show_default=True,
    help="Who answers.",
)
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="More questions: a line each, or JSON Lines with the key question.",
)
@click.option("--sample", type=int, metavar="SEED", help="Sample at ppo.temperature.  [greedy]")
@click.option("--scores/--no-scores", default=True, help="Reward model and judge.  [default: yes]")
@click.option("--rag/--no-rag", default=None, help="With passages.  [where data/index has them]")
@click.option("--json", "as_json", is_flag=True, help="A JSON object per answer.")
def main(
    questions: tuple[str, ...],
    chosen: str,
    file: Path | None,
    sample: int | None,
    scores: bool,
    rag: bool | None,
    as_json: bool,
) -> None:
    """Ask the models of data/ a question.

    Answers appear as they are decoded, then their scores in standard deviations of SFT's answers.
    With passages, they are below the question. Below an answer that none of them states is one
    that they state, of the same model to each of them alone, or that there is none.

    \b
        koqa ask "대한민국의 수도는 어디인가요?"
        koqa ask --model all --json --file questions.txt
    """
    names = MODELS if chosen == "all" else (chosen,)
    with one_sentence_errors():
        everything = [*questions, *(_read(file) if file else ())]
        if not everything:
            raise ValueError('no question; expected one, as in: koqa ask "일본의 수도는?"')
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        gc.disable()  # what is imported stays: a search for garbage in it only takes time
        from stages.rlhf import runtime
        from stages.rlhf.bot.models import Bot, BotParams
        from stages.rlhf.bot.stream import Text
        from stages.rlhf.chat import cited
        from stages.rlhf.config.base import load

        gc.freeze()
        gc.enable()
        params = load(BotParams)
        runtime.start(params.threads, params.seed, "ask")
        bot = Bot(params, names=names, scored=scores)
        prompts = [bot.prompt(question) for question in everything]
        passages = bot.passages(rag)
        shown = [passages(question) if passages else () for question in everything]
        if passages:
            prompts = [bot.prompt(*both) for both in zip(everything, shown, strict=True)]
        seeds = None if sample is None else [sample]
        for number, (question, prompt) in enumerate(zip(everything, prompts, strict=True)):
            if not as_json:
                click.echo(f"{chr(10) if number else ''}{click.style(question, bold=True)}")
                for index, passage in enumerate(shown[number], 1):
                    click.echo(click.style(f" [{index}]  {passage}", dim=True))
            for name in names:
                text = Text(bot.codec)
                if not as_json:
                    click.echo(click.style(f"{name:>4}  ", fg="cyan"), nl=False)
                for step in bot.stream(name, [prompt], seeds):
                    _show(text.add(step[0]), as_json)
                _show(text.rest(), as_json)
                (found,) = bot.scores([(prompt, text.ids)]) or (None,)
                row = {"question": question, "model": name, "answer": bot.codec.text(text.ids)}
                row |= {"tokens": len(text.ids), "ended": text.ended}
                row |= {"made_at": bot.made_at(name)}
                if passages:
                    answer, here = str(row["answer"]), (question, shown[number])
                    tries = partial(bot.tries, name, question)
                    row |= {"passages": shown[number], "cited": cited(answer)}
                    row |= {"source": passages.source(*here, answer)}
                    row |= {"checked": passages.checked(*here, answer, tries)}
                row |= {"reward": found and found.reward, "judge": found and found.judge}
                click.echo(json.dumps(row, ensure_ascii=False) if as_json else _verdict(row))


def _read(file: Path) -> Iterator[str]:
    """Questions of a file. Raises ValueError naming the file and the line."""
    if file.suffix == ".jsonl":
        from stages.rlhf.records import read_jsonl

        for number, row in enumerate(read_jsonl(file), 1):
            if not isinstance(row.get("question"), str):
                raise ValueError(f"{file}, line {number}: no text under the key question")
            yield row["question"]
        return
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8: {error}") from error
    yield from (line for line in lines if line.strip())


def _show(piece: str, as_json: bool) -> None:
    """A piece of an answer, for people: a model may say what a terminal would obey."""
    if piece and not as_json:
        click.echo(_plain(piece), nl=False)
        sys.stdout.flush()


def _plain(text: str) -> str:
    plain = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
    return plain.replace("\n", "\n      ")


def _verdict(row: dict[str, Any]) -> str:
    """What stands below an answer."""
    cut = "" if row["ended"] else " …"
    parts = [f"{row['tokens']} tokens{'' if row['ended'] else ', cut off'}"]
    if row["reward"] is not None:
        parts += [f"reward {row['reward']:+.2f} sd", f"judge {row['judge']:+.2f} sd"]
    if row["made_at"]:
        parts.append(f"made at {row['made_at']}")
    below = ""
    if row.get("passages") and row["source"] is None and row["checked"] != row["answer"]:
        below = f"\n   in the passages: {_plain(row['checked'])}"
    return f"{cut}\n      " + click.style(", ".join(parts), dim=True) + below
