"""Files that are written whole or not at all, by one process at a time, and that say when they were damaged."""
