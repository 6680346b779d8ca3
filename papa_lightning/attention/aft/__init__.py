"""Attention-free mixing (Zhai et al. 2021): pure functions, layers on plain tensors, and kinds for encoders."""
