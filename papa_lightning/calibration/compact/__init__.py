"""Compact constants: averaged attention in few numbers a head. The mathematics is in fit.py, without files."""
