"""Speech levels and sentence ends of `measure/style.py` beside kiwipiepy's tags, on real answers.

python -m tests.benchmarks.korean_style SFTlabel.json [--half develop|report] [--examples 3]

kiwipiepy (Apache-2.0, about 105 MB with its model) is no dependency of koqa: `pip install
kiwipiepy`. Its level of a sentence is that of the last morpheme: EF or the particle 요 tell one,
EC and every other tag none. Answers are halved by their hash: rules are mended on `develop`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from stages.rlhf.korean import clean, sentence_ends
from stages.rlhf.measure.style import PLAIN, POLITE, sentences, speech_level

LEVELS = (POLITE, PLAIN, None)
POLITE_ENDINGS = ("요", "죠", "니다", "니까", "시다", "오", "소서", "여")
CAUSAL = ("니까", "으니까")  # "because", not the formal question: no level, whatever its tag

Token = tuple[str, str]  # form, tag


def answers(path: Path, half: str | None) -> list[str]:
    """The distinct answers of an AI-Hub SFT file, or one half of them."""
    rows = json.loads(path.read_text(encoding="utf-8"))["data_info"]
    found = sorted({clean(row["answer"]["contents"]) for row in rows})
    if half is None:
        return found
    odd = half == "report"
    return [a for a in found if (hashlib.sha256(a.encode()).digest()[0] % 2 == 1) == odd]


def tagged_level(tokens: list[Token]) -> str | None:
    """The level that kiwipiepy's last morpheme tells."""
    words = [token for token in tokens if token[1][0] not in "SWZ"]
    if not words:
        return None
    form, tag = words[-1]
    if tag == "JX" and form in ("요", "이요"):
        return POLITE
    if tag != "EF" or form in CAUSAL:
        return None
    return POLITE if form.endswith(POLITE_ENDINGS) else PLAIN


def ending(tokens: list[Token]) -> str:
    """The last morpheme, by which disagreements are counted."""
    words = [token for token in tokens if token[1][0] not in "SWZ"]
    return "/".join(words[-1]) if words else "-"


def compare_levels(kiwi: Any, texts: list[str], examples: int) -> None:
    """Agreement, confusion counts and the commonest disagreements, printed."""
    spoken = [sentence for text in texts for sentence in sentences(text)]
    counts: Counter[tuple[str | None, str | None]] = Counter()
    by_ending: dict[tuple[str | None, str | None, str], list[str]] = {}
    for sentence, found in zip(spoken, kiwi.tokenize(spoken), strict=True):
        tokens = [(token.form, token.tag) for token in found]
        ours, theirs = speech_level(sentence), tagged_level(tokens)
        counts[ours, theirs] += 1
        if ours != theirs:
            by_ending.setdefault((ours, theirs, ending(tokens)), []).append(sentence)
    same = sum(counts[level, level] for level in LEVELS)
    click.echo(f"{len(spoken)} sentences, same level: {same} ({same / len(spoken):.2%})")
    click.echo("rules \\ kiwi " + " ".join(f"{level!s:>8}" for level in LEVELS))
    for ours in LEVELS:
        click.echo(f"{ours!s:>12} " + " ".join(f"{counts[ours, one]:8}" for one in LEVELS))
    for level in LEVELS:
        theirs_all = sum(counts[one, level] for one in LEVELS)
        ours_all = sum(counts[level, one] for one in LEVELS)
        both = counts[level, level]
        click.echo(
            f"{level!s:>12} of kiwi's {both}/{theirs_all} = {both / max(1, theirs_all):.2%},"
            f" of the rules' {both}/{ours_all} = {both / max(1, ours_all):.2%}"
        )
    for key, members in sorted(by_ending.items(), key=lambda item: -len(item[1]))[:25]:
        click.echo(f"{len(members):5} rules {key[0]}, kiwi {key[1]}: {key[2]}")
        step = max(1, len(members) // max(1, examples))
        for sentence in members[::step][:examples]:
            click.echo(f"          ...{sentence[-40:]!r}")


def bare_ends(text: str, ends: list[int]) -> set[int]:
    """Ends as counts of the letters and digits before them, without the text's own end.

    kiwipiepy leaves the mark of a list's next item ("- ") with the sentence before it.
    """
    counted = [sum(c.isalnum() for c in text[:end]) for end in ends]
    return set(counted) - {0, sum(c.isalnum() for c in text)}


def boundaries(kiwi: Any, texts: list[str]) -> Iterator[tuple[str, set[int], set[int]]]:
    """Per text: its inner sentence ends by the rules, and by kiwipiepy."""
    for text in texts:
        theirs = [sentence.end for sentence in kiwi.split_into_sents(text)]
        yield text, bare_ends(text, sentence_ends(text)), bare_ends(text, theirs)


def compare_ends(kiwi: Any, texts: list[str], examples: int) -> None:
    """How many sentence ends the rules and kiwipiepy share, printed."""
    shared = ours_alone = theirs_alone = same = 0
    shown: dict[str, list[str]] = {"rules alone": [], "kiwi alone": []}
    for text, ours, theirs in boundaries(kiwi, texts):
        shared += len(ours & theirs)
        ours_alone += len(ours - theirs)
        theirs_alone += len(theirs - ours)
        same += ours == theirs
        places = [i for i, c in enumerate(text) if c.isalnum()]
        for name, ends in (("rules alone", ours - theirs), ("kiwi alone", theirs - ours)):
            shown[name] += [
                f"{text[max(0, places[e] - 25) : places[e]]!r}|{text[places[e] :][:15]!r}"
                for e in sorted(ends)
            ]
    click.echo(
        f"{len(texts)} answers, same inner ends: {same} ({same / max(1, len(texts)):.2%});"
        f" shared {shared}, rules alone {ours_alone}, kiwi alone {theirs_alone}"
    )
    for name, members in shown.items():
        step = max(1, len(members) // max(1, 5 * examples))
        for member in members[::step][: 5 * examples]:
            click.echo(f"  {name}: {member}")


@click.command(help=__doc__)
@click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--half", type=click.Choice(["develop", "report"]))
@click.option("--examples", default=0, help="Examples per disagreement.")
def main(data: Path, half: str | None, examples: int) -> None:
    """Print the comparison."""
    try:
        from kiwipiepy import Kiwi
    except ImportError:
        raise click.ClickException("kiwipiepy is missing: pip install kiwipiepy") from None
    kiwi, texts = Kiwi(num_workers=1), answers(data, half)
    compare_levels(kiwi, texts, examples)
    compare_ends(kiwi, texts, examples)


if __name__ == "__main__":
    main()
