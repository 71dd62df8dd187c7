"""Peak MiB of one PPO update above a process that holds its models:

python -m tests.ppo.measured_update HIDDEN TOKENS

A random Llama in float32, 64 responses of 64 tokens; prints one JSON line.
"""

import gc
import json
import sys

import torch

from tests.benchmarks import ppo_sides
from tests.benchmarks.process_memory import memory


def main() -> None:
    """Measure it."""
    hidden, tokens = (int(word) for word in sys.argv[1:3])
    torch.set_num_threads(2)
    setting = ppo_sides.Setting(batch=64, response=64, epochs=1, vocab=2000, hidden=hidden)
    made = ppo_sides.material(setting)
    ours = ppo_sides.Ours(made, setting, tokens)
    prompts = [made.codec.prompt_ids(question) for question in made.questions[:64]]
    gc.collect()
    start = memory("VmRSS")
    for _ in range(2):
        ours.update(prompts)
    print(json.dumps({"mib": memory("VmHWM") - start}))


if __name__ == "__main__":
    main()
