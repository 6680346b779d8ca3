"""Comparisons of kinds of attention, each trained from the same start.

Imports from study and from_scratch. A variant is an entry of the settings; a section of the page is registered in
report.
"""
