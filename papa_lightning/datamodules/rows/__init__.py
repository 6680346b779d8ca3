"""Rows of a task: checked, tokenised, laid out in slots, and stored."""
