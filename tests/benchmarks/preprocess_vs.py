"""Stage preprocess of this tree against another commit's: python -m tests.benchmarks.preprocess_vs

Both builds read the same rows in turn, `--rounds` times, each run in a process of its own. Seconds
are elapsed; memory is the peak of the process and its children together, each page counted once
(PSS, sampled five times a second). The last line gives the ratios of this tree to the other.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import click

from tests.benchmarks.preprocess_load import write_file, write_lines

ROOT = Path(__file__).parents[2]
RUN = """
import sys
from pathlib import Path
from stages.preprocess import main
from tests.conftest import write_fingerprint, write_params
folder = Path.cwd()
write_params(folder, **{"data.source": sys.argv[1], "data.path": sys.argv[2]})
code = write_fingerprint(folder, "preprocess")
words = ["--code", str(code), "--out", "out", "--metrics", "metrics.json"]
if "model" in [option.name for option in main.params]:  # older commits have none
    words += ["--model", "data/check/model.json"]
main(words, standalone_mode=False)
"""


def tree_memory(root: int) -> float:
    """MiB of a process and its children: their proportional set sizes."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        waiting += children.get(process, [])
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += int(text.split("Pss:")[1].split()[0])
    return total / 2**10


def measure(build: Path, folder: Path, kind: str, source: Path) -> tuple[float, float]:
    """Elapsed seconds and peak MiB of one run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    begin, peak = time.perf_counter(), 0.0
    environment = os.environ | {"PYTHONPATH": str(build), "KOQA_WORK": str(folder / "work")}
    command = [sys.executable, "-c", RUN, kind, str(source)]
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL) as run:
        while run.poll() is None:
            peak = max(peak, tree_memory(run.pid))
            time.sleep(0.2)
    if run.returncode:
        raise click.ClickException(f"{build}: exit code {run.returncode}")
    return time.perf_counter() - begin, peak


def same_rows(one: Path, other: Path) -> bool:
    """Whether two runs wrote the same rows; the judge's in whichever of its two files."""
    names = [name for part in ("sft", "rm", "ppo") for name in sorted((one / part).iterdir())]
    same = all(name.read_bytes() == (other / name.relative_to(one)).read_bytes() for name in names)
    judged = [
        sorted(
            line for file in (out / "judge").iterdir() for line in file.read_bytes().splitlines()
        )
        for out in (one, other)
    ]
    return same and judged[0] == judged[1]


@click.command(help=__doc__)
@click.option("--other", default="HEAD", show_default=True, help="Commit of the other build.")
@click.option("--items", default=100_000, show_default=True, help="Rows of JSON lines.")
@click.option("--megabytes", default=0, show_default=True, help="Or one AI-Hub file of that size.")
@click.option("--rounds", default=1, show_default=True)
def main(other: str, items: int, megabytes: int, rounds: int) -> None:
    """Write, run in turn, compare."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        build = folder / "build"
        archive = subprocess.run(
            ["git", "archive", other], cwd=ROOT, check=True, stdout=subprocess.PIPE
        )
        build.mkdir()
        subprocess.run(["tar", "-x", "-C", str(build)], input=archive.stdout, check=True)
        source = folder / "source"
        if megabytes:
            write_file(source, megabytes)
        else:
            write_lines(source, items)
        kind = "aihub" if megabytes else "jsonl"
        found: dict[str, list[tuple[float, float]]] = {"this": [], other: []}
        for _ in range(rounds):
            for name, where in (("this", ROOT), (other, build)):
                found[name].append(measure(where, folder / f"run-{name}", kind, source))
                seconds, peak = found[name][-1]
                click.echo(f"{name}: {seconds:.1f} s, {peak:.0f} MiB")
        same = same_rows(folder / "run-this" / "out", folder / f"run-{other}" / "out")
        times, peaks = (
            median(run[n] for run in found["this"]) / median(run[n] for run in found[other])
            for n in (0, 1)
        )
    click.echo(f"time {times:.2f}, memory {peaks:.2f}, same rows: {same}")


if __name__ == "__main__":
    main()
