"""Query, key, value and output projections that compute only what a swapped layer needs.

A new way to lay out queries and keys in a layer is a class in cut.py, and one in trimmed.py for exports.
"""
