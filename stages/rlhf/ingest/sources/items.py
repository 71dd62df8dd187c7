"""One row of a source, brought to a common shape and not yet checked."""

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

Part = Literal["sft", "rm", "ppo"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)

MISSING: Final = object()  # a key that the row does not have; None is a null in the file


@dataclass(frozen=True)
class Item:
    """What a reader makes of a row; values are as they stand in the file, or MISSING.

    `answers` holds one answer (sft), the group (rm) or nothing (ppo); `first_rank` is the number
    that the format gives to the best answer. `validation`: from the source's own Validation part.
    """

    part: Part
    id: str
    raw: Any
    question: Any = MISSING
    answers: tuple[Any, ...] = ()
    ranks: tuple[Any, ...] = ()
    first_rank: int = 1
    defects: Any = None
    category: Any = None
    question_type: Any = None
    kind: Any = None
    must_contain: Any = None
    split: Any = None
    validation: bool = False


def labels(row: dict[str, Any]) -> dict[str, Any]:
    """The optional keys that every format but KoChatGPT honours under one name."""
    return {name: row.get(name) for name in ("split", "kind", "must_contain", "defects")}
