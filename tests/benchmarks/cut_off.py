"""What a cap that cuts off one answer in six does to PPO: python -m tests.benchmarks.cut_off

On the default run in this folder: data/sft, data/rm and data/judge as they are, but PPO may write
no more than 19 tokens, fewer than one right answer in six has. Each row is a cost of a missing EOS
in standard deviations of the reward: what `reward.missing_eos_cost` makes of the 3 of
params.yaml, the plain 3, and none. Writes metrics/tables/cut_off.csv: validation of SFT, and of
the last of 20 updates.
"""

import tempfile
from pathlib import Path
from unittest.mock import patch

import click
import pandas as pd

from stages import ppo
from stages.rlhf import runtime
from stages.rlhf.config.base import load
from stages.rlhf.config.ppo import PpoParams
from stages.rlhf.ppo import reward, trainer
from tests.conftest import ROOT

CAP = 19
UPDATES = 20
SHOWN = ("chrf", "exact", "eos_rate", "length", "judge")
COSTS = {"lowered": reward.missing_eos_cost, "as given": lambda p, q: p, "none": lambda p, q: 0.0}


def params_of(shipped: PpoParams) -> PpoParams:
    """The params of the default run with the cap, and without gate and patience."""
    settings = shipped.ppo.model_copy(
        update={"require_gate": False, "patience": UPDATES, "evaluate_every": UPDATES}
    )
    scale = shipped.base_model.ppo.model_copy(update={"updates": UPDATES})
    model = shipped.base_model.model_copy(update={"max_answer_tokens": CAP, "ppo": scale})
    return shipped.model_copy(update={"ppo": settings, "base_model": model})


def paths() -> dict[str, Path]:
    """The default run's."""
    data = ROOT / "data"
    rows = data / "preprocess"
    found = {name: data / name for name in ("base", "sft", "rm", "judge")}
    found |= {"gate": ROOT / "metrics" / "gate.json", "prompts": rows / "ppo" / "train.jsonl"}
    found["corpus"] = rows / "corpus.jsonl"
    return {**found, "validation": rows / "sft" / "validation.jsonl"}


@click.command(help=__doc__)
def main() -> None:
    """Train under each cost, and write the table."""
    params, rows = params_of(load(PpoParams)), []
    for name, cost in COSTS.items():
        runtime.start(params.threads, params.seed, "ppo")
        with tempfile.TemporaryDirectory() as work, patch.object(trainer, "missing_eos_cost", cost):
            done, _ = ppo.trained(params, paths(), Path(work))
        validation = done.progress.validation
        if not rows:
            rows.append({"cost": "SFT"} | {key: validation[0][key] for key in SHOWN})
        rows.append({"cost": name} | {key: validation[-1][key] for key in SHOWN})
        click.echo(pd.DataFrame(rows).to_string(index=False))
    table = pd.DataFrame(rows).round(4)
    table.to_csv(ROOT / "metrics" / "tables" / "cut_off.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
