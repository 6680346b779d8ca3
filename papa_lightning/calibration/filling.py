"""Filling averaged attention at pairs of positions that calibration saw rarely or never."""

import torch
from torch import Tensor

from papa_lightning.calibration.compact.fit import average_sums, fit_all_columns, infer_reach, profile_rows
from papa_lightning.checks import number, refuse

#: Number of sequences that the profile counts as, and the farthest offset that has a weight of its own: more of them
#: rest on few pairs. Both were chosen on held-out sentences, see docs/method.md.
STRENGTH, WIDTH = 4.0, 4


def checked_strength(strength: object) -> float:
    """A strength, which must be a number above 0."""
    found: float = number()("strength", strength)
    return found if found > 0 else refuse("strength", strength, f"a number of sequences above 0, e.g. {STRENGTH:g}")


def fill_layer(values: Tensor, counts: Tensor, strength: float) -> Tensor:
    """The constants of one layer, averages that lean on the profile of their head, ``(n C + k P) / (n + k)``.

    Args:
        values: (H, T, T), the averages C of the heads.
        counts: (T, T), the pair counts n.
        strength: k, the number of sequences that the profile counts as.

    Returns:
        (H, T, T), float64, 0 beyond the reach of the layer.
    """
    if len(values) > 1 and bool((values == values[:1]).all()):  # heads that were merged stay equal to the last bit
        return fill_layer(values[:1], counts, strength).expand_as(values)
    reach, length = infer_reach(values, counts), len(counts)
    profile, columns, _ = fit_all_columns(average_sums(values, counts, min(WIDTH, length - 1), reach))
    fitted = profile_rows(profile, columns, torch.arange(length), reach).clamp_max(1.0)
    seen = reach.cut(counts.double())
    return (seen * values + strength * fitted) / (seen + strength)
