"""Patterns: words for what the constant of a head does, each with a score from 0 to 1."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from papa_lightning.atlas.statistics import NEAR, LayerAverage
from papa_lightning.registry import Registry

#: Score from which a head that looks at one token is named after it, and those of the other patterns.
SINGLE, OTHER = 0.4, 0.5
#: Least unexplained share of the weights of a head whose constant depends on the position itself.
BY_POSITION = 0.2
#: Name of a head that no pattern describes.
MIXED = "mixed"


@dataclass(frozen=True)
class Pattern:
    """A pattern of attention.

    Args:
        words: Name for people.
        meaning: What the score is, for legends.
        score: Scores (H,) of the heads of a layer; None where they are not known.
        least: Score from which a head can be named after it.
        single: Whether it is the weight of one token; of these the strongest gives the name.
    """

    words: str
    meaning: str
    score: Callable[[LayerAverage], Tensor | None]
    least: float = SINGLE
    single: bool = True


#: Patterns by name, in the order in which tables list them and names are given.
PATTERNS: Registry[Pattern] = Registry("pattern", lambda part: isinstance(part, Pattern), "papa_lightning.patterns")

_SINGLES = {
    "previous": ("previous token", "mean weight on the token before", lambda layer: layer.offset_share(1)),
    "next": ("next token", "mean weight on the token after", lambda layer: layer.offset_share(-1)),
    "itself": ("itself", "mean weight on the token itself", lambda layer: layer.offset_share(0)),
    "first": ("first token", "mean weight on the first token, CLS in BERT", lambda layer: layer.slot_share(0)),
    "separator": ("separator", "weight on separators, SEP in BERT", lambda layer: layer.separator_share),
}
for _name, (_words, _meaning, _score) in _SINGLES.items():
    PATTERNS[_name] = Pattern(_words, _meaning, _score)


def _local(layer: LayerAverage) -> Tensor:
    """The near share beyond that of equal weights, which is large where sequences are short."""
    even = min(layer.near_share_of_even, 1.0 - 1e-9)
    return ((layer.near_share - even) / (1.0 - even)).clamp_min(0.0)


PATTERNS["local"] = Pattern(
    "local window", f"share within {NEAR} tokens, 0 for equal weights", _local, least=0.3, single=False
)
PATTERNS["broad"] = Pattern(
    "broad", "evenness of the weights, 1 for equal weights", lambda layer: layer.evenness, OTHER, single=False
)
PATTERNS["position"] = Pattern(
    "position-specific",
    "share of the squared weights that distance and key do not explain",
    lambda layer: layer.by_position,
    BY_POSITION,
    single=False,
)


def name_pattern(scores: Mapping[str, float]) -> str:
    """The name of the pattern that describes a head best, by its scores: a word of :data:`PATTERNS`, or "mixed".

    The token with the most weight gives the name from a weight of 0.4 on; without one, the first of the other patterns
    whose score is large enough.

    Example:
        >>> name_pattern({"previous": 0.9, "first": 0.05, "local": 0.97})
        'previous token'
        >>> name_pattern({"previous": 0.1, "first": 0.2, "local": 0.1, "broad": 0.8})
        'broad'
    """
    reached = [name for name, score in scores.items() if score >= PATTERNS[name].least]
    singles = [name for name in reached if PATTERNS[name].single]
    if singles:
        return PATTERNS[max(singles, key=scores.__getitem__)].words
    return PATTERNS[reached[0]].words if reached else MIXED
