"""The reward model and the judge."""
