"""Write the README's figures from the committed metrics: python -m tests.readme"""

import csv
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COLUMNS = {
    "cosine": "{:.3f}",
    "chrf": "{:.1f}",
    "exact": "{:.3f}",
    "contains": "{:.3f}",
    "wrong_fact_rate": "{:.3f}",
    "eos_rate": "{:.3f}",
    "repetition": "{:.3f}",
    "length": "{:.1f}",
}
BIAS = "length_correlation_given_rank"
KINDS = {
    "unseen_wording": "unseen wordings",
    "never_asked": "never-asked facts",
    "unseen_ending": "unseen endings",
}


def metrics(name: str) -> dict[str, Any]:
    """A file of metrics/."""
    found: dict[str, Any] = json.loads((ROOT / "metrics" / f"{name}.json").read_text("utf-8"))
    return found


def answers_table() -> str:
    """base, SFT, PPO and best-of-n on each kind of hold-out."""
    evaluate = metrics("evaluate")
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for kind, title in KINDS.items():
        for model in ("base", "sft", "ppo", "best_of_n"):
            block = evaluate[model]["by_kind"][kind]
            cells = [
                "–" if block[key] is None else form.format(block[key])
                for key, form in COLUMNS.items()
            ]
            lines.append(f"| {title}: {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(block: dict[str, Any], key: str) -> str:
    """A value with its interval."""
    low, high = (block[f"{key}_ci_{end}"] for end in ("low", "high"))
    return f"{block[key]:.3f} [{low:.3f}, {high:.3f}]"


def ranking_table() -> str:
    """The reward model on each kind of hold-out, and the judge on its own questions."""
    rm, judge = metrics("rm"), metrics("judge")
    columns = ("accuracy", "length_only_accuracy", "accuracy_length_matched", "kendall_tau", "top1")
    lines = [f"| | {' | '.join(columns)} | {BIAS} | the same, corrected |"]
    lines.append(f"|---|{'---:|' * (len(columns) + 2)}")
    rows = [(KINDS[kind], rm["by_kind"][kind]) for kind in KINDS]
    for title, block in [*rows, ("judge, its own questions", judge)]:
        cells = [interval(block, "accuracy"), *(f"{block[key]:.3f}" for key in columns[1:])]
        corrected = block.get("length_corrected")
        cells += [f"{block[BIAS]:.3f}", f"{corrected[BIAS]:.3f}" if corrected else "–"]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gate_line() -> str:
    """The gate before PPO."""
    gate = metrics("judge")["gate"]["best_of_4"]
    correction = metrics("rm")["length_correction"]
    used = "is" if correction["applied"] else "is not"
    return (
        f"The gate: best-of-4 under the reward model gains {gate['gain']:.3f} sd"
        f" [{gate['gain_ci_low']:.3f}, {gate['gain_ci_high']:.3f}] by the judge over SFT's samples;"
        f" it {'opens' if gate['passed'] else 'stays shut'}. The length curve {used} applied:"
        f" accuracy {correction['validation_accuracy']:.3f} without and"
        f" {correction['validation_accuracy_corrected']:.3f} with it, where it was not fitted."
    )


def table(name: str) -> list[dict[str, str]]:
    """The rows of a file of metrics/tables/."""
    with (ROOT / "metrics" / "tables" / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def benchmark_table() -> str:
    """Reward model training beside TRL's."""
    names = {"trl": "TRL", "plain": "ours, scalar head", "hybrid": "ours, hybrid head"}
    lines = [
        "| | questions/s | times TRL | MiB above the start | of TRL's |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in table("rm_vs_trl"):
        cells = (row[k] for k in ("questions_per_second", "times_trl", "peak_mib", "of_trl"))
        lines.append(f"| {names[row['side']]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ablation_table() -> str:
    """metrics/tables/rm_ablation.csv, the columns that matter most."""
    rows = table("rm_ablation")
    columns = [f"{kind}.accuracy" for kind in KINDS]
    columns += ["unseen_wording.accuracy_length_matched", BIAS]
    columns += ["length_correlation_corrected", "gate_gain"]
    titles = ["unseen wordings", "never asked", "unseen endings", "length-matched"]
    titles += ["length bias", "corrected", "gate gain (sd)"]
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    for row in rows:
        cells = [f"{float(row[key]):.3f}" for key in columns]
        lines.append(f"| {row['row']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Made at commit {rows[0]['commit']}."])


def verdict_table() -> str:
    """PPO against SFT, question by question, and the gates."""
    found = metrics("evaluate")
    keys = {"chrf_gain": "chrF gain", "exact_gain": "exact gain", "contains_gain": "contains gain"}
    keys |= {"win_rate": "win rate", "win_rate_decided": "decided"}
    keys |= {"win_rate_length_controlled": "length-controlled"}
    lines = [f"| | {' | '.join(keys.values())} |", f"|---|{'---:|' * len(keys)}"]
    for kind, title in KINDS.items():
        block = found["ppo_vs_sft"]["by_kind"][kind]
        lines.append(f"| {title} | {' | '.join(interval(block, key) for key in keys)} |")
    gates = ", ".join(f"{k} {'passed' if v else 'FAILED'}" for k, v in found["gates"].items())
    return "\n".join([*lines, "", f"Gates: {gates}."])


def time_line() -> str:
    """Seconds of the training stages of the committed run."""
    stages = ("base", "sft", "rm", "judge", "ppo", "evaluate")
    seconds = {name: metrics(f"runtime/{name}")["total_s"] for name in stages}
    return ", ".join(f"{name} {round(s)} s" for name, s in seconds.items())


TABLES = {
    "answers": answers_table,
    "verdict": verdict_table,
    "ranking": ranking_table,
    "gate": gate_line,
    "ablation": ablation_table,
    "benchmark": benchmark_table,
    "time": time_line,
}


def rendered(text: str) -> str:
    """The README with every marked block made anew."""
    for name, make in TABLES.items():
        pattern = rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)"
        text, count = re.subn(
            pattern, lambda m, t=make: f"{m[1]}{t()}{m[2]}", text, flags=re.DOTALL
        )
        assert count == 1, f"README.md has {count} blocks {name}; one was expected"
    return text


if __name__ == "__main__":
    file = ROOT / "README.md"
    file.write_text(rendered(file.read_text("utf-8")), "utf-8")
