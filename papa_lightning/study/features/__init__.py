"""Features: the hidden states that a probe reads, stored or computed for every batch."""
