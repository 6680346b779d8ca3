"""Families of encoders: one row of the table each, and a class where attention is computed inside the module.

May import seam and projections. A new family is a row in table.py, and a file here if it needs a class of its own.
"""
