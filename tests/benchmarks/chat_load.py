"""The chat page under load: askers at once, each with its next question when one is answered.

    python -m tests.benchmarks.chat_load                  # in a folder with data/ of a run
    python -m tests.benchmarks.chat_load --askers 20 --seconds 60

Questions are test questions, all models answer, with scores. Prints the waits until the first piece
of an answer and until the last one, errors, and the fewest and most answers that one asker got.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from itertools import count
from pathlib import Path
from typing import NamedTuple

import click
import httpx
import numpy as np

from stages.rlhf.records import SftRow, read_rows

TEST = Path("data/preprocess/sft/test.jsonl")


class Wait(NamedTuple):
    """Seconds from a question to the first piece, and to the end."""

    first: float
    whole: float


async def ask(client: httpx.AsyncClient, question: str) -> Wait:
    """One question. Raises RuntimeError where it is not answered whole."""
    start, first, end = time.perf_counter(), None, None
    async with client.stream("POST", "/api/ask", json={"question": question}) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"HTTP {answer.status_code}: {(await answer.aread())!r:.200}")
        async for line in answer.aiter_lines():
            event = json.loads(line)
            if first is None and "piece" in event:
                first = time.perf_counter() - start
            if "error" in event:
                raise RuntimeError(event["error"])
            if "done" in event:
                end = time.perf_counter() - start
    if first is None or end is None:
        raise RuntimeError("the answer ended early")
    return Wait(first, end)


async def load(
    url: str, questions: list[str], askers: int, seconds: float
) -> tuple[list[Wait], Counter[int], list[str]]:
    """Waits, answers by asker, errors."""
    waits, answered, errors = list[Wait](), Counter[int](), list[str]()
    numbers = count()
    limits = httpx.Limits(max_connections=askers)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        await ask(client, questions[0])
        until = time.perf_counter() + seconds

        async def asker(number: int) -> None:
            while time.perf_counter() < until:
                try:
                    waits.append(await ask(client, questions[next(numbers) % len(questions)]))
                    answered[number] += 1
                except (RuntimeError, httpx.HTTPError) as fault:
                    errors.append(repr(fault))

        await asyncio.gather(*(asker(number) for number in range(askers)))
    return waits, answered, errors


@click.command()
@click.option("--askers", type=click.IntRange(1), default=20, show_default=True)
@click.option("--seconds", type=float, default=60.0, show_default=True)
def main(askers: int, seconds: float) -> None:
    """Start `koqa chat` on the current folder's data/, and ask."""
    questions = [row.question for row in read_rows(TEST, SftRow)]
    command = [sys.executable, "-m", "stages.cli.main", "chat", "--port", "0"]
    command += ["--votes", "/dev/null"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[0]
        waits, answered, errors = asyncio.run(load(url, questions, askers, seconds))
    finally:
        server.terminate()
        server.wait()
    for name, values in zip(Wait._fields, np.array(waits).T, strict=True):
        p50, p95 = np.quantile(values, (0.5, 0.95))
        print(f"{name:>6}: p50 {p50:.2f} s, p95 {p95:.2f} s, longest {values.max():.2f} s")
    fewest = min(answered[number] for number in range(askers))
    print(f"{len(waits)} answered, {fewest} to {max(answered.values())} an asker; errors: {errors}")


if __name__ == "__main__":
    main()
