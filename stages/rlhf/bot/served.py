"""An export as `transformers serve` answers it over HTTP, against the model it is of."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

import httpx
import torch

from stages.rlhf.bot.models import Bot
from stages.rlhf.korean import clean_line

PROGRAM = Path(sys.executable).with_name("transformers")
READY_SECONDS = 180.0  # until a server must answer
ANSWER_SECONDS = 600.0


def can_serve() -> bool:
    """Whether the packages of `transformers serve` are installed: the extra `serve`."""
    return all(find_spec(name) for name in ("fastapi", "uvicorn", "openai"))


@contextmanager
def server() -> Iterator[str]:
    """`transformers serve` on loopback, which loads the folder that a request names; its URL.

    Raises ValueError with the server's last words where it does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PROGRAM), "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--device", "cuda" if torch.cuda.is_available() else "cpu"]
    with TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + READY_SECONDS
        try:
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    words = log.read().decode(errors="replace").strip()[-500:]
                    raise ValueError(f"{' '.join(command)} does not answer: {words}")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.HTTPError:
        return False


def same_answers(bot: Bot, name: str, folder: Path, questions: Sequence[str]) -> str:
    """Greedy chat completions of the served folder against the model in data/; what was found.

    Raises ValueError naming the first question that is answered otherwise.
    """
    expected = bot.greedy(name, [bot.prompt(question) for question in questions])
    most = bot.entry.max_answer_tokens
    with server() as url, httpx.Client(base_url=url, timeout=ANSWER_SECONDS) as client:
        for question, ids in zip(questions, expected, strict=True):
            chat = [{"role": "user", "content": clean_line(question)}]
            body = {"model": str(folder.resolve()), "messages": chat, "temperature": 0}
            found = client.post("/v1/chat/completions", json={**body, "max_tokens": most})
            if not found.is_success:
                raise ValueError(f"{question!r}: HTTP {found.status_code}: {found.text:.300}")
            text = (found.json()["choices"][0]["message"]["content"] or "").strip()
            ours = bot.codec.text(ids).strip()
            if text != ours:
                raise ValueError(
                    f"{question!r}: the model says {ours!r}, its export served {text!r};"
                    " nothing was written (--no-served leaves this check out)"
                )
    return f"{len(questions)} of {len(questions)} served answers equal"
