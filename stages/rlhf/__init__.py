"""The library behind the stages: records, models, losses, the PPO trainer, metrics, figures."""
