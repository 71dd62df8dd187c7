"""Conversations as data sets have them: lists of turns, or a transcript "Human: … Assistant: …"."""

import re
from dataclasses import dataclass
from typing import Any, Final

_ROLES: Final = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "chatbot", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")
SYSTEM: Final = "system turn"


class Misread(Exception):
    """A row has none of the known shapes; the message says why. Always caught within preprocess."""


@dataclass(frozen=True)
class Turn:
    """What one side says: `role` is user, assistant or system."""

    role: str
    text: str


@dataclass(frozen=True)
class Exchange:
    """The last question, with the turns before it as its context, and its answer, if there is one.

    `system`: whether a system turn was left out.
    """

    question: str
    answer: str | None
    system: bool


def is_chat(value: Any) -> bool:
    """Whether a value is a conversation: turns, or a transcript."""
    if isinstance(value, str):
        return value.lstrip().startswith("Human:") and "\n\nAssistant:" in value
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def turns_of(value: Any) -> list[Turn]:
    """The turns of a conversation. Raises Misread."""
    if isinstance(value, str):
        _, *pieces = _SPEAKER.split(value.strip())
        pairs = zip(pieces[::2], pieces[1::2], strict=True)
        return [Turn(_ROLES[name.casefold()], text.strip()) for name, text in pairs]
    return [_turn(one) for one in value]


def exchange(turns: list[Turn]) -> Exchange:
    """The last question and its answer.

    A question comes with all turns before it, one per line. Raises Misread if nobody asks.
    """
    spoken = [turn for turn in turns if turn.role != "system"]
    answer = spoken.pop().text if spoken and spoken[-1].role == "assistant" else None
    if not spoken or spoken[-1].role != "user":
        raise Misread("expected a user turn before the last answer")
    question = "\n".join(turn.text for turn in spoken)
    return Exchange(question, answer, len(spoken) + (answer is not None) < len(turns))


def last_answer(value: Any) -> str:
    """What the assistant says last. Raises Misread if another role has the last word."""
    turns = turns_of(value)
    if turns[-1].role != "assistant":
        raise Misread(f"expected an assistant turn at the end, found {turns[-1].role}")
    return turns[-1].text


def _turn(value: Any) -> Turn:
    if not isinstance(value, dict):
        raise Misread(f"a turn is {value!r:.60}; expected role and content")
    role = value.get("role", value.get("from"))
    text = value.get("content", value.get("value"))
    if isinstance(text, list):  # parts, as multimodal chats have them
        parts = [one["text"] for one in text if isinstance(one, dict) and "text" in one]
        whole = len(parts) == len(text) and all(isinstance(part, str) for part in parts)
        text = "\n".join(parts) if whole else None
    if not isinstance(role, str) or role.casefold() not in _ROLES:
        raise Misread(f"a turn of role {role!r:.40}; expected user, assistant or system")
    if not isinstance(text, str):
        raise Misread(f"a turn of {role} without text")
    return Turn(_ROLES[role.casefold()], text)
