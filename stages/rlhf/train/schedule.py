"""Learning rate schedule."""

import math


def cosine_schedule(step: int, steps: int, warmup: int) -> float:
    """Learning rate multiplier at `step`: linear warm-up to 1, then cosine decay to 0.1."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
