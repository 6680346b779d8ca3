"""Comparisons of kinds of attention, each trained from the same start.

Imports from study and from_scratch. Variants are entries of the settings, sections of the page are in report.
"""
