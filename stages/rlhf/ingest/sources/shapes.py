"""The shapes in which the field keeps rows, recognised by their keys.

    sft   question answer | prompt completion | instruction input output | messages
    rm    question answers ranks | question answers scores | prompt chosen rejected
          | conversations chosen rejected
    ppo   question | prompt | instruction input | messages

Every key has the synonyms below; a text may also be a list of turns or a transcript, and chosen and
rejected may both hold the prompt. In `ranks` 1 is the best; in `scores` the highest is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from stages.rlhf.ingest.sources.chats import (
    SYSTEM,
    Exchange,
    Misread,
    exchange,
    is_chat,
    last_answer,
    turns_of,
)
from stages.rlhf.ingest.sources.items import Part

QUESTION: Final = ("question", "prompt", "instruction", "query", "input")
ANSWER: Final = ("answer", "completion", "output", "response")
MESSAGES: Final = ("messages", "conversations", "conversation")
ANSWERS: Final = ("answers", "completions", "outputs", "responses")
RANKS: Final = ("ranks", "ranking", "rank")
SCORES: Final = ("scores", "ratings", "score", "rating", "overall_score")
_UNUSED: Final = ("system", "system_prompt", "history")  # of the question
_PAIR: Final = ("chosen", "rejected")
_CONTEXT: Final = "input"  # of an instruction

Row = Mapping[str, Any]


def read_row(part: Part, row: Row) -> dict[str, Any]:
    """question, answers, ranks, scored, shape and ignored of an Item; or its fault."""
    read = {"sft": _demonstration, "rm": _group, "ppo": _prompt}[part]
    try:
        found = read(row)
    except Misread as misread:
        return {"fault": str(misread)}
    unused = [name for name in _UNUSED if row.get(name)]
    return found | {"ignored": (*found["ignored"], *unused)}


def _demonstration(row: Row) -> dict[str, Any]:
    if (key := _first(row, MESSAGES)) and not _has(row, ANSWER):
        found = exchange(turns_of(_chat(row, key)))
        if found.answer is None:
            raise Misread(f"{key} ends with a question; expected an assistant turn at the end")
        return _read((key,), found, [found.answer])
    question, keys = _question(row)
    key = _needed(row, ANSWER)
    answer = last_answer(row[key]) if is_chat(row[key]) else row[key]
    return _read((*keys, key), question, [answer])


def _prompt(row: Row) -> dict[str, Any]:
    if (key := _first(row, MESSAGES)) and not _has(row, QUESTION):
        return _read((key,), exchange(turns_of(_chat(row, key))), [])
    question, keys = _question(row)
    return _read(keys, question, [])


def _group(row: Row) -> dict[str, Any]:
    if row.get("chosen") is not None and row.get("rejected") is not None:
        return _pair(row)
    if not _has(row, ANSWERS) and (key := next((k for k in _PAIR if row.get(k)), None)):
        other = next(k for k in _PAIR if k != key)
        raise Misread(f"{key} without {other}; expected both")
    if not (key := _first(row, ANSWERS)) and (key := _first(row, MESSAGES)):
        raise Misread(f"{key} has one answer; expected chosen and rejected, or answers and ranks")
    key = _needed(row, ANSWERS, "chosen and rejected")
    question, keys = _question(row)
    answers = row[key]
    if not isinstance(answers, list):
        raise Misread(f"{key} is {answers!r:.60}; expected a list")
    if answers and all(isinstance(one, dict) for one in answers) and not _are_turns(answers):
        return _graded(answers, question, (*keys, key))
    order = _first(row, (*RANKS, *SCORES))
    if order is None:
        raise Misread(_lacks(row, ("ranks (1 = best)", "scores (highest = best)")))
    values = row[order]
    if not isinstance(values, list):
        raise Misread(f"{order} is {values!r:.60}; expected a list with one for each answer")
    texts = [last_answer(one) if is_chat(one) else one for one in answers]
    return _read((*keys, key, order), question, texts, values, order in SCORES)


def _are_turns(answers: Sequence[Row]) -> bool:
    """Whether dicts are turns and not graded answers."""
    return all("role" in one or "from" in one for one in answers)


def _graded(answers: Sequence[Row], question: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    """A list of {text, rank} or {text, score}."""
    first = answers[0]
    text = _needed(first, (*ANSWER, "text", "content"))
    order = _first(first, (*RANKS, *SCORES))
    if order is None:
        raise Misread(_lacks(first, ("rank (1 = best)", "score (highest = best)")))
    for one in answers:
        if text not in one or order not in one:
            raise Misread(_lacks(one, (text, order)))
    texts, values = ([one[key] for one in answers] for key in (text, order))
    return _read((*keys, text, order), question, texts, values, order in SCORES)


def _pair(row: Row) -> dict[str, Any]:
    """chosen and rejected: a text, a list of texts, or turns that may begin with the prompt."""
    better, worse = _sides(row["chosen"]), _sides(row["rejected"])
    ranks = [1] * len(better) + [2] * len(worse)
    texts = [last_answer(one) if is_chat(one) else one for one in (*better, *worse)]
    chats = [one for one in (*better, *worse) if is_chat(one)]
    key = None if _has(row, QUESTION) else _first(row, MESSAGES)
    if key and isinstance(row["chosen"], dict):
        return _read((key, *_PAIR), exchange(turns_of(_chat(row, key))), texts, ranks)
    if _has(row, QUESTION) or len(chats) < len(texts):
        question, keys = _question(row)
        return _read((*keys, *_PAIR), question, texts, ranks)
    found = [exchange(turns_of(chat)) for chat in chats]
    if any(one.question != found[0].question for one in found):
        raise Misread("chosen and rejected begin with different prompts")
    return _read(_PAIR, found[0], texts, ranks)


def _sides(value: Any) -> list[Any]:
    """The answers of one side; a single turn is a conversation of one."""
    if isinstance(value, dict):
        return [[value]]
    several = isinstance(value, list) and bool(value) and not isinstance(value[0], dict)
    return list(value) if several else [value]


def _question(row: Row) -> tuple[Any, tuple[str, ...]]:
    """The question, as the file has it or as an Exchange, and the keys it was read from."""
    key = _needed(row, QUESTION)
    value = row[key]
    if is_chat(value):
        return exchange(turns_of(value)), (key,)
    context = row.get(_CONTEXT)
    if key == "instruction" and isinstance(context, str) and context.strip():
        return (f"{value}\n{context}" if isinstance(value, str) else value), (key, _CONTEXT)
    return value, (key,)


def _read(
    shape: tuple[str, ...],
    question: Any,
    answers: Sequence[Any],
    ranks: Sequence[Any] = (),
    scored: bool = False,
) -> dict[str, Any]:
    chat = isinstance(question, Exchange)
    return {
        "question": question.question if chat else question,
        "answers": tuple(answers),
        "ranks": tuple(ranks),
        "scored": scored,
        "shape": shape,
        "ignored": (SYSTEM,) if chat and question.system else (),
    }


def _chat(row: Row, key: str) -> Any:
    if not is_chat(row[key]):
        raise Misread(f"{key} is {row[key]!r:.60}; expected a list of turns")
    return row[key]


def _has(row: Row, names: Sequence[str]) -> bool:
    return any(row.get(name) is not None for name in names)


def _first(row: Row, names: Sequence[str]) -> str | None:
    """The first of the keys that has a value; in a table a row has the columns of all others."""
    present = [name for name in names if name in row]
    return next((name for name in present if row[name] is not None), (*present, None)[0])


def _needed(row: Row, names: Sequence[str], *instead: str) -> str:
    """The first of the keys that has a value. Raises Misread, naming what may stand `instead`."""
    key = _first(row, names)
    if key is None:
        raise Misread(_lacks(row, (*names, *instead)))
    return key


def _lacks(row: Row, names: Sequence[str]) -> str:
    others = f" (or {', '.join(names[1:])})" if names[1:] else ""
    found = ", ".join(map(str, list(row)[:12])) or "none"
    return f"no key {names[0]}{others}; keys found: {found:.300}"
