"""The report of a study: one HTML page with its figures.

Imports from study and figures; the command line imports it. A section of the page is a function in findings (text and
tables), scores (figures of scores) or heads (figures of heads), registered with ``SECTIONS.section``.
"""
