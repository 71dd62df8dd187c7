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
SIDES = {
    "closed.ppo": "근거 없이",
    "rag.ppo": "찾은 근거로",
    "rag.checked": "찾은 근거와 맞춰",
}
GONE = {"ppo": "PPO", "checked": "근거와 맞춰"}
SHARES = {"declined": "모른다고 함", "wrong_fact_rate": "틀린 사실", "contains": "기억으로 맞힘"}


def points() -> pd.DataFrame:
    """A row per bar: panel, side, label, mean share over the seeds."""
    table = pd.read_csv(TABLE)
    bars = [
        ("contains", title, label, f"{side}.{kind}.contains")
        for side, title in SIDES.items()
        for kind, label in KINDS.items()
    ]
    bars += [
        ("evidence_out", title, label, f"evidence_out.{side}.all.{key}")
        for side, title in GONE.items()
        for key, label in SHARES.items()
    ]
    rows = [(*names, table[column].mean()) for *names, column in bars]
    return pd.DataFrame(rows, columns=["panel", "side", "label", "share"])


def main() -> None:
    """Draw it."""
    table = points()
    figure, axes = figures.new_figure(
        "근거 문단과 함께, 그리고 없이", columns=2, width=9.5, height=3.8
    )
    titles = {"contains": "정답을 담은 답", "evidence_out": "답이 있는 문단을 뺐을 때"}
    for axis, (panel, above) in zip(axes, titles.items(), strict=True):
        own = table[table["panel"] == panel]
        labels = list(dict.fromkeys(own["label"]))
        sides = own.groupby("side", sort=False)["share"]
        figures.bars(axis, labels, {str(name): [*values] for name, values in sides}, "{:.2f}")
        axis.set(title=above, ylabel="답의 비율")
    figures.save_with_table(figure, table, PLOT)


if __name__ == "__main__":
    main()
