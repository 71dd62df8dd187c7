"""What the stages share: records, models, losses, the PPO trainer, metrics and figures."""
