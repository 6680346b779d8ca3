"""Query, key, value and output projections of swapped layers; a new layout is a class in cut.py and in trimmed.py."""
