"""Sizes shared by the code that uses them and the memory plan, which does not import that code."""

TEMPLATE_TOKENS = 16  # of max_prompt_tokens, reserved by preprocess for the chat template
SCORING_TOKENS = 2048  # per batch when the reward model scores
# Rows and vocabulary columns of a logits tile: 1 MiB, which fits a CPU core's cache; 64 MiB.
LOGITS_TILE = {"cpu": (256, 1024), "cuda": (2048, 8192)}
GATE_OF = 4  # SFT's samples per prompt in the gate before PPO
