"""Write the README's figures from the committed metrics: python -m tests.readme"""

import csv
import json
import re
from statistics import fmean
from typing import Any

from tests.conftest import ROOT

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


def ppo_benchmark_table() -> str:
    """metrics/tables/ppo_vs_trl.csv: PPO beside TRL 1.12's."""
    columns = ("policy", "micro_batch", "samples_per_second", "times_as_shipped", "times_patched")
    columns += ("generate_s", "score_s", "update_s", "answer_tokens", "peak_mib", "of_trl")
    titles = ["trains", "micro-batch", "answers/s", "times TRL as shipped", "times TRL patched"]
    titles += ["generate (s)", "score (s)", "update (s)", "answer tokens", "MiB", "of TRL's"]
    lines = [f"| | {' | '.join(titles)} |", f"|---|---|---|{'---:|' * (len(titles) - 2)}"]
    for row in table("ppo_vs_trl"):
        cells = " | ".join(row[key] for key in columns)
        lines.append(f"| {row['setting']}: {row['side']} | {cells} |")
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


def cell(row: dict[str, str], key: str, form: str = "{:.3f}") -> str:
    """A figure of a row; a dash where there is none."""
    return form.format(float(row[key])) if row[key] else "–"


def spanned(row: dict[str, str], key: str, form: str = "{:.3f}") -> str:
    """A figure of a row with its interval."""
    value, low, high = (cell(row, f"{key}{end}", form) for end in ("", "_ci_low", "_ci_high"))
    return f"{value} [{low}, {high}]"


def mean(rows: list[dict[str, str]], key: str) -> float:
    """Of a figure over rows."""
    return fmean(float(row[key]) for row in rows)


def points(rows: list[dict[str, str]], key: str) -> str:
    """PPO's mean of a share less SFT's, in points of a hundred."""
    return f"{100 * (mean(rows, f'ppo.{key}') - mean(rows, f'sft.{key}')):+.1f}"


def failed_gates(row: dict[str, str]) -> list[str]:
    """The gates of a run that did not pass."""
    gates = [key.removeprefix("gates.") for key in row if key.startswith("gates.")]
    return [gate for gate in gates if row[f"gates.{gate}"] != "True"]


def seeds_table() -> str:
    """metrics/tables/seeds.csv: every seed, then what the seeds say together."""
    rows = table("seeds")
    figures = {
        "cosine": ("unseen_wording.cosine", "{:.3f}"),
        "chrF": ("unseen_wording.chrf", "{:.1f}"),
        "exact": ("unseen_wording.exact", "{:.3f}"),
        "exact, never asked": ("never_asked.exact", "{:.3f}"),
        "exact, unseen endings": ("unseen_ending.exact", "{:.3f}"),
        "EOS": ("all.eos_rate", "{:.3f}"),
    }
    titles = [*figures, "decided", "KL", "best update"]
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    for row in rows:
        for model in ("base", "sft", "ppo"):
            cells = [cell(row, f"{model}.{key}", form) for key, form in figures.values()]
            if model == "ppo":
                cells += [cell(row, "ppo_vs_sft.all.win_rate_decided")]
                cells += [cell(row, "ppo.kl"), cell(row, "ppo.best_update", "{:.0f}")]
            else:
                cells += ["–"] * 3
            lines.append(f"| {row['row']}: {model} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", pooled_line(rows)])


def pooled_line(rows: list[dict[str, str]]) -> str:
    """What PPO does to SFT over all seeds; every seed asks the same questions."""
    exact = "unseen_wording.exact"
    left = (1 - mean(rows, f"ppo.{exact}")) / (1 - mean(rows, f"sft.{exact}"))
    each = [(1 - mean([row], f"ppo.{exact}")) / (1 - mean([row], f"sft.{exact}")) for row in rows]
    least, most = (f"{100 * (1 - share):.0f}" for share in (max(each), min(each)))
    contains = ", ".join(f"{points(rows, f'{kind}.contains')} ({KINDS[kind]})" for kind in KINDS)
    decided = [mean([row], "questions") - mean([row], "ppo_vs_sft.all.ties") for row in rows]
    rates = [float(row["ppo_vs_sft.all.win_rate_decided"] or 0) for row in rows]  # 0 decided: none
    wins = sum(rate * count for rate, count in zip(rates, decided, strict=True))
    passed, pair = sum(not failed_gates(row) for row in rows), "ppo_vs_sft.all"
    nearer, agrees = (
        mean(rows, f"{pair}.{key}") for key in ("chrf_win_rate_decided", "judge_agreement")
    )
    return (
        f"Over {len(rows)} seeds PPO removes {100 * (1 - left):.0f} % of SFT's inexact answers on"
        f" unseen wordings ({least} to {most} %). `contains` moves by {contains} points, repetition"
        f" by {points(rows, 'all.repetition')}, copying by {points(rows, 'all.copy_rate')}. The"
        f" judge prefers PPO on {wins / sum(decided):.3f} of {sum(decided):.0f} decided questions;"
        f" chrF does on {nearer:.3f} of those that it decides, and the judge says the same on"
        f" {agrees:.3f} of them."
        f" All gates pass with {passed} of {len(rows)} seeds. Made at commit {rows[0]['commit']}."
    )


def rivals_table() -> str:
    """metrics/tables/rivals.csv beside the same seeds of seeds.csv, and PPO's gain over a rival."""
    found = {row["row"]: row for row in table("rivals")}
    names = [name for name in found if " seed " not in name]
    seeds = [name.removeprefix(names[0]).strip() for name in found if name.startswith(names[0])]
    taught = [row for row in table("seeds") if row["row"] in seeds]
    keys = [f"{kind}.{key}" for kind in KINDS for key in ("chrf", "exact", "contains")]
    titles = [f"{KINDS[kind]}: {key}" for kind, key in (name.split(".") for name in keys)]
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    forms = ["{:.1f}" if key.endswith("chrf") else "{:.3f}" for key in keys]
    shown = list(zip(keys, forms, strict=True))
    for model in ("sft", "best_of_n"):
        cells = [form.format(mean(taught, f"{model}.{key}")) for key, form in shown]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    for name in names:
        lines.append(f"| {name} | {' | '.join(cell(found[name], *place) for place in shown)} |")
    cells = [form.format(mean(taught, f"ppo.{key}")) for key, form in shown]
    lines.append(f"| ppo | {' | '.join(cells)} |")
    gains = [f"{kind}.{key}_ppo_gain" for kind in KINDS for key in ("chrf", "exact")]
    titles = [f"{title}: {key}" for title in KINDS.values() for key in ("chrF", "exact")]
    lines += ["", f"| PPO's gain over | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    for name in names:
        cells = [
            spanned(found[name], key, "{:+.1f}" if "chrf" in key else "{:+.3f}") for key in gains
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    commit = found[names[0]]["commit"]
    return "\n".join([*lines, "", f"Means of {len(taught)} seeds. Made at commit {commit}."])


def control_table() -> str:
    """metrics/tables/control.csv: data in which form and truth are confounded, and no defences."""
    rows = table("control")
    keys = [f"{kind}.{key}" for kind in KINDS for key in ("chrf", "exact")]
    titles = [f"{title}: {key}" for title in KINDS.values() for key in ("chrF", "exact")]
    lines = [f"| | gate gain (sd) | best update | {' | '.join(titles)} |"]
    lines.append(f"|---|{'---:|' * (len(titles) + 2)}")
    for row in rows:
        for model in ("sft", "ppo"):
            cells = ["–", "–"]
            if model == "ppo":
                cells = [spanned(row, "gate.gain"), cell(row, "ppo.best_update", "{:.0f}")]
            forms = ["{:.1f}" if key.endswith("chrf") else "{:.3f}" for key in keys]
            cells += [
                cell(row, f"{model}.{key}", form) for key, form in zip(keys, forms, strict=True)
            ]
            lines.append(f"| {row['row']}: {model} | {' | '.join(cells)} |")
    lines += ["", *(control_line(row) for row in rows)]
    return "\n".join([*lines, f"Made at commit {rows[0]['commit']}."])


def control_line(row: dict[str, str]) -> str:
    """Whether gate and gates of a run passed, and what came of PPO."""
    opens = "opens" if row["gate.passed"] == "True" else "stays shut"
    kept = f"update {cell(row, 'ppo.best_update', '{:.0f}')} is kept"
    if row["ppo.skipped"] == "True":
        kept = f"SFT's weights are the result ({row['ppo.skipped_reason']})"
    name, failed = row["row"].capitalize(), ", ".join(failed_gates(row)) or "none"
    return f"{name}: the gate {opens}; {kept}; gates that failed: {failed}."


def verdict_table() -> str:
    """PPO against SFT, question by question, and the gates."""
    found = metrics("evaluate")
    keys = {"chrf_gain": "chrF gain", "exact_gain": "exact gain", "contains_gain": "contains gain"}
    keys |= {"win_rate": "win rate", "win_rate_decided": "decided"}
    keys |= {"win_rate_length_controlled": "length-controlled"}
    keys |= {"chrf_win_rate_decided": "decided by chrF", "judge_agreement": "judge agrees"}
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
    "seeds": seeds_table,
    "rivals": rivals_table,
    "control": control_table,
    "ppo_benchmark": ppo_benchmark_table,
}
FILES = {
    "ppo_benchmark": ("ppo_vs_trl",),
    "seeds": ("seeds",),
    "rivals": ("rivals", "seeds"),
    "control": ("control",),
}


def due(name: str) -> bool:
    """Whether the README must hold this block: the tables it is made of have been made."""
    files = (ROOT / "metrics" / "tables" / f"{file}.csv" for file in FILES.get(name, ()))
    return all(file.is_file() for file in files)


def rendered(text: str) -> str:
    """The README with every marked block made anew."""
    for name, make in TABLES.items():
        if not due(name):
            assert f"<!-- {name} -->" not in text, f"README.md has block {name}, its table is not"
            continue
        pattern = rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)"
        text, count = re.subn(
            pattern, lambda m, t=make: f"{m[1]}{t()}{m[2]}", text, flags=re.DOTALL
        )
        assert count == 1, f"README.md has {count} blocks {name}; one was expected"
    return text


if __name__ == "__main__":
    file = ROOT / "README.md"
    file.write_text(rendered(file.read_text("utf-8")), "utf-8")
