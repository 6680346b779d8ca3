"""Rows of tasks as numbers: checks of values, tokenization, layouts, the cache, and warnings of losses."""
