"""Lines to the person at the terminal, on stderr, around progress bars."""

import sys

from tqdm import tqdm


def notice(text: str) -> None:
    """Write a line to stderr without breaking a progress bar."""
    tqdm.write(text, file=sys.stderr)
