"""The report of a study: one HTML page with its figures.

Imports from study, atlas and figures. Sections, registered with ``SECTIONS.section``, are in answer, findings, scores
and heads; the pages of ``papa atlas`` are in atlas.
"""
