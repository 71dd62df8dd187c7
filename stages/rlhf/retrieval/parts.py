"""Work on many texts a part at a time, each kept in a file: a build that was killed resumes."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from stages.rlhf import files

PART = 8192  # texts


def in_parts(
    texts: Sequence[str], make: Callable[[Sequence[str]], bytes], kept: Path | None, kind: str
) -> Iterator[bytes]:
    """What `make` makes of every PART texts, in order.

    In the folder `kept` each is a file, by the hash of its texts and of `kind`, which names what is
    made: a whole one is read instead of made again. None: nothing is kept.
    """
    if kept is None:
        yield from (make(texts[i : i + PART]) for i in range(0, len(texts), PART))
        return
    kept.mkdir(parents=True, exist_ok=True)
    for i in range(0, len(texts), PART):
        part = texts[i : i + PART]
        name = hashlib.sha256("\0".join([kind, *part]).encode()).hexdigest()
        target = kept / f"{name}.part"
        if not target.is_file():
            draft = target.with_suffix(".tmp")
            draft.write_bytes(make(part))
            files.sync(draft)
            files.rename(draft, target)
        yield target.read_bytes()
