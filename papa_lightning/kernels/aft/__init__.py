"""Attention-free mixing: scans of causal AFT-simple, tiles of the other forms, and the kernel of AFT-conv."""
