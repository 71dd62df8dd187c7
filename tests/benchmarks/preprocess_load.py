"""Time and memory of preprocess on many rows: python -m tests.benchmarks.preprocess_load

Writes synthetic Korean rows to disk and runs the stage on them, each run in a process of its own:
`--small` and `--large` items (JSON lines), whose time should stay within 12 times and whose memory
within 1.3 times of one another, and one AI-Hub file of `--megabytes`, to be read in less than twice
its size.

What makes near-duplicates cost is how many questions share a rare run of characters. Words here
follow Zipf's law over a vocabulary that never ends (new words come up as the text grows, as they do
in real text), endings come from a short list, and every twentieth question is another one with a
word before it. Seconds are of CPU time, which a busy machine does not stretch.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from tests.benchmarks.process_memory import memory
from tests.conftest import write_fingerprint, write_params

ENDINGS = (
    "은 무엇인가요?",
    "에 대해 설명해 주세요.",
    "의 차이는 무엇인가요?",
    "을 잘하려면 어떻게 해야 할까?",
    "의 역사를 알려줘.",
    "는 왜 중요한가요?",
    "를 세 문장으로 요약해 줘.",
    "에 관한 글을 써 주세요.",
)
PARTICLES = ("은", "는", "이", "가", "을", "를", "에서", "으로", "와", "의", "도", "에게")
SYLLABLES = [chr(0xAC00 + n) for n in random.Random(0).sample(range(11172), 700)]
TIMES, MEMORY = 12, 1.3  # bounds of large by small


def word(number: int) -> str:
    """The word of a rank: rare ones are longer."""
    signs = []
    number += len(SYLLABLES)
    while number:
        number, rest = divmod(number * 7 + 3, len(SYLLABLES) * 7)
        signs.append(SYLLABLES[rest // 7])
    return "".join(signs)


def words(rng: random.Random, count: int) -> list[str]:
    """Words by Zipf's law: rank r with a chance of about 1 / r^1.15 (Pareto, cut at 10^8)."""
    return [
        word(min(int((1 - rng.random()) ** (-1 / 0.15)), 10**8) - 1) + rng.choice(PARTICLES)
        for _ in range(count)
    ]


def question(number: int) -> str:
    """Question `number`; every twentieth is the tenth before it with a word put before it."""
    rng = random.Random(number - 10 if number % 20 == 19 else number)
    said = words(rng, rng.randint(3, 9))
    ending = rng.choice(ENDINGS)
    before = "혹시 " if number % 20 == 19 else ""
    return before + " ".join(said)[:-1] + ending


def answer(rng: random.Random, shortest: int, longest: int) -> str:
    """Sentences of eight words."""
    count = rng.randint(shortest, longest)
    return " ".join(" ".join(words(rng, 8)) + " 있습니다." for _ in range(count))


def rows(items: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Part and row of each item: two of five sft, one rm, two ppo."""
    for number in range(items):
        rng = random.Random(f"answer {number}")
        row: dict[str, Any] = {"question": question(number)}
        part = ("sft", "rm", "ppo", "sft", "ppo")[number % 5]
        if part == "sft":
            row["answer"] = answer(rng, 1, 3)
        elif part == "rm":
            row |= {"answers": [answer(rng, 1, 2) for _ in range(3)], "ranks": [1, 2, 3]}
        yield part, row


def write_lines(folder: Path, items: int) -> None:
    """sft.jsonl, rm.jsonl and ppo.jsonl."""
    folder.mkdir(parents=True)
    files = {p: (folder / f"{p}.jsonl").open("w", encoding="utf-8") for p in ("sft", "rm", "ppo")}
    for part, row in rows(items):
        files[part].write(json.dumps(row, ensure_ascii=False) + "\n")
    for file in files.values():
        file.close()


def write_file(folder: Path, megabytes: int) -> None:
    """SFTlabel.json of that size, its answers as long as AI-Hub's; small files beside it."""
    folder.mkdir(parents=True)
    with (folder / "SFTlabel.json").open("w", encoding="utf-8") as out:
        out.write('{"dataset_info": {}, "data_info": [')
        number = 0
        while out.tell() < megabytes * 10**6:
            rng = random.Random(f"answer {number}")
            row = {"question": question(number), "answer": {"contents": answer(rng, 6, 24)}}
            out.write((", " if number else "") + json.dumps(row, ensure_ascii=False))
            number += 1
        out.write("]}")
    ranked = [
        {"question": question(number + n)}
        | {
            f"answer0{i}": {"contents": answer(random.Random(f"{n} {i}"), 1, 2), "ranking": i}
            for i in (1, 2)
        }
        for n in range(0, 200)
    ]
    asked = [{"question": question(number + n)} for n in range(200, 400)]
    for name, found in {"RMlabel.json": ranked, "PPOdata.json": asked}.items():
        text = json.dumps({"data_info": found}, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")


def measure(folder: Path, source: str) -> dict[str, float]:
    """Seconds and MB of the stage on the source in `folder`, in a process of its own."""
    write_params(folder, **{"data.source": source, "data.path": folder / "source"})
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.preprocess_load", "--run"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        check=True,
    )
    size = sum(f.stat().st_size for f in (folder / "source").iterdir()) / 10**6
    return {
        "source_MB": round(size),
        "seconds": round(float(done.stdout.split()[-2])),
        "peak_MB": round(float(done.stdout.split()[-1]) * 1.048576),
    }


def run() -> None:
    """The stage in this folder, then the time and the memory that it took."""
    from stages.preprocess import main as stage

    code = ["--code", str(write_fingerprint(Path.cwd(), "preprocess"))]
    code += ["--model", "data/check/model.json"]
    stage([*code, "--out", "out", "--metrics", "metrics.json"], standalone_mode=False)
    click.echo(f"{time.process_time()} {memory('VmHWM')}")


@click.command(help=__doc__)
@click.option("--small", default=100_000)
@click.option("--large", default=1_000_000)
@click.option("--megabytes", default=300)
@click.option("--run", "inner", is_flag=True, hidden=True)
@click.option("--work", type=click.Path(path_type=Path), help="Folder for the rows.")
def main(small: int, large: int, megabytes: int, inner: bool, work: Path | None) -> None:
    """Write, run, compare."""
    if inner:
        run()
        return
    with tempfile.TemporaryDirectory(dir=work) as root:
        found = {}
        for name, count in {"small": small, "large": large, "file": megabytes}.items():
            if not count:
                continue
            folder = Path(root) / name
            if name == "file":
                write_file(folder / "source", count)
            else:
                write_lines(folder / "source", count)
            found[name] = measure(folder, "aihub" if name == "file" else "jsonl")
            click.echo(f"{name} ({count}): {found[name]}")
            shutil.rmtree(folder)
    if "small" in found and "large" in found:
        for key, bound in {"seconds": TIMES, "peak_MB": MEMORY}.items():
            ratio = found["large"][key] / found["small"][key]
            click.echo(f"{key}: large / small = {ratio:.2f} (bound {bound})")


if __name__ == "__main__":
    main()
