"""Kinds whose heads use calibrated matrices: constant, gated, shared, folded."""
