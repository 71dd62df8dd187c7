"""Decoding: token ids from a model, batch by batch."""
