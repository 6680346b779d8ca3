"""Supported families of encoders, and attention for those that compute it themselves; add one to table.py."""
