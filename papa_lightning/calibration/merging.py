"""Merging the constants of similar heads into one matrix a cluster.

A layer whose heads share one is cheaper: its value and output projections are one (d x d) matrix (kind "folded").
"""

import math
from collections.abc import Sequence

import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from papa_lightning.calibration.constants import AttentionConstants
from papa_lightning.errors import PapaError


def merge_constants(
    constants: AttentionConstants, tolerance: float | None = None, layers: Sequence[int] | None = None
) -> AttentionConstants:
    """Replace the constants of similar heads of a layer by their mean.

        error[l] = sqrt( sum_h |C_h - M_h|^2 / sum_h |C_h|^2 ),    |C|^2 = sum_ij n_ij C_ij^2

    with M_h the shared matrix and n the pair counts.

    Args:
        constants: Constants of a calibration.
        tolerance: Largest distance of two heads that share a matrix, see :func:`head_distances`; None joins all heads
            of a layer.
        layers: The layers to merge; None means all. The others stay as they are.

    Returns:
        Constants in which the heads of a cluster have equal matrices. ``metadata["merged"]`` has the "tolerance", the
        "clusters" of heads by layer and the "error" by layer.

    Raises:
        PapaError: For a tolerance below 0, or a layer that is not there.

    Example:
        >>> values = torch.stack([torch.eye(2), torch.ones(2, 2) / 2])[None]
        >>> merged = merge_constants(AttentionConstants(values, torch.ones(2, 2)))
        >>> merged.values[0, 1]
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]])
        >>> [round(error, 3) for error in merged.metadata["merged"]["error"]]
        [0.408]
    """
    if tolerance is not None and not tolerance >= 0:
        raise PapaError(f"tolerance is {tolerance!r}, but must be at least 0, or None to join all heads of a layer.")
    chosen = range(constants.num_layers) if layers is None else layers
    for layer in chosen:
        if layer not in range(constants.num_layers):
            raise PapaError(f"layers has {layer!r}, but the constants have layers 0 to {constants.num_layers - 1}.")
    counts, values = constants.pair_counts, constants.values.clone()
    weights = counts.double()
    clusters: list[list[tuple[int, ...]]] = []
    errors: list[float] = []
    for layer, own in enumerate(constants.values):
        found: list[tuple[int, ...]] = [(head,) for head in range(constants.num_heads)]
        if layer in chosen:
            found = cluster_heads(own, counts, float("inf") if tolerance is None else tolerance)
        for heads in map(list, found):
            if len(heads) > 1:
                values[layer, heads] = own[heads].double().mean(dim=0).to(own.dtype)
        clusters.append(found)
        wrong, whole = (float((weights * part.double().square()).sum()) for part in (values[layer] - own, own))
        errors.append((wrong / max(whole, 1e-300)) ** 0.5)
    if tolerance is not None and math.isinf(tolerance):
        tolerance = None  # JSON has no infinity; None means the same
    noted = {"tolerance": tolerance, "clusters": clusters, "error": errors}
    return AttentionConstants(values, counts, {**constants.metadata, "merged": noted}, variance=constants.variance)


def folded_kinds(constants: AttentionConstants) -> list[str]:
    """The kind of each layer: "folded" where all heads share one matrix, else "constant".

    Example:
        >>> values = torch.stack([torch.full((2, 4, 4), 0.25), (torch.eye(4) + torch.rand(2, 4, 4)) / 2])
        >>> folded_kinds(AttentionConstants(values, torch.ones(4, 4)))
        ['folded', 'constant']
    """
    return ["folded" if bool((own == own[:1]).all()) else "constant" for own in constants.values]


def head_distances(constants: Tensor, counts: Tensor) -> Tensor:
    """Distance of the constants of each pair of heads, relative to their size.

        distance[h, g] = |C_h - C_g| / sqrt(|C_h| |C_g|),    |C|^2 = sum_ij n_ij C_ij^2

    Args:
        constants: (H, T, T).
        counts: (T, T), n, the pair counts.

    Returns:
        (H, H), float64, symmetric, 0 on the diagonal; 0 between two heads that attend to nothing, and infinity between
        such a head and another.

    Example:
        >>> constants = torch.stack([torch.eye(2), torch.eye(2).flip(0), torch.eye(2)])
        >>> head_distances(constants, torch.ones(2, 2)).round(decimals=3)[0]
        tensor([0.0000, 1.4140, 0.0000], dtype=torch.float64)
    """
    rows = (constants.double() * counts.double().sqrt()).flatten(1)
    norms = rows.norm(dim=1)
    apart = torch.cdist(rows[None], rows[None], compute_mode="donot_use_mm_for_euclid_dist")[0]
    relative = apart / (norms[:, None] * norms[None, :]).sqrt()
    return torch.where(apart == 0, 0.0, relative)


def cluster_heads(constants: Tensor, counts: Tensor, tolerance: float) -> list[tuple[int, ...]]:
    """The largest clusters of heads, each ascending, in which no two are further apart than a tolerance.

    Complete linkage: clusters are joined, the closest first, as long as the largest distance inside is within it.

    Args:
        constants: (H, T, T) of one layer.
        counts: (T, T), the pair counts.
        tolerance: Largest :func:`head_distances` within a cluster; infinity joins all heads.

    Example:
        >>> constants = torch.stack([torch.eye(2), torch.eye(2).flip(0), torch.eye(2)])
        >>> cluster_heads(constants, torch.ones(2, 2), tolerance=0.1)
        [(0, 2), (1,)]
    """
    heads = constants.shape[0]
    if heads == 1 or tolerance == float("inf"):
        return [tuple(range(heads))]
    distances = head_distances(constants, counts).clamp_max(torch.finfo(torch.float64).max)
    above = distances[tuple(torch.triu_indices(heads, heads, offset=1))]
    labels = fcluster(linkage(above.numpy(), method="complete"), t=tolerance, criterion="distance")
    return sorted(tuple((labels == label).nonzero()[0].tolist()) for label in set(labels.tolist()))
