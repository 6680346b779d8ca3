"""Figures of heads and matrices, for whoever shows them: callbacks and reports. Knows torch and matplotlib."""

from papa_lightning.figures.heads import constants_grid, coverage_histograms, head_maps, shown_layers
from papa_lightning.figures.style import as_png, as_svg

__all__ = ["as_png", "as_svg", "constants_grid", "coverage_histograms", "head_maps", "shown_layers"]
