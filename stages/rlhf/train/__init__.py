"""Supervised training: the base model and SFT."""
