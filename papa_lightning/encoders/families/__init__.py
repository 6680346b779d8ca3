"""Families of encoders: one row of the table each, and a class where their attention is inside the module."""
