"""The published sweep that chose SFT's learning rate, by validation loss alone.

    dvc repro base && python -m tests.benchmarks.sft_sweep

Runs stage `sft` in scratch folders on this repository's data/base and data/preprocess, two at a
time, and writes metrics/tables/sft_sweep.csv. Test data is not read.
"""

import csv
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import ROOT, write_fingerprint, write_params

SETTINGS = ((5.0e-4, 4), (1.0e-3, 4), (2.0e-3, 4), (4.0e-3, 4))  # learning rate, epochs
TABLE = ROOT / "metrics" / "tables" / "sft_sweep.csv"


def run(learning_rate: float, epochs: int) -> dict[str, object]:
    """One setting of the tiny model, its figures on validation."""
    entry = "models.tiny.sft"
    changed = {f"{entry}.learning_rate": learning_rate, f"{entry}.epochs": epochs, "threads": 1}
    with tempfile.TemporaryDirectory() as folder:
        write_params(Path(folder), **changed)
        code = write_fingerprint(Path(folder), "sft")
        inputs = ["--base", ROOT / "data/base", "--rows", ROOT / "data/preprocess/sft"]
        inputs += ["--groups", ROOT / "data/preprocess/rm/train.jsonl"]
        outputs = ["--code", code, "--out", "sft", "--metrics", "sft.json"]
        subprocess.run(
            [sys.executable, "-m", "stages.sft", *inputs, *outputs],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        figures = json.loads((Path(folder) / "sft.json").read_text(encoding="utf-8"))
    return {"learning_rate": learning_rate, "epochs": epochs, **figures}


def main() -> None:
    """Run the grid and write the table."""
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(lambda setting: run(*setting), SETTINGS))
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
