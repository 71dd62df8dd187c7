"""PPO: read core, reward, rollout, trainer, in this order."""
