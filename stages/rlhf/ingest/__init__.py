"""From source files to clean, split rows."""
