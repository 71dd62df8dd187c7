"""Passages of a corpus, and the ones that a question is about."""
