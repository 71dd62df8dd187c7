"""A synthetic Korean QA world with known truth: facts, questions, answers and their defects.

It replaces the users' own data, so that the whole pipeline runs offline.
"""
