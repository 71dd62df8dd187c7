"""How the learning rate moves over a run."""

import math


def cosine_schedule(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate at `step`: linear warm-up, then a cosine down to a tenth."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
