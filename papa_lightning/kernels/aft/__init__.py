"""Attention-free mixing: scans of causal AFT-simple, tiles of the other forms, the kernel of AFT-conv, and launches."""
