"""Questions answered together get what each would get alone, in turn, and none is forgotten."""

import queue
from collections.abc import Iterator
from typing import Any

import pytest

from stages.rlhf.bot.models import NAMES, Bot
from stages.rlhf.bot.stream import Text
from stages.rlhf.web import batcher as batcher_module
from stages.rlhf.web.batcher import Batcher, Event, Full, Question
from tests.tokenizer_fixtures import QUESTIONS


class Reader:
    """A question and the events that it got."""

    def __init__(self, bot: Bot, text: str, seed: int | None = None) -> None:
        self.events = queue.Queue[Event]()
        self.question = Question(text, bot.prompt(text), seed, self.events.put)

    def all(self) -> list[Event]:
        found = []
        while True:
            found.append(self.events.get(timeout=60))
            if "done" in found[-1] or "error" in found[-1]:
                return found


def test_each_question_gets_its_own_answers(bot: Bot) -> None:
    readers = [Reader(bot, text) for text in QUESTIONS]
    batcher = Batcher(bot, NAMES, start=False)
    assert [batcher.put(reader.question) for reader in readers] == [*range(len(QUESTIONS))]
    batcher._thread.start()
    for reader in readers:
        events = reader.all()
        assert events[-1] == {"done": True}
        whole = {event["model"]: event for event in events if "answer" in event}
        assert list(whole) == list(NAMES)
        assert whole == reader.question.answers
        for name, event in whole.items():
            prompt = bot.prompt(reader.question.text)
            (ids,) = bot.greedy(name, [prompt])
            assert event["answer"] == bot.codec.text(ids)
            assert (event["tokens"], event["ended"]) == (len(ids), ids[-1] == bot.codec.eos_id)
            (scores,) = bot.scores([(prompt, ids)]) or (None,)
            assert scores is not None
            assert (event["reward"], event["judge"]) == pytest.approx(tuple(scores), abs=1e-4)
            pieces = [e["piece"] for e in events if e.get("model") == name and "piece" in e]
            assert "".join(pieces) == event["answer"]
    batcher.close()


def test_answers_come_in_pieces(bot: Bot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "PIECE_SECONDS", 0.0)
    reader = Reader(bot, QUESTIONS[5])
    batcher = Batcher(bot, ("ppo",))
    batcher.put(reader.question)
    found = [event["piece"] for event in reader.all() if "piece" in event]
    batcher.close()
    (ids,) = bot.greedy("ppo", [reader.question.prompt])
    text = Text(bot.codec)
    expected = [*(text.add(one) for one in ids), text.rest()]
    assert found == [piece for piece in expected if piece]
    assert len(found) > 1


def test_a_batch_is_greedy_or_sampled_and_begins_with_who_waits_longest(bot: Bot) -> None:
    batcher = Batcher(bot, NAMES, together=2, start=False)
    readers = [Reader(bot, QUESTIONS[0], seed) for seed in (None, 3, None, None, 5)]
    for reader in readers:
        batcher.put(reader.question)
    order = [r.question for r in readers]
    assert batcher._next() == [order[0], order[2]]
    assert batcher._next() == [order[1], order[4]]
    assert batcher._next() == [order[3]]


def test_sampled_answers_depend_on_their_seeds_alone(bot: Bot) -> None:
    def answers(*seeds: int) -> list[str]:
        batcher = Batcher(bot, ("ppo",), start=False)
        readers = [Reader(bot, QUESTIONS[5], seed) for seed in seeds]
        for reader in readers:
            batcher.put(reader.question)
        batcher._thread.start()
        found = [next(e["answer"] for e in r.all() if "answer" in e) for r in readers]
        batcher.close()
        return found

    together = answers(0, 1, 2)
    assert together == [answers(seed)[0] for seed in (0, 1, 2)]
    assert len(set(together)) > 1


def test_nobody_waits_for_an_answer_that_nobody_reads(bot: Bot) -> None:
    batcher = Batcher(bot, NAMES, start=False)
    left, here = Reader(bot, QUESTIONS[0]), Reader(bot, QUESTIONS[1])
    for reader in (left, here):
        batcher.put(reader.question)
    left.question.gone = True
    assert batcher._next() == [here.question]

    steps = 0
    stream = bot.stream

    def leaving(*args: Any) -> Iterator[dict[int, int]]:
        nonlocal steps
        for step in stream(*args):
            steps += 1
            here.question.gone = steps == 2
            yield step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bot, "stream", leaving)
        steps = -1000
        batcher._answer("ppo", [here.question])
        whole, steps = steps + 1000, 0
        batcher._answer("ppo", [here.question])
    assert steps == 2 < whole


def test_too_many_are_turned_away(bot: Bot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "MOST_WAITING", 2)
    batcher = Batcher(bot, NAMES, start=False)
    for text in QUESTIONS[:2]:
        batcher.put(Reader(bot, text).question)
    with pytest.raises(Full):
        batcher.put(Reader(bot, QUESTIONS[2]).question)


def test_a_failed_batch_is_signalled_and_the_next_is_answered(
    bot: Bot, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(bot, "scores", broken)
        reader = Reader(bot, QUESTIONS[0])
        batcher.put(reader.question)
        assert reader.all()[-1] == {"error": "failed"}
    reader = Reader(bot, QUESTIONS[0])
    batcher.put(reader.question)
    assert reader.all()[-1] == {"done": True}


def test_who_waits_when_it_closes_gets_an_error(bot: Bot) -> None:
    batcher = Batcher(bot, NAMES, start=False)
    reader = Reader(bot, QUESTIONS[0])
    batcher.put(reader.question)
    batcher.close()
    batcher._run()
    assert reader.all() == [{"error": "closed"}]
