"""What passages add, as a figure: python -m tests.benchmarks.rag_figure

metrics/tables/rag.csv, means over its seeds -> plots/benchmarks/rag.png, with a CSV beside it.
"""

import pandas as pd

from stages.rlhf.report import figures
from tests.conftest import ROOT

TABLE = ROOT / "metrics" / "tables" / "rag.csv"
PLOT = ROOT / "plots" / "benchmarks" / "rag"
KINDS = {
    "unseen_wording": "처음 보는 표현",
    "never_asked": "물은 적 없는 사실",
    "unseen_ending": "처음 보는 어미",
}
SIDES = {"closed.ppo": "근거 없이", "rag.ppo": "찾은 근거로", "rag.checked": "찾은 근거와 맞춰"}
GONE = {"evidence_out.ppo": "PPO", "evidence_out.checked": "근거와 맞춰"}
PANELS = {  # by metric, for each kind of question
    "exact": "글자까지 맞은 답의 비율",
    "wrong_fact_rate": "값을 말한 답 가운데 틀린 비율",
}


def points() -> pd.DataFrame:
    """A row per bar: panel, side, label, mean share over the seeds."""
    table = pd.read_csv(TABLE)
    bars = [
        (title, side_title, label, f"{side}.{kind}.{key}")
        for key, title in PANELS.items()
        for side, side_title in SIDES.items()
        for kind, label in KINDS.items()
    ]
    bars += [
        ("답이 있는 문단을 뺐을 때", title, label, f"{side}.all.{key}")
        for side, title in GONE.items()
        for key, label in {"declined": "모른다고 답함", "contains": "기억으로 맞힘"}.items()
    ]
    rows = [(*names, table[column].mean()) for *names, column in bars]
    return pd.DataFrame(rows, columns=["panel", "side", "label", "share"])


def main() -> None:
    """Draw it."""
    table = points()
    titles = list(dict.fromkeys(table["panel"]))
    above = "PPO의 답: 근거 문단과 함께, 그리고 없이"
    figure, axes = figures.new_figure(above, columns=len(titles), width=13, height=3.8)
    for axis, title in zip(axes, titles, strict=True):
        own = table[table["panel"] == title]
        sides = own.groupby("side", sort=False)["share"]
        labels = list(dict.fromkeys(own["label"]))
        form = "{:.2f}" if own["share"].max() > 0.1 else "{:.3f}"
        broken = ["\n".join(label.rsplit(" ", 1)) for label in labels]
        figures.bars(axis, broken, {str(name): [*values] for name, values in sides}, form)
        axis.set(ylabel=title)
    figures.save_with_table(figure, table, PLOT)


if __name__ == "__main__":
    main()
