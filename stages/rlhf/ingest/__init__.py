"""From people's files to clean, split rows."""
