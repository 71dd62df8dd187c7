"""The split of each question, near-duplicates together."""
