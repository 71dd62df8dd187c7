"""Supervised training: pretraining of the tiny base model, and SFT."""
