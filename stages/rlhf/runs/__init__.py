"""Runs that survive a kill: cache, checkpoints, signals, provenance."""
