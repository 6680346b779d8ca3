"""Studies that compare kinds of attention, each trained from the same start."""
