"""The chat page: base, SFT and PPO side by side, and votes between them."""
