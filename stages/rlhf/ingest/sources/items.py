"""One row of a source in a common, not yet validated shape."""

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

Part = Literal["sft", "rm", "ppo"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)

MISSING: Final = object()  # the row lacks the key; None is a null in the file


@dataclass(frozen=True)
class Item:
    """A row as its reader parsed it; values are those of the file, or MISSING.

    `answers`: one answer (sft), the group (rm) or none (ppo). `ranks`: a rank of each answer, where
    `first_rank` is the best; or, if `scored`, a score, where higher is better. `side`: the split
    that file or folder names stand for. `shape`: the keys read, if the format has several.
    `fault`: why the row cannot be read. `ignored`: what of it is not used.
    """

    part: Part
    id: str
    raw: Any
    question: Any = MISSING
    answers: tuple[Any, ...] = ()
    ranks: tuple[Any, ...] = ()
    first_rank: int = 1
    scored: bool = False
    defects: Any = None
    category: Any = None
    question_type: Any = None
    kind: Any = None
    must_contain: Any = None
    split: Any = None
    side: str | None = None
    shape: tuple[str, ...] = ()
    fault: str | None = None
    ignored: tuple[str, ...] = ()


def labels(row: dict[str, Any]) -> dict[str, Any]:
    """The optional keys that all formats but KoChatGPT share."""
    return {name: row.get(name) for name in ("split", "kind", "must_contain", "defects")}
