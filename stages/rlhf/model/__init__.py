"""Models: loading, adapters, batching, log-probabilities."""
