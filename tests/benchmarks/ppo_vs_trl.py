"""PPO: our trainer against the PPOTrainer of TRL 1.12, the last TRL that had one, in one call.

    python -m tests.benchmarks.ppo_vs_trl             # speed, memory -> metrics/tables
    python -m tests.benchmarks.ppo_vs_trl --curves    # rewards -> plots/benchmarks

Needs the default run's models (`dvc repro` or `dvc pull`), a quiet machine, and TRL 1.12.0 beside
the project's own: pip install --no-deps --target build/trl112 trl==1.12.0

Settings: `real` is the sample's SFT model, reward model (scalar head) and prompts, answers ending
by themselves; `eos_off_32` and `eos_off_64` are random models of the same size whose answers all
run to the cap; `wide` has a vocabulary of 64k, `widest` of 262k. Both sides have the same weights,
prompts, batch, epochs, cap, temperature, float32 and two threads; first logprobs, values and scores
of one rollout are compared. TRL trains the policy in full or by LoRA, whichever is faster, each
side with its fastest micro-batch. Updates take turns: TRL as shipped, TRL without its calls of
gc.collect and empty_cache, each followed by ours on the same prompts. Peak memory is that of a
process of its own.
"""

import argparse
import csv
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import warnings
from typing import Any

import pandas as pd
import torch
from datasets import disable_progress_bars
from transformers.utils import logging

from stages.rlhf.config.whole import load_params
from stages.rlhf.model.store import load_sft
from stages.rlhf.report import figures
from stages.rlhf.reward.model import load_reward_model
from tests.benchmarks.device_memory import held, most
from tests.benchmarks.ppo_sides import (
    ROOT,
    SETTINGS,
    Material,
    Ours,
    Probe,
    Setting,
    Shipped,
    material,
    our_score,
    peer,
    train_trl,
)

TABLE = ROOT / "metrics" / "tables" / "ppo_vs_trl.csv"
PLOT = ROOT / "plots" / "benchmarks" / "ppo_vs_trl.png"
TOKENS = (1024, 2048, 4096, 8192, 16384)  # of our micro-batch
PARTS = (1, 2, 4)  # of a batch, of which one is TRL's micro-batch
ROUNDS = 6  # of TRL as shipped, ours, TRL patched, ours
CURVE_UPDATES = 20
GIVEN = 8, True, 16384  # where nothing is searched: TRL's rows, LoRA, our tokens of a micro-batch
LARGE = "llama-1b"  # a setting for a GPU
PHASES = ("generate_s", "score_s", "update_s")

Row = dict[str, float]


def run_trl(
    made: Material, setting: Setting, micro_batch: int, lora: bool, updates: int, probe: Probe
) -> list[Row]:
    """That many updates of TRL."""
    with tempfile.TemporaryDirectory() as folder:
        train_trl(made, setting, micro_batch, lora, updates, folder, lambda _: None, probe)
    return probe.rows


def fastest(made: Material, setting: Setting) -> tuple[int, bool, int]:
    """TRL's micro-batch, whether it trains by LoRA, and our tokens of a micro-batch.

    By the faster of two updates after one that warms up.
    """
    theirs = {}
    for lora in (False, True):
        for size in (setting.batch // parts for parts in PARTS):
            rows = run_trl(made, setting, size, lora, 3, Probe(shipped=False))
            theirs[size, lora] = min(row["seconds"] for row in rows[1:])
    prompts = [made.codec.prompt_ids(question) for question in made.questions[: setting.batch]]
    own = {}
    for tokens in TOKENS:
        ours = Ours(made, setting, tokens)
        own[tokens] = min([ours.update(prompts)["seconds"] for _ in range(3)][1:])
    for (size, lora), seconds in theirs.items():
        print(f"  TRL, {'LoRA' if lora else 'full'}, {size} rows: {setting.batch / seconds:.1f}/s")
    for tokens, seconds in own.items():
        print(f"  ours, {tokens} tokens: {setting.batch / seconds:.1f}/s")
    (size, lora), tokens = min(theirs, key=theirs.__getitem__), min(own, key=own.__getitem__)
    return size, lora, tokens


def in_turn(
    made: Material,
    setting: Setting,
    size: int,
    lora: bool,
    tokens: int,
    also_shipped: bool,
    rounds: int = ROUNDS,
) -> dict[str, list[Row]]:
    """Rows of each side, updates taken in turn."""
    sides: dict[str, Any] = {"ours": Ours(made, setting, tokens)}
    if also_shipped:
        sides["ours as shipped"] = Shipped(made)
    found: dict[str, list[Row]] = {"TRL as shipped": [], "TRL patched": []}
    found |= {name: [] for name in sides}
    probe = Probe()

    def then(row: Row) -> None:
        if len(probe.rows) == 1:
            print("  one rollout, largest differences:", sides["ours"].against(probe.first))
        found["TRL as shipped" if probe.shipped else "TRL patched"].append(row)
        probe.shipped = not probe.shipped
        asked = probe.asked[len(probe.rows) - 1]
        for name, side in sides.items():
            found[name].append(side.update(asked))

    with tempfile.TemporaryDirectory() as folder:
        updates = 2 * (rounds + 1)
        train_trl(made, setting, size, lora, updates, folder, then, probe)
    skip = {name: 1 if name.startswith("TRL") else 2 for name in found}  # they warm up
    return {name: rows[skip[name] :] for name, rows in found.items()}


def peak(name: str, side: str, words: list[str]) -> float:
    """MiB of a side in a process of its own, above the process before it has made anything."""
    command = [sys.executable, "-m", "tests.benchmarks.ppo_vs_trl", "--setting", name]
    done = subprocess.run(
        [*command, "--side", side, *words], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def own_peak(setting: Setting, side: str, size: int, lora: bool) -> float:
    """Three updates of one side in this process."""
    peer()
    gc.collect()
    start = held()
    made = material(setting)
    if side == "TRL":
        run_trl(made, setting, size, lora, 3, Probe(shipped=False))
    else:
        prompts = [made.codec.prompt_ids(question) for question in made.questions[: setting.batch]]
        ours = Shipped(made) if side == "ours as shipped" else Ours(made, setting, size)
        for _ in range(3):
            ours.update(prompts)
    return most() - start


def compare(name: str, quick: bool = False) -> list[dict[str, Any]]:
    """The table's rows of one setting; `quick`: with GIVEN, and one round."""
    setting, real = SETTINGS[name], not SETTINGS[name].vocab
    print(f"{name}: {setting}")
    made = material(setting)
    size, lora, tokens = GIVEN if quick else fastest(made, setting)
    found = in_turn(made, setting, size, lora, tokens, real, 1 if quick else ROUNDS)
    theirs = ["--size", str(size), *(["--lora"] if lora else [])]
    peaks = {"TRL": peak(name, "TRL", theirs)}
    for side in (side for side in found if not side.startswith("TRL")):
        peaks[side] = peak(name, side, ["--size", str(tokens)])
    seconds = {side: [row["seconds"] for row in rows] for side, rows in found.items()}
    rows = []
    for side, updates in found.items():
        is_trl = side.startswith("TRL")
        row: dict[str, Any] = {"setting": name, "side": side}
        row["policy"] = "full" if is_trl and not lora else "LoRA"
        row["micro_batch"] = f"{size} rows" if is_trl else f"{tokens} tokens"
        if side == "ours as shipped":
            row["micro_batch"] = f"{load_params().base_model.ppo.micro_batch_tokens} tokens"
        row["samples_per_second"] = round(setting.batch / statistics.median(seconds[side]), 1)
        for rival in ("TRL as shipped", "TRL patched"):
            times = statistics.median(seconds[rival]) / statistics.median(seconds[side])
            row[f"times_{rival.removeprefix('TRL ').replace(' ', '_')}"] = round(times, 2)
        for key in PHASES:
            row[key] = round(statistics.median(update[key] for update in updates), 3)
        row["answer_tokens"] = round(statistics.fmean(update["tokens"] for update in updates))
        own = peaks["TRL" if is_trl else side]
        row |= {"peak_mib": round(own), "of_trl": round(own / peaks["TRL"], 2)}
        print(" ", row)
        rows.append(row)
    return rows


def trl_curve(made: Material) -> list[Row]:
    """TRL's updates under the reward model of the default run."""
    params = load_params()
    base_model = params.base_model
    roles = load_sft(ROOT / "data/base", ROOT / "data/sft", base_model.dtype, base_model.lora)
    score = our_score(load_reward_model(roles, ROOT / "data/rm"), made.codec)
    setting, probe = SETTINGS["real"], Probe(shipped=False)
    with tempfile.TemporaryDirectory() as folder:
        train_trl(
            made,
            setting,
            setting.batch,
            True,
            CURVE_UPDATES,
            folder,
            lambda _: None,
            probe,
            score,
            params.ppo.kl_coef,
        )
    return probe.rows


def our_curve(made: Material) -> list[Row]:
    """The default run's updates, the first few of which teach the value model alone."""
    ours = Shipped(made)
    ours.done = -ours.trainer.ppo.value_warmup
    first = ours.done + 1
    batches = [ours.trainer.prompts_of(first + i) for i in range(CURVE_UPDATES)]
    return [ours.update([prompt.ids for prompt in batch]) for batch in batches]


def curves() -> None:
    """20 rollouts of both sides on the sample, rewarded by the default run's reward model.

    TRL: LoRA on the policy, the same batch, epochs, temperature, rate and KL coefficient, its own
    defaults for all else. Ours: params.yaml.
    """
    made = material(SETTINGS["real"])
    sides = {"TRL 1.12": trl_curve(made), "koqa": our_curve(made)}
    rows = [
        {"side": side, "update": i, **row}
        for side, updates in sides.items()
        for i, row in enumerate(updates, 1)
    ]
    table = pd.DataFrame(rows)
    table["elapsed_s"] = table.groupby("side")["seconds"].cumsum()
    keys = ["side", "update", "score", "kl", "tokens", "elapsed_s"]
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    file = PLOT.with_suffix(".csv")
    table[keys].to_csv(file, index=False, float_format="%.6g", lineterminator="\n")
    draw(table)


def draw(table: pd.DataFrame) -> None:
    """Reward by update and by time, and KL by update."""
    figure, axes = figures.new_figure(
        f"PPO, {CURVE_UPDATES} rollouts of {SETTINGS['real'].batch} answers: koqa and TRL 1.12",
        columns=3,
        width=10.5,
        height=3.6,
    )
    panels = [("update", "score", "업데이트", "보상 모델 점수 (sd)")]
    panels += [("elapsed_s", "score", "시간 (초)", "보상 모델 점수 (sd)")]
    panels += [("update", "kl", "업데이트", "KL(정책 || SFT), 답변당 nats")]
    for axis, (x, y, across, up) in zip(axes, panels, strict=True):
        for i, (side, rows) in enumerate(table.groupby("side", sort=False)):
            style = {"color": figures.PALETTE[i], "marker": "os"[i], "markersize": 3}
            axis.plot(rows[x], rows[y], label=side, linestyle=("-", "--")[i], **style)
        axis.set(xlabel=across, ylabel=up)
        axis.legend()
    figures.save(figure, PLOT)


def write(rows: list[dict[str, Any]]) -> None:
    """metrics/tables/ppo_vs_trl.csv; settings that were not run keep their rows."""
    kept = []
    if TABLE.is_file():
        with TABLE.open(encoding="utf-8") as file:
            made = {row["setting"] for row in rows}
            kept = [row for row in csv.DictReader(file) if row["setting"] not in made]
    order = list(SETTINGS)
    together = sorted([*kept, *rows], key=lambda row: order.index(row["setting"]))
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, together[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(together)


def main() -> None:
    """Print and write the figures of both sides."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--curves", action="store_true", help="draw the rewards, and no more")
    parser.add_argument("--setting", choices=SETTINGS, help=f"only this one  [all but {LARGE}]")
    parser.add_argument("--quick", action="store_true", help="one round, no search, no table")
    parser.add_argument("--side", help="used by this itself, as are the next two")
    parser.add_argument("--size", type=int)
    parser.add_argument("--lora", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    disable_progress_bars()
    peer()
    if given.side:
        print(json.dumps(own_peak(SETTINGS[given.setting], given.side, given.size, given.lora)))
    elif given.curves:
        curves()
    else:
        for name in [given.setting] if given.setting else [n for n in SETTINGS if n != LARGE]:
            rows = compare(name, given.quick)
            if not given.quick:
                write(rows)


if __name__ == "__main__":
    main()
