"""Compact constants: averaged attention as a few numbers a head."""
