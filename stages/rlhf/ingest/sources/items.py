"""One row of a source in a common, not yet validated shape."""

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

Part = Literal["sft", "rm", "ppo"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)

MISSING: Final = object()  # the row lacks the key; None is a null in the file


@dataclass(frozen=True)
class Item:
    """A row as its reader parsed it; values are those of the file, or MISSING.

    `answers`: one answer (sft), the group (rm) or none (ppo). `first_rank`: the format's rank of
    the best answer. `validation`: whether it comes from the source's own Validation part.
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
    """The optional keys that all formats but KoChatGPT share."""
    return {name: row.get(name) for name in ("split", "kind", "must_contain", "defects")}
