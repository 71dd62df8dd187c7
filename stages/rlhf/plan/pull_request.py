"""The report of `koqa report`, for a pull request or a terminal: text from `Changes`.

The interval of a change follows from those of its two values, as if the two runs shared nothing
(MOVER: Zou & Donner 2008, Statistics in Medicine 27, 1693-1702). They share the test questions, so
it is rather too wide; the noise of training, another seed's, is not in it.
"""

from collections.abc import Iterable, Sequence
from math import hypot

from stages.rlhf.plan.changes import Change, Changes, Value

FIGURES = {  # file -> what to look for; labels in the figures are Korean
    "plots/evaluate/ppo_curves.png": (
        "PPO on validation against √KL: chrF on the left; on the right the reward model (circles)"
        " and the judge (squares). Over-optimisation is where the reward rises and the others fall."
    ),
    "plots/evaluate/13_similarity.png": (
        "Cosine similarity to the reference on test: base, SFT, PPO, in percent of the answers."
    ),
}
MOST_PARAMS = 20  # named in a report; the others are counted
MOST_NAMES = 5  # of headlines that are no more
NOTE = (
    "Intervals are 95% over test questions; a change in {bold} has one without 0. That of a change"
    " treats the runs as independent, and another seed may differ by more."
)


def interval_of_change(old: Value, new: Value) -> tuple[float, float] | None:
    """95% interval of new - old, in the metric's unit; None without intervals, or without width."""
    if old.interval is None or new.interval is None:
        return None
    before, after = float(old.value), float(new.value)
    (old_low, old_high), (new_low, new_high) = old.interval, new.interval
    if old_low == old_high and new_low == new_high:
        return None
    change = after - before
    return (
        change - hypot(after - new_low, old_high - before),
        change + hypot(new_high - after, before - old_low),
    )


def report(
    found: Changes, markdown: bool = False, figures: Iterable[str] = (), images: str = ""
) -> str:
    """The report as plain text, or as Markdown with `figures`, whose links begin with `images`."""
    commit = found.commit[:7]
    named = commit if found.commit.startswith(found.base) else f"{found.base} ({commit})"
    blocks = [f"## Results against {named}" if markdown else f"Results against {named}"]
    blocks += [_gates(found, markdown)]
    if found.missing:
        blocks.append(f"Not there yet: {', '.join(found.missing)}; run dvc repro.")
    shown = [change for change in found.headlines if change.new]
    changed = [change for change in shown if not change.same]
    known = any(change.old for change in found.headlines)
    if not known:
        blocks.append(f"No earlier values: {named} has no metrics.")
    elif not changed:
        blocks.append(f"None of {len(shown)} headlines changed.")
    else:
        blocks.append(f"{len(changed)} of {len(shown)} headlines changed.")
    if changed:
        blocks.append(_headlines(changed, commit, markdown))
    if any(change.old and change.old.interval for change in changed):
        blocks.append(NOTE.format(bold="bold" if markdown else "stars"))
    if not found.same_embedder:
        blocks.append("Another embedder: cosines before and after cannot be compared.")
    gone = [f"{c.source} {c.key}" for c in found.headlines if c.old and not c.new]
    if gone:
        blocks.append(f"No headline any more: {_some(gone, MOST_NAMES)}.")
    blocks.append(_params(found.params, markdown))
    if found.params and known and not changed:
        blocks.append("Params changed and no headline did: has dvc repro run since?")
    if markdown and (unchanged := [change for change in shown if change.same]):
        rows = [[c.source, f"`{c.key}`", _value(c.new)] for c in unchanged]
        table = _table(["stage", "metric", "this"], rows, markdown)
        summary = f"<summary>{len(rows)} unchanged headlines</summary>"
        blocks.append(f"<details>{summary}\n\n{table}\n\n</details>")
    prefix = f"{images.rstrip('/')}/" if images else ""
    for file in figures:
        title, _, _ = FIGURES[file].partition(":")
        blocks.append(f"![{title}]({prefix}{file})\n\n{FIGURES[file]}")
    return "\n\n".join(blocks)


def _gates(found: Changes, markdown: bool) -> str:
    """The gates of `evaluate`: the failed by name, with what they were."""
    verdicts = [gate for gate in found.gates if gate.new]
    failed = [gate for gate in verdicts if gate.new and not gate.new.value]
    names = []
    for gate in failed:
        was = "no earlier value" if not gate.old else "passed" if gate.old.value else "failed"
        names.append(f"{gate.key.removeprefix('gates.')} (before: {was})")
    if names:
        text = f"Gates that failed: {', '.join(names)}."
        text = f"**{text}**" if markdown else text
    elif verdicts:
        text = f"All {len(verdicts)} gates pass."
    else:
        text = "No gates: stage evaluate has not run."
    for name, reason in found.unknown_gates.items():
        text += f" Unknown: {name} ({reason})."
    return text


def _headlines(changes: Sequence[Change], commit: str, markdown: bool) -> str:
    header = ["stage", "metric", commit, "this", "change"]
    rows = []
    for change in changes:
        metric = f"`{change.key}`" if markdown else change.key
        values = [_value(value) for value in (change.old, change.new)]
        rows.append([change.source, metric, *values, _change(change, markdown)])
    return _table(header, rows, markdown)


def _change(change: Change, markdown: bool) -> str:
    """new - old with its interval, emphasised where that is without 0."""
    old, new = change.old, change.new
    if not old or not new:
        return ""
    if any(isinstance(value.value, bool | str) for value in (old, new)):
        return "changed"
    difference = _number(float(new.value) - float(old.value), "+")
    if (interval := interval_of_change(old, new)) is None:
        return difference
    low, high = interval
    text = f"{difference} [{_number(low, '+')}, {_number(high, '+')}]"
    if low <= 0 <= high:
        return text
    return f"**{text}**" if markdown else f"*{text}*"


def _value(value: Value | None) -> str:
    if value is None:
        return "–"
    text = _number(value.value)
    if value.interval is None:
        return text
    low, high = map(_number, value.interval)
    return f"{text} [{low}, {high}]"


def _number(value: bool | int | float | str, sign: str = "") -> str:
    """Four decimals below 10 and two above; a smaller one in full, whole numbers as they are."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    if float(value).is_integer() and abs(value) >= 1:
        return f"{int(value):{sign}}"
    if 0 < abs(value) < 0.0001:
        return f"{value:{sign}.1e}"
    return f"{value:{sign}.{4 if abs(value) < 10 else 2}f}"


def _params(params: Sequence[Change], markdown: bool) -> str:
    if not params:
        return "No params changed."
    tick = "`" if markdown else ""
    lines = []
    for change in params:
        old, new = (
            "none" if value is None else str(value.value) or '""'
            for value in (change.old, change.new)
        )
        lines.append(f"{tick}{change.key}{tick} {old} → {new}")
    return f"Params: {_some(lines, MOST_PARAMS)}."


def _some(names: Sequence[str], most: int) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _table(header: list[str], rows: list[list[str]], markdown: bool) -> str:
    """The first two columns are words, the others numbers."""
    if markdown:
        lines = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
        cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in [*lines, *cells])
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [header, *rows]
    )
