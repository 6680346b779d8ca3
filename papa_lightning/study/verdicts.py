"""Verdicts: what the interval of a relative change says of a margin, and how many examples would settle it."""

import math
from typing import Literal

from scipy import stats

from papa_lightning.study.intervals import CONFIDENCE, Estimate

Verdict = Literal["within", "beyond", "open", "no baseline", ""]
"""Whether a loss is at most a margin ("within"), more ("beyond"), or not settled ("open"); "" without an interval."""

#: Tolerance for the rounding of scores in float32: 99 of 100 must count as a loss of 1 %.
ROUNDING = 1e-6
#: Multiple of the examples beyond which a number says nothing but that a change is near the margin.
_MOST = 100


def verdict_of(change: Estimate, margin: float) -> Verdict:
    """The verdict on a relative change, which is below 0 for a loss."""
    if math.isnan(change.low):
        return ""
    if change.low >= -margin - ROUNDING:
        return "within"
    return "beyond" if change.high < -margin - ROUNDING else "open"


def examples_needed(change: Estimate, margin: float) -> float:
    """About how many examples would settle a change that stays as it is, with two digits.

    Infinite where more examples alone would not, but more seeds could; NaN where the examples' part of the interval is
    not known, or the change is so near to the margin that more than 100 times as many would be needed.
    """
    if change.basis in ("seeds", "none"):
        return math.nan
    normal = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
    seeds = float(stats.t.ppf(0.5 + CONFIDENCE / 2, max(change.seeds - 1, 1))) * change.seeds_error
    left = (change.value + margin) ** 2 - seeds**2
    if left <= 0:
        return math.inf if seeds > 0 else math.nan
    needed = change.examples * (normal * change.examples_error) ** 2 / left
    if needed > _MOST * change.examples:
        return math.nan
    # What is open now is not settled by as many examples, whatever the rounding.
    needed = max(needed, change.examples + 1)
    step = 10 ** max(math.floor(math.log10(needed)) - 1, 0)
    return float(math.ceil(needed / step) * step)


def counted_units(number: int, unit: str) -> str:
    """A number of what an interval is over, in words.

    Example:
        >>> counted_units(500, "examples"), counted_units(1, "pairs"), counted_units(50, "queries")
        ('500 validation examples', '1 pair', '50 queries')
    """
    one, several = {"pairs": ("pair", "pairs"), "queries": ("query", "queries")}.get(
        unit, ("validation example", "validation examples")
    )
    return f"{number} {one if number == 1 else several}"


def verdict_words(verdict: str, margin: float, needed: float = math.nan, unit: str = "examples") -> str:
    """A verdict in words, with the margin as a percentage; `unit` says what is needed more of."""
    limit = f"{100 * margin:.4g} %"
    if verdict == "open":
        if math.isnan(needed):
            return "not settled"
        if math.isinf(needed):
            return "not settled: needs more seeds"
        return f"not settled: needs about {needed:,.0f} {unit}"
    return {
        "within": f"costs at most {limit}",
        "beyond": f"costs more than {limit}",
        "no baseline": "no better than chance with all heads dynamic",
    }.get(verdict, "")
