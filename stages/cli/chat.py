"""`koqa chat`."""

import contextlib
import socket
import warnings
from pathlib import Path

import click

from stages.cli.ask import MODELS
from stages.cli.options import one_sentence_errors

SHORTEST_TOKEN = 16
EXAMPLES = 3  # test questions that the page offers


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True)
@click.option(
    "--token",
    envvar="KOQA_TOKEN",
    help="What askers must know where the address is not this machine's own.",
)
@click.option(
    "--model", "chosen", type=click.Choice(MODELS), multiple=True, help="Who answers.  [all]"
)
@click.option(
    "--votes",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("data/votes/rm.jsonl"),
    show_default=True,
    help="Where votes are appended, as ranked groups.",
)
@click.option("--scores/--no-scores", default=True, help="Reward model and judge.  [default: yes]")
@click.option("--rag/--no-rag", default=None, help="With passages.  [where data/index has them]")
def main(
    host: str,
    port: int,
    token: str | None,
    chosen: tuple[str, ...],
    votes: Path,
    scores: bool,
    rag: bool | None,
) -> None:
    """A page to ask the models of data/ side by side, and to vote.

    \b
        koqa chat
        KOQA_TOKEN=... koqa chat --host 0.0.0.0       # for others: http://HOST:7860/#token=...
    """
    names = [name for name in MODELS if name in chosen] or list(MODELS)
    with one_sentence_errors():
        listener = _listen(host, port, token)
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        import uvicorn

        from stages.rlhf import runtime
        from stages.rlhf.bot.models import Bot, BotParams
        from stages.rlhf.config.base import load
        from stages.rlhf.records import SftRow, read_rows
        from stages.rlhf.report.comparison import spread
        from stages.rlhf.web.app import build
        from stages.rlhf.web.batcher import Batcher
        from stages.rlhf.web.votes import VoteFile

        params = load(BotParams)
        runtime.start(params.threads, params.seed, "ask")
        file = VoteFile(votes)
        bot = Bot(params, names=names, scored=scores)
        passages = bot.passages(rag)
        bot.load(names)
        test = bot.data / "preprocess" / "sft" / "test.jsonl"
        rows = spread(read_rows(test, SftRow), EXAMPLES) if test.is_file() else []
        examples = [row.question for row in rows]
    batcher = Batcher(bot, names, source=passages.source if passages else None)
    bound = listener.getsockname()[:2]
    shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
    click.echo(f"http://{shown}:{bound[1]}/  {', '.join(names)} of {params.model}; votes: {votes}")
    config = uvicorn.Config(
        build(batcher, file, token, examples, passages),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=3,
    )
    try:
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it once all is closed
            uvicorn.Server(config).run(sockets=[listener])
    finally:
        batcher.close()


def _listen(host: str, port: int, token: str | None) -> socket.socket:
    """A bound socket. Raises ValueError for a taken port, and for a door without a lock."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ValueError(f"--host {host}: no such address: {error.strerror}") from error
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise ValueError(
            f"the token has {len(token)} characters; expected {SHORTEST_TOKEN} or more"
        )
    local = str(address[0]).startswith("127.") or address[0] == "::1"
    if not local and token is None:
        raise ValueError(
            f"--host {host} can be reached from elsewhere; expected a token, in KOQA_TOKEN:"
            ' python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ValueError(f"{host}, port {port}: {error.strerror}; choose another --port") from error
    return listener
