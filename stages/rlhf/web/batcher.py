"""Questions of many people, answered together by one thread that owns the models."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from stages.rlhf.bot.models import Bot
from stages.rlhf.bot.stream import Text
from stages.rlhf.chat import cited, declines

MOST_WAITING = 64  # questions; more are turned away
MOST_TOGETHER = 16  # questions decoded in one batch
PIECE_SECONDS = 0.05  # between two pieces of one answer

Event = dict[str, Any]
Source = Callable[[str, Sequence[str], str], int | None]  # of question, passages, answer
logger = logging.getLogger(__name__)


class Question:
    """One question on its way: `send` gets its events, in the batcher's thread.

    `passages`: those of its prompt; None without retrieval.
    Events: {model, piece}; {model, answer, tokens, ended, reward, judge} of a whole answer, with
    retrieval also {cited, declines, stated}; {done}; {error}, after which nothing follows.
    """

    def __init__(
        self,
        text: str,
        prompt: list[int],
        seed: int | None,
        send: Callable[[Event], None],
        passages: Sequence[str] | None = None,
    ) -> None:
        self.text, self.prompt, self.seed, self.send = text, prompt, seed, send
        self.passages = passages
        self.answers: dict[str, Event] = {}
        self.gone = False  # nobody reads the answer any more


class Full(Exception):
    """Too many questions are waiting."""


class Batcher:
    """A queue in front of a Bot: the longest waiting question first, with all that fit its batch.

    A batch is greedy, or sampled from a seed per question. `source` finds the passage that states
    an answer, where there are passages.
    """

    def __init__(
        self,
        bot: Bot,
        models: Sequence[str],
        together: int = MOST_TOGETHER,
        start: bool = True,
        source: Source | None = None,
    ) -> None:
        self.bot, self.models, self.together, self.source = bot, models, together, source
        self._waiting: deque[Question] = deque()
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        if start:
            self._thread.start()

    def put(self, question: Question) -> int:
        """Queue a question; how many are before it. Raises Full."""
        with self._changed:
            if len(self._waiting) >= MOST_WAITING:
                raise Full
            self._waiting.append(question)
            self._changed.notify()
            return len(self._waiting) - 1

    def close(self) -> None:
        """End after the current step; questions that wait get an error."""
        with self._changed:
            self._open = False
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            try:
                for name in self.models:
                    self._answer(name, batch)
                for question in batch:
                    question.send({"done": True})
            except Exception:
                logger.exception("a batch of %d questions failed", len(batch))
                for question in batch:
                    question.send({"error": "failed"})

    def _next(self) -> list[Question]:
        """The next batch, once there is one; empty when closed."""
        with self._changed:
            while self._open:
                self._waiting = deque(one for one in self._waiting if not one.gone)
                if self._waiting:
                    greedy = self._waiting[0].seed is None
                    alike = [one for one in self._waiting if (one.seed is None) == greedy]
                    alike = alike[: self.together]
                    for one in alike:
                        self._waiting.remove(one)
                    return alike
                self._changed.wait()
            for one in self._waiting:
                one.send({"error": "closed"})
            self._waiting.clear()
            return []

    def _answer(self, name: str, batch: list[Question]) -> None:
        """Stream one model's answers, then what is known of each."""
        texts = [Text(self.bot.codec) for _ in batch]
        pieces = ["" for _ in batch]
        sent = time.monotonic()
        seeds = [one.seed for one in batch if one.seed is not None] or None
        steps = self.bot.stream(name, [one.prompt for one in batch], seeds)
        try:
            for step in steps:
                for row, token in step.items():
                    pieces[row] += texts[row].add(token)
                if time.monotonic() - sent >= PIECE_SECONDS:
                    _send_pieces(name, batch, pieces)
                    sent = time.monotonic()
                if not self._open or all(one.gone for one in batch):
                    break
        finally:
            steps.close()
        pieces = [piece + text.rest() for piece, text in zip(pieces, texts, strict=True)]
        _send_pieces(name, batch, pieces)
        pairs = [(one.prompt, text.ids) for one, text in zip(batch, texts, strict=True)]
        scores = self.bot.scores(pairs)
        for row, (one, text) in enumerate(zip(batch, texts, strict=True)):
            found = scores[row] if scores else None
            answer = self.bot.codec.text(text.ids)
            one.answers[name] = {
                "model": name,
                "answer": answer,
                "tokens": len(text.ids),
                "ended": text.ended,
                "reward": found and found.reward,
                "judge": found and found.judge,
            }
            if one.passages is not None:
                one.answers[name] |= {"cited": cited(answer), "declines": declines(answer)}
                if self.source and one.passages:
                    stated = self.source(one.text, one.passages, answer) is not None
                    one.answers[name]["stated"] = stated
            one.send(one.answers[name])


def _send_pieces(name: str, batch: list[Question], pieces: list[str]) -> None:
    """Send each question its new text, and forget it."""
    for row, question in enumerate(batch):
        if pieces[row]:
            question.send({"model": name, "piece": pieces[row]})
            pieces[row] = ""
