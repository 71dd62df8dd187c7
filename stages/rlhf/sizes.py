"""Sizes shared by the code that uses them and the memory plan, which does not import that code."""

TEMPLATE_TOKENS = 16  # of max_prompt_tokens, reserved by preprocess for the chat template
SCORING_TOKENS = 2048  # per batch when the reward model scores
# Rows and vocabulary columns of a logits tile: 16 MiB, as every tile of a bfloat16 head is laid out
# anew for each block of rows, so that few rows cost more than the cache saves; 64 MiB.
LOGITS_TILE = {"cpu": (1024, 4096), "cuda": (2048, 8192)}
GATE_OF = 4  # SFT's samples per prompt in the gate before PPO
# Parameters of a decoder, embeddings apart, from which SFT recomputes activations in the backward
# pass: they outweigh the third of the time that it costs.
RECOMPUTED_FROM = 5e8
