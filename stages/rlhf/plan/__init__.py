"""What a run will need, and how base models compare."""
