"""Budgets: the largest number of constant heads within a loss of the score.

Imports from study. Settings are in settings, measurements in points, the search and its files in search.
"""
