"""Features: the hidden states that a probe reads, stored, in the memory of a GPU, or computed for every batch.

Imports from tasks and files. A new kind of probe has a reading in reading, with an entry in READINGS.
"""
