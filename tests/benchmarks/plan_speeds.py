"""What `koqa plan` expects of a pass over a model, against the time that it takes here.

    python -m tests.benchmarks.plan_speeds

Of two tiny models of two families: the plan times two layers of its own, at these widths, and the
model itself reads as many tokens, in turn. A ratio near 1 is wanted; on a machine with other work
it may be anything. Prints a row per model and repeat.
"""

from collections.abc import Mapping
from functools import partial

import torch

from stages.rlhf.chat import Codec
from stages.rlhf.plan.calibration import measure, seconds_of
from stages.rlhf.plan.duration import Costs
from stages.rlhf.plan.footprint import Shape
from tests.model_fixtures import LORA, shipped, tiny_gemma2, tiny_llama
from tests.tokenizer_fixtures import tiny_tokenizer

MODELS = {"llama": tiny_llama, "gemma2": tiny_gemma2}
ROWS, TOKENS, REPEATS = 16, 64, 3


def compared(name: str) -> Mapping[str, float]:
    """Milliseconds of one pass over ROWS rows: planned, taken."""
    codec = Codec(tiny_tokenizer())
    model = MODELS[name](len(codec.tokenizer)).eval()
    entry = shipped().models["micro"].model_copy(update={"lora": LORA})
    shape = Shape.of(model.config.to_dict())
    batch = torch.ones(ROWS, TOKENS, dtype=torch.long)
    planned = Costs(shape, measure(shape, entry, tokens=batch.numel())).read(batch.numel())
    with torch.no_grad():
        taken = seconds_of(partial(model.model, input_ids=batch))
    return {"planned": 1e3 * planned, "taken": 1e3 * taken, "ratio": planned / taken}


def main() -> None:
    """Print the comparison."""
    for name in MODELS:
        for _ in range(REPEATS):
            figures = compared(name)
            print(f"{name:8}", *(f"{key} {value:.2f}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
