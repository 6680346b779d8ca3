"""Readers of task data: files of each format, CoNLL, and the hub. A format is added to ``formats.READERS``."""
