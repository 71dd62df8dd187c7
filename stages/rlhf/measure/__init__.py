"""Metrics and statistics: strings and arrays in, numbers out."""
