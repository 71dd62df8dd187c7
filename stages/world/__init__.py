"""A small Korean world with known truth: facts, questions, answers and what goes wrong with them.

It stands in for the users' own download, so that the whole pipeline runs offline.
"""
