"""Figures: plots of heads, matrices and scores for callbacks, reports and benchmarks.

Imports torch and matplotlib only. A figure is a function of its data, styled with ``styled``.
"""

from papa_lightning.figures.heads import constants_grid, coverage_histograms, head_maps, shown_layers
from papa_lightning.figures.style import as_png, as_svg

__all__ = ["as_png", "as_svg", "constants_grid", "coverage_histograms", "head_maps", "shown_layers"]
