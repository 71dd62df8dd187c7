"""Numbers from strings and arrays."""
