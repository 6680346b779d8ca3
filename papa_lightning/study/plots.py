"""The figures of a report: plain data in, a matplotlib Figure out."""

from papa_lightning.figures.bars import control_points, drop_against_baseline, drop_bars
from papa_lightning.figures.curves import level_curves, relative_curves, score_curves, sequences_curve
from papa_lightning.figures.heads import constants_grid, coverage_histograms, head_maps, shown_layers
from papa_lightning.figures.style import as_png, as_svg

__all__ = [
    "as_png",
    "as_svg",
    "constants_grid",
    "control_points",
    "coverage_histograms",
    "drop_against_baseline",
    "drop_bars",
    "head_maps",
    "level_curves",
    "relative_curves",
    "score_curves",
    "sequences_curve",
    "shown_layers",
]
