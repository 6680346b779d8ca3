"""Atlas of the heads of an encoder: what the constant of each head does, in words and numbers.

``patterns`` has the words, each with its score (a new one is a function registered in ``PATTERNS``), ``statistics`` the
numbers that a constant itself gives, and ``heads`` the atlas with what a pass over data adds. May import criteria and
the rooms below; pages of it are made in ``study.report``.
"""

from papa_lightning.atlas.heads import HeadAtlas, make_atlas, measure_atlas
from papa_lightning.atlas.patterns import PATTERNS, Pattern, name_pattern
from papa_lightning.atlas.statistics import LayerAverage

__all__ = ["PATTERNS", "HeadAtlas", "LayerAverage", "Pattern", "make_atlas", "measure_atlas", "name_pattern"]
