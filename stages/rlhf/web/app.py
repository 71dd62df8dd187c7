"""The web application: one page, its questions and its votes."""

import asyncio
import json
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from fontTools.ttLib import TTFont
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from stages.rlhf.web.batcher import Batcher, Event, Full, Question
from stages.rlhf.web.guard import Guard, Refused, on_refused, read_json
from stages.rlhf.web.votes import VoteFile, group

PAGE = Path(__file__).with_name("page")
MOST_CHARACTERS = 4000  # of a question in the page's field; the model's own limit is in tokens
MOST_KEPT = 2000  # answered questions that can be voted on
MOST_SEED = 2**31

Finder = Callable[[str], tuple[str, ...]]  # passages of a question, best first


class Chat:
    """The endpoints, and what has been answered since the start."""

    def __init__(
        self,
        batcher: Batcher,
        votes: VoteFile | None,
        examples: Sequence[str],
        passages: Finder | None = None,
    ) -> None:
        self.batcher, self.votes, self.bot, self.examples = batcher, votes, batcher.bot, examples
        self.passages = passages
        self._answered: OrderedDict[str, Question] = OrderedDict()
        self._voted: set[tuple[str, frozenset[str]]] = set()
        self._voting = asyncio.Lock()
        self._finding = asyncio.Lock()  # Kiwi is not thread-safe

    async def about(self, request: Request) -> Response:
        """GET /api/about: what the page shows before the first question."""
        models = [{"name": n, "made_at": self.bot.made_at(n)} for n in self.batcher.models]
        return JSONResponse(
            {
                "base_model": self.bot.params.model,
                "models": models,
                "scored": self.bot.scored,
                "rag": self.passages is not None,
                "votes": self.votes and str(self.votes.path),
                "examples": [*self.examples],
                "most_characters": MOST_CHARACTERS,
            }
        )

    async def ask(self, request: Request) -> Response:
        """POST /api/ask {question, seed}: JSON lines, the events of batcher.Question.

        The first line is {ask, waiting, passages}: an id to vote with, how many are before it, and
        the passages that the prompt shows.
        """
        body = await read_json(request)
        text, seed = body.get("question"), body.get("seed")
        if not isinstance(text, str):
            raise Refused(422, "question", f"question is {text!r:.40}; expected a text")
        if seed is not None and (type(seed) is not int or not 0 <= seed < MOST_SEED):
            raise Refused(422, "seed", f"seed is {seed!r:.40}; expected null or 0 to {MOST_SEED}")
        self._prompt(text)  # refuses a question before its passages are searched for
        passages = await self._find(text)
        prompt = self._prompt(text, passages or ())
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def send(event: Event) -> None:
            try:
                loop.call_soon_threadsafe(events.put_nowait, event)
            except RuntimeError:  # the server has stopped
                question.gone = True

        question = Question(text, prompt, seed, send, passages)
        try:
            waiting = self.batcher.put(question)
        except Full:
            message = "too many questions are waiting; please ask again in a moment"
            raise Refused(503, "full", message) from None
        name = secrets.token_hex(8)
        self._answered[name] = question
        if len(self._answered) > MOST_KEPT:
            self._answered.popitem(last=False)
        first = {"ask": name, "waiting": waiting, "passages": [*(passages or ())]}
        lines = as_lines(first, question, events)
        return StreamingResponse(lines, media_type="application/x-ndjson")

    def _prompt(self, text: str, passages: Sequence[str] = ()) -> list[int]:
        """Ids of the prompt. Raises Refused."""
        try:
            return self.bot.prompt(text, passages)
        except ValueError as fault:
            raise Refused(422, "question", str(fault)) from fault

    async def _find(self, text: str) -> tuple[str, ...] | None:
        """The passages of a question; None without retrieval."""
        if self.passages is None:
            return None
        async with self._finding:
            return await asyncio.to_thread(self.passages, text)

    async def vote(self, request: Request) -> Response:
        """POST /api/vote {ask, a, b, vote, blind}: {row}, once it is on the disk."""
        if self.votes is None:
            raise Refused(404, "no_votes", "votes are off here")
        body = await read_json(request)
        ask, a, b = (str(body.get(key)) for key in ("ask", "a", "b"))
        question = self._answered.get(ask)
        if question is None:
            message = "that question is older than the server's start, or too old"
            raise Refused(404, "unknown", message)
        try:
            vote, answers = str(body.get("vote")), question.answers
            row = group(ask, question.text, answers, a, b, vote, question.passages)
        except ValueError as fault:
            raise Refused(422, "vote", str(fault)) from fault
        row |= {"blind": body.get("blind") is True, "seed": question.seed}
        row |= {"made_at": [self.bot.made_at(name) for name in (a, b)]}
        row |= {"time": datetime.now(UTC).isoformat(timespec="seconds")}
        pair = ask, frozenset((a, b))
        async with self._voting:
            if pair in self._voted:
                raise Refused(409, "voted", "there is a vote on these two answers already")
            try:
                await asyncio.to_thread(self.votes.append, row)
            except OSError as fault:
                message = f"{self.votes.path}: cannot be written: {fault.strerror or fault}"
                raise Refused(507, "vote_file", message) from fault
            self._voted.add(pair)
        return JSONResponse({"row": row})


async def as_lines(
    first: Event, question: Question, events: asyncio.Queue[Event]
) -> AsyncGenerator[str]:
    """JSON lines until the last event; a reader who leaves is noted."""
    try:
        event = first
        while True:
            yield json.dumps(event, ensure_ascii=False) + "\n"
            if "done" in event or "error" in event:
                return
            event = await events.get()
    finally:
        question.gone = True


@lru_cache(maxsize=1)
def font() -> bytes:
    """NanumGothic of koreanize-matplotlib, for machines without a Korean font; none: empty.

    Without its tables TSI*, an editor's sources, one of which is empty: browsers refuse the file.
    """
    spec = find_spec("koreanize_matplotlib")
    folders = spec.submodule_search_locations if spec else None
    files = [Path(folder, "fonts", "NanumGothic.ttf") for folder in folders or ()]
    out = BytesIO()
    for file in filter(Path.is_file, files):
        with TTFont(file, lazy=True) as found:
            for table in filter(lambda name: name.startswith("TSI"), found.keys()):
                del found[table]
            found.save(out, reorderTables=None)
    return out.getvalue()


async def korean_font(request: Request) -> Response:
    """GET /font.ttf."""
    found = await asyncio.to_thread(font)
    kept = {"Cache-Control": "private, max-age=86400"}
    return Response(found, 200 if found else 404, kept, media_type="font/ttf")


def build(
    batcher: Batcher,
    votes: VoteFile | None,
    token: str | None,
    examples: Sequence[str] = (),
    passages: Finder | None = None,
) -> Starlette:
    """The application.

    `token` None: for loopback alone. `votes` None: nobody votes. `examples`: questions on offer.
    `passages` None: questions alone.
    """
    chat = Chat(batcher, votes, examples, passages)
    names = ("chat.css", "chat.js", "icon.svg")
    files = {"/": PAGE / "index.html", **{f"/{name}": PAGE / name for name in names}}

    def shows(file: Path) -> Any:
        async def respond(request: Request) -> Response:
            return FileResponse(file)

        return respond

    return Starlette(
        routes=[
            *(Route(path, shows(file)) for path, file in files.items()),
            Route("/font.ttf", korean_font),
            Route("/api/about", chat.about),
            Route("/api/ask", chat.ask, methods=["POST"]),
            Route("/api/vote", chat.vote, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, token=token)],
        exception_handlers={Refused: on_refused},
    )
