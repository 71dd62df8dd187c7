"""Memory and time estimates before a run; comparison of base models after."""
