"""The report of a study: one HTML page with its figures.

Imports from study and figures. Sections, registered with ``SECTIONS.section``, are in findings, scores and heads.
"""
