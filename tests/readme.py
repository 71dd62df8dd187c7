"""Write what the READMEs take from committed files: python -m tests.readme"""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from ruamel.yaml import YAML

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
SPEED = {"sentences_per_cpu_second": "sentences per CPU second"}
ENDS = ("_ci_low", "_ci_high")
BIAS = "length_correlation_given_rank"
KINDS = {
    "unseen_wording": "unseen wordings",
    "never_asked": "never-asked facts",
    "unseen_ending": "unseen endings",
}


ALL = "all"  # of all kinds of question, in metrics/tables/rag.csv
CONDITIONS = {"closed": "no passages", "rag": "passages found", "evidence_out": "evidence gone"}
ANSWERERS = {"base": "base", "sft": "SFT", "ppo": "PPO", "checked": "PPO checked"}

QUESTION = "페르 귄트 작곡가의 국적은 어디입니까?"
GLOSS = {  # for those who do not read Korean
    QUESTION: "What nationality is the composer of Peer Gynt?",
    "페르 귄트의 작곡가는 그리그입니다. 페르 귄트의 작곡가는 노르웨이 사람입니다.": (
        "The composer of Peer Gynt is Grieg. The composer of Peer Gynt is a Norwegian."
    ),
    "페르 귄트 작곡가의 나라는 노르웨이입니다. 페르 귄트의 작곡가는 노르웨이 사람입니다.": (
        "Peer Gynt's composer's country is Norway. The composer of Peer Gynt is a Norwegian."
    ),
}


def read(path: str) -> str:
    """A file of the repository. Tests read what git would commit: a run on this machine differs."""
    return (ROOT / path).read_text("utf-8")


def metrics(name: str) -> dict[str, Any]:
    """All numbers of a stage: its details, where it has a headline apart from them."""
    folder = "metrics" if name == "gate" else "metrics/details"
    found: dict[str, Any] = json.loads(read(f"{folder}/{name}.json"))
    return found


def runtimes() -> dict[str, dict[str, float]]:
    """By stage: times and memory."""
    folder = "metrics/runtime"
    names = sorted(file.stem for file in (ROOT / folder).glob("*.json"))
    return {name: json.loads(read(f"{folder}/{name}.json")) for name in names}


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
    """A value with its interval, or alone where there is none; a dash where it is None."""
    value, low, high = (block[f"{key}{end}"] for end in ("", *ENDS))
    if value is None or low is None:
        return "–" if value is None else f"{value:.3f}"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


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


STATES = {True: "opens", False: "stays shut", None: "is unknown, the judge being at chance"}


def gate_line() -> str:
    """The gate before PPO."""
    gate = metrics("gate")["best_of_4"]
    correction = metrics("rm")["length_correction"]
    used = "is" if correction["applied"] else "is not"
    return (
        f"The gate: best-of-4 under the reward model gains {gate['gain']:.3f} sd"
        f" [{gate['gain_ci_low']:.3f}, {gate['gain_ci_high']:.3f}] by the judge over SFT's samples;"
        f" it {STATES[gate['passed']]}. The length curve {used} applied:"
        f" accuracy {correction['validation_accuracy']:.3f} without and"
        f" {correction['validation_accuracy_corrected']:.3f} with it, where it was not fitted."
    )


def table(name: str) -> list[dict[str, str]]:
    """The rows of a file of metrics/tables/."""
    return list(csv.DictReader(read(f"metrics/tables/{name}.csv").splitlines()))


def whole_table(name: str, titles: Mapping[str, str], words: int = 1) -> str:
    """A file of metrics/tables/, the first columns `words`; a figure has its interval beside it."""
    rows = table(name)
    keys = [key for key in rows[0] if not key.endswith(ENDS)]
    heads = [titles.get(key, key) for key in keys]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * words}{'---:|' * (len(keys) - words)}"]
    for row in rows:
        named = [row[key] for key in keys[:words]]
        figures = [
            spanned(row, key) if f"{key}{ENDS[0]}" in row else plain(row[key])
            for key in keys[words:]
        ]
        lines.append(f"| {' | '.join([*named, *figures])} |")
    return "\n".join(lines)


def plain(figure: str) -> str:
    """To three decimals, or all where there are none or it is a small one."""
    return f"{float(figure):.3f}" if "." in figure and abs(float(figure)) >= 0.01 else figure


REAL = {
    "base": "base",
    "demonstrations": "SFT on demonstrations alone",
    "sft": "SFT",
    "best_of_n": "best of 4 of SFT's",
    "ppo": "PPO",
}


def real_table() -> str:
    """metrics/tables/real.csv: a pretrained model on Korean that people wrote, seed by seed."""
    forms = {
        "cosine": "{:.3f}",
        "chrf": "{:.1f}",
        "eos_rate": "{:.2f}",
        "repetition": "{:.2f}",
        "polite_rate": "{:.2f}",
        "length": "{:.0f}",
    }
    against = {"cosine_gain": "{:+.3f}", "win_rate_decided": "{:.2f}"}
    titles = ["cosine", "chrF", "ends", "loops", "polite", "characters"]
    titles += ["cosine above SFT's", "judge prefers it, where they differ"]
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    rows = table("real")
    for row in rows:
        if row["model"] in REAL:
            cells = [spanned(row, key, form) for key, form in forms.items()]
            cells += [spanned(row, key, form) for key, form in against.items()]
            name = f"seed {row['seed']}: {REAL[row['model']]}"
            lines.append(f"| {name} | {' | '.join(cells)} |")
    titles = ["accuracy", "length alone", "above it", "length-matched", "length, given rank"]
    titles += ["after the length curve: above length", "length, given rank"]
    keys = ["accuracy", "length_only_accuracy", "accuracy_above_length", "accuracy_length_matched"]
    keys += [BIAS, "corrected_accuracy_above_length", f"corrected_{BIAS}"]
    lines += ["", f"| | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    for row in rows:
        if row["model"] not in REAL:
            name = {"rm": "reward model", "judge": "judge"}[row["model"]]
            cells = [spanned(row, key) for key in keys]
            lines.append(f"| seed {row['seed']}: {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def korquad_table() -> str:
    """metrics/tables/korquad.csv: what alignment costs in reading."""
    titles = ["questions", "exact match (%)", "F1 (%)", "F1 above the base model's"]
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    for row in table("korquad"):
        cells = [spanned(row, key, "{:.1f}") for key in ("exact_match", "f1")]
        gain = "–" if row["model"] == "base" else spanned(row, "f1_gain", "{:+.1f}")
        cells = [row["questions"], *cells, gain]
        lines.append(f"| {REAL[row['model']]} | {' | '.join(cells)} |")
    return "\n".join(lines)


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


def agreement(language: str) -> str:
    """How well the default embedder agrees with people."""
    rows = {row["measure"]: row for row in table("embedder")}
    forms = {
        "en": "Cosines are of Google's multilingual Universal Sentence Encoder, from PyPI; its"
        " Spearman correlation with people on KLUE-STS is {} (chrF: {};"
        " [embedders](stages/rlhf/model/README.md#the-embedder)).",
        "ko": "코사인은 PyPI에서 설치되는 Google의 다국어 Universal Sentence Encoder로 재며,"
        " KLUE-STS에서 사람 평가와의 스피어만 상관은 {}입니다(chrF는 {},"
        " [임베딩 모델](stages/rlhf/model/README.md#the-embedder)).",
    }
    return forms[language].format(
        spanned(rows["default embedder"], "spearman"), cell(rows["chrF"], "spearman")
    )


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
    """A figure of a row with its interval; a dash where there is none."""
    if not row[key]:
        return cell(row, key)
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
    together = {row["row"]: row for row in table("seeds_pooled")}
    gains = "; ".join(
        f"{title} {spanned(together['sft'], f'{kind}.exact_ppo_gain', '{:+.3f}')} over SFT,"
        f" {spanned(together['best_of_n'], f'{kind}.exact_ppo_gain', '{:+.3f}')} over best of 4"
        for kind, title in KINDS.items()
    )
    wrong = ", ".join(
        f"{cell(together['sft'], f'{kind}.wrong_fact_rate')} to"
        f" {cell(together['ppo'], f'{kind}.wrong_fact_rate')} ({KINDS[kind]})"
        for kind in KINDS
    )
    decided = [mean([row], "questions") - mean([row], "ppo_vs_sft.all.ties") for row in rows]
    rates = [float(row["ppo_vs_sft.all.win_rate_decided"] or 0) for row in rows]  # 0 decided: none
    wins = sum(rate * count for rate, count in zip(rates, decided, strict=True))
    passed, pair = sum(not failed_gates(row) for row in rows), "ppo_vs_sft.all"
    nearer, agrees = (
        mean(rows, f"{pair}.{key}") for key in ("chrf_win_rate_decided", "judge_agreement")
    )
    return (
        f"PPO's gain in exact over {len(rows)} seeds, paired by question, 95% intervals over"
        f" questions: {gains}. Wrong facts, from SFT to PPO: {wrong}. Repetition moves by"
        f" {points(rows, 'all.repetition')} points, copying by {points(rows, 'all.copy_rate')}. The"
        f" judge prefers PPO on {wins / sum(decided):.3f} of {sum(decided):.0f} decided questions;"
        f" chrF does on {nearer:.3f} of those that it decides, and the judge says the same on"
        f" {agrees:.3f} of them."
        f" All gates pass with {passed} of {len(rows)} seeds. Made at commit {rows[0]['commit']}."
    )


def rivals_table() -> str:
    """metrics/tables/rivals.csv beside the seeds of its own commit, and PPO's gain over a rival."""
    found = {row["row"]: row for row in table("rivals")}
    names = [name for name in found if " seed " not in name]
    seeds = [name.removeprefix(names[0]).strip() for name in found if name.startswith(names[0])]
    taught = [row for row in table("seeds_earlier") if row["row"] in seeds]
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


def rl_rivals_table() -> str:
    """metrics/tables/rl_rivals.csv: exact by kind of question, and PPO's gain over each side."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for row in table("rl_rivals"):
        found.setdefault(row["side"], {})[row["kind"]] = row
    titles = [*KINDS.values(), *(f"PPO's gain: {kind}" for kind in KINDS.values())]
    lines = [f"| exact | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    for side, by_kind in found.items():
        cells = [f"{float(by_kind[kind]['exact']):.3f}" for kind in KINDS]
        cells += [
            "–" if side == "PPO" else spanned(by_kind[kind], "exact_ppo_gain", "{:+.3f}")
            for kind in KINDS
        ]
        lines.append(f"| {side} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rag_table() -> str:
    """metrics/tables/rag.csv: with and without passages, and how well refusals fit."""
    rows = table("rag")
    shares = ("exact", "contains", "wrong_fact_rate", "supported", "declined")
    columns = [(ALL, key) for key in shares]
    columns += [("never_asked", key) for key in ("exact", "contains", "wrong_fact_rate")]
    titles = [key if kind == ALL else f"{key}, never asked" for kind, key in columns]
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    for row in rows:
        for condition, title in CONDITIONS.items():
            for model, name in ANSWERERS.items():
                keys = [f"{condition}.{model}.{kind}.{key}" for kind, key in columns]
                if keys[0] in row:
                    cells = [cell(row, key) for key in keys]
                    lines.append(f"| {row['row']}: {title}, {name} | {' | '.join(cells)} |")
    lines.append("")
    for row in rows:
        found = [
            f"{name} precision {spanned(row, f'refusal.{model}.precision')},"
            f" recall {spanned(row, f'refusal.{model}.recall')}"
            for model, name in ANSWERERS.items()
            if f"refusal.{model}.recall" in row
        ]
        lines.append(f"Refusals, {row['row']}: {'; '.join(found)}.")
    return "\n".join([*lines, "", f"Made at commit {rows[0]['commit']}."])


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
    opens = {"True": "opens", "False": "stays shut"}.get(row["gate.passed"], "is unknown")
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
    words = {True: "passed", False: "FAILED", None: "unknown"}
    gates = ", ".join(f"{k} {words[v]}" for k, v in found["gates"].items() if v in words)
    return "\n".join([*lines, "", f"Gates: {gates}."])


def time_line() -> str:
    """Seconds of the training stages of the committed run."""
    seconds = {name: stage["total_s"] for name, stage in runtimes().items()}
    order = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
    return ", ".join(f"{name} {round(seconds[name])} s" for name in order if name in seconds)


def cost(language: str) -> str:
    """What the committed run took, and what its cosines are worth."""
    found = list(runtimes().values())
    minutes = sum(stage["total_s"] for stage in found) / 60
    gib = max(stage["peak_memory_mib"] for stage in found) / 1024
    parameters = metrics("base")["parameters"] / {"en": 1e6, "ko": 1e4}[language]
    forms = {
        "en": "The committed run, a model of {:.1f} million parameters, took {:.0f} minutes on two"
        " cores, and {:.1f} GiB of memory.",
        "ko": "커밋된 실행(파라미터 {:.0f}만 개)은 2코어에서 {:.0f}분,"
        " 메모리 {:.1f} GiB가 들었습니다.",
    }
    return f"{forms[language].format(parameters, minutes, gib)} {agreement(language)}"


def example(language: str) -> str:
    """A question with its answers. Raises ValueError where the samples no longer show it."""
    samples = io.StringIO(read("plots/evaluate/16_samples.csv"))
    rows = {row["질문"]: row for row in csv.DictReader(samples)}
    if QUESTION not in rows:
        raise ValueError(f"16_samples.csv does not hold {QUESTION!r}: choose another question")

    def glossed(text: str) -> str:
        return f"{text} (*{GLOSS[text]}*)" if language == "en" and text in GLOSS else text

    names = {"기반 모델": "base", "SFT": "SFT", "PPO": "PPO"}
    head = {"en": "answer", "ko": "답변"}[language]
    lines = [f"> {glossed(QUESTION)}", "", f"| | {head} |", "|---|---|"]
    for column, name in names.items():
        title = name if language == "en" else column
        lines.append(f"| {title} | {glossed(rows[QUESTION][column])} |")
    return "\n".join(lines)


def gain(kind: str, key: str) -> tuple[float, float, float]:
    """PPO less SFT over the seeds, in points of a hundred, and the ends of its interval."""
    sft = next(row for row in table("seeds_pooled") if row["row"] == "sft")
    value, low, high = (100 * float(sft[f"{kind}.{key}_ppo_gain{end}"]) for end in ("", *ENDS))
    return value, low, high


def finding(language: str) -> str:
    """What PPO adds. Raises ValueError where that is no longer so."""
    gains = gain("unseen_ending", "exact"), gain("never_asked", "exact")
    if any(low <= 0 for _, low, _ in gains):
        raise ValueError(f"PPO less SFT: {gains}; rewrite the README's finding")
    forms = {
        "en": "**On top of supervised training on all labels PPO adds** {} points of answers that"
        " are right to the letter on unseen endings and {} on never-asked facts, over five seeds.",
        "ko": "**모든 라벨로 지도 학습한 모델에 PPO를 더하면** 글자까지 정확한 답변의 비율이 처음"
        " 보는 어미에서 {}%p, 물은 적 없는 사실에서 {}%p 올라갑니다(시드 다섯 개).",
    }
    return forms[language].format(*("{:+.0f} [{:.0f}, {:.0f}]".format(*each) for each in gains))


def help_table(language: str) -> str:
    """Base, SFT, best-of-n and PPO: exact, and how often the judge prefers PPO."""
    found = metrics("evaluate")
    pair, asked = found["ppo_vs_sft"], found["questions"]
    ends = (pair[f"win_rate_decided{end}"] for end in ("", *ENDS))
    wins = "{:.0f}% [{:.0f}, {:.0f}]".format(*(100 * share for share in ends))
    titles, names = {
        "en": (
            ["unseen wording", "never-asked fact", "unseen ending", "judge prefers it to SFT"],
            {"base": "base", "sft": "SFT", "best_of_n": "best of {} of SFT's", "ppo": "PPO"},
        ),
        "ko": (
            ["처음 보는 표현", "물은 적 없는 사실", "처음 보는 어미", "판정 모델이 SFT보다 선호"],
            {"base": "기반 모델", "sft": "SFT", "best_of_n": "SFT 답변 {}개 중 최고", "ppo": "PPO"},
        ),
    }[language]
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    for model, name in names.items():
        cells = [percent(found[model]["by_kind"][kind]) for kind in KINDS]
        cells.append(wins if model == "ppo" else "–")
        lines.append(f"| {name.format(best_of())} | {' | '.join(cells)} |")
    notes = {
        "en": "Share of answers equal to the reference, to the letter, with 95% intervals over the"
        " questions; one run. SFT has learned from the demonstrations and then from the best-ranked"
        " answers. The judge, a second reward model, compares the two answers where they differ:"
        " {} of {} test questions.",
        "ko": "참조 답변과 글자까지 똑같은 답의 비율과 질문에 대한 95% 신뢰구간이며, 실행 한 번의"
        " 결과입니다. SFT는 시연 답변을 배운 뒤 최고 순위 답변을 배웠습니다. 판정 모델은 따로"
        " 학습한 두 번째 보상 모델로, 두 답이 다른 질문만 비교합니다. 테스트 질문 {}개"
        "(전체 {}개)입니다.",
    }
    note = notes[language].format(asked - pair["ties"], asked)
    return "\n".join([*lines, "", note])


def percent(block: Mapping[str, float]) -> str:
    """Exact, with its interval."""
    value, low, high = (100 * block[f"exact{end}"] for end in ("", *ENDS))
    return f"{value:.1f}% [{low:.1f}, {high:.1f}]"


def best_of() -> int:
    """Answers of which stage evaluate keeps the one with the highest reward."""
    params: dict[str, Any] = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    n: int = params["evaluate"]["best_of"]
    return n


def graph() -> str:
    """dvc.yaml's graph in Mermaid, without the arrows that others imply."""
    stages = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
    made = {
        name: [*map(path_of, stage.get("outs", [])), *map(path_of, stage.get("metrics", []))]
        for name, stage in stages.items()
    }
    needs = {
        name: {
            other
            for other, outs in made.items()
            for dep in stage.get("deps", [])
            for out in outs
            if within(dep.replace("${data.path}", "data/sample"), out)
        }
        for name, stage in stages.items()
    }

    def behind(name: str) -> set[str]:
        return needs[name].union(*(behind(other) for other in needs[name]))

    lines = ["```mermaid", "flowchart LR"]
    for name in stages:
        implied = set().union(*(behind(other) for other in needs[name]))
        lines += [f"  {other} --> {name}" for other in stages if other in needs[name] - implied]
    return "\n".join([*lines, "```"])


def path_of(out: str | Mapping[str, Any]) -> str:
    """An out of dvc.yaml, with options or without."""
    return out if isinstance(out, str) else next(iter(out))


def within(path: str, folder: str) -> bool:
    """The path itself, or one below it."""
    return path == folder or path.startswith(f"{folder}/")


Blocks = Mapping[str, Callable[[], str]]


def front_page(language: str) -> Blocks:
    """The blocks of README.md and of README.ko.md."""
    made = {"finding": finding, "cost": cost, "example": example, "help": help_table}
    return {**{name: partial(make, language) for name, make in made.items()}, "graph": graph}


READMES: Mapping[str, Blocks] = {
    "README.md": front_page("en"),
    "README.ko.md": front_page("ko"),
    "metrics/README.md": {
        "answers": answers_table,
        "verdict": verdict_table,
        "ranking": ranking_table,
        "gate": gate_line,
        "rl_rivals": rl_rivals_table,
        "ablation": ablation_table,
        "seeds": seeds_table,
        "rivals": rivals_table,
        "control": control_table,
        "rag": rag_table,
        "sweep": partial(whole_table, "sft_sweep", {}, words=2),
        "cut_off": partial(whole_table, "cut_off", {"cost": "missing EOS costs"}),
        "embedder": partial(whole_table, "embedder", {"spearman": "Spearman", **SPEED}),
        "ranks": partial(whole_table, "rank_agreement", {}, words=2),
        "ppo_benchmark": ppo_benchmark_table,
        "rm_benchmark": benchmark_table,
        "time": time_line,
        "real": real_table,
        "korquad": korquad_table,
        "large_vocabulary": partial(
            whole_table, "large_vocabulary", {"memory_of_theirs": "memory, of theirs"}, words=2
        ),
    },
    "stages/rlhf/retrieval/README.md": {
        "retrieval": partial(whole_table, "retrieval", {"build_seconds": "build (s)"}),
        "retrieval_scale": partial(whole_table, "retrieval_scale", {"build_seconds": "build (s)"}),
    },
}


def rendered(text: str, blocks: Blocks) -> str:
    """A README with every block made anew. Raises ValueError where one lacks, or is foreign."""
    marked = re.findall(r"^<!-- (\w+) -->$", text, flags=re.MULTILINE)
    if sorted(marked) != sorted(blocks):
        raise ValueError(f"blocks {sorted(marked)}; {sorted(blocks)} were expected, once each")
    for name, make in blocks.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda m, t=make: f"{m[1]}{t()}\n{m[2]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    for name, blocks in READMES.items():
        file = ROOT / name
        file.write_text(rendered(file.read_text("utf-8"), blocks), "utf-8")
