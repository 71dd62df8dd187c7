"""Write the README's figures from the committed metrics: python -m tests.readme"""

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
    """base, SFT and PPO on each kind of hold-out."""
    evaluate = metrics("evaluate")
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for kind, title in KINDS.items():
        for model in ("base", "sft", "ppo"):
            block = evaluate[model]["by_kind"][kind]
            cells = [
                "–" if block[key] is None else form.format(block[key])
                for key, form in COLUMNS.items()
            ]
            lines.append(f"| {title}: {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ranking_table() -> str:
    """The reward model on each kind of hold-out."""
    rm = metrics("rm")
    columns = ("accuracy", "length_only_accuracy", "accuracy_length_matched", "kendall_tau", "top1")
    columns += ("length_correlation_given_rank",)
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for kind, title in KINDS.items():
        cells = [f"{rm['by_kind'][kind][key]:.3f}" for key in columns]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def time_line() -> str:
    """Seconds of the training stages of the committed run."""
    stages = ("base", "sft", "rm", "ppo", "evaluate")
    seconds = {name: metrics(f"runtime/{name}")["total_s"] for name in stages}
    return ", ".join(f"{name} {round(s)} s" for name, s in seconds.items())


TABLES = {"answers": answers_table, "ranking": ranking_table, "time": time_line}


def rendered(text: str) -> str:
    """The README with every marked block made anew."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)"
        text, count = re.subn(
            pattern, lambda m, t=table: f"{m[1]}{t()}{m[2]}", text, flags=re.DOTALL
        )
        assert count == 1, f"README.md has {count} blocks {name}; one was expected"
    return text


if __name__ == "__main__":
    file = ROOT / "README.md"
    file.write_text(rendered(file.read_text("utf-8")), "utf-8")
