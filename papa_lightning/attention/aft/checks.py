"""Checks of the arguments of attention-free and additive mixing."""

from torch import Tensor

from papa_lightning.checks import whole
from papa_lightning.errors import PapaError


def shapes_error(query: Tensor, key: Tensor, value: Tensor, wanted: str) -> PapaError:
    """Error of queries, keys and values whose shapes are not what is wanted."""
    found = f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
    return PapaError(f"query, key and value have the shapes {found}, but {wanted}.")


def check_rows(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    """Refuse queries, keys and values that are not all (B, T, d), or another mask than theirs."""
    if query.dim() != 3 or query.shape != key.shape or query.shape != value.shape:
        raise shapes_error(query, key, value, "all must have the same shape (sequences, tokens, channels)")
    check_mask(mask, query)


def check_heads(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    """Refuse queries and values that are not (B, T, H, h), keys that are not (B, T, H), or another mask than theirs."""
    if query.dim() != 4 or query.shape != value.shape or query.shape[:3] != key.shape:
        heads = "(sequences, tokens, heads)"
        wanted = f"query and value must be (sequences, tokens, heads, channels of a head), and key {heads}"
        raise shapes_error(query, key, value, wanted)
    check_mask(mask, query)


def check_mask(mask: Tensor | None, query: Tensor) -> None:
    """Refuse a mask that is not (B, T), for queries (B, T, ...), and queries without tokens."""
    if query.shape[1] == 0:
        raise PapaError(f"query has the shape {tuple(query.shape)}, so no tokens: pass sequences of at least one.")
    if mask is not None and mask.shape != query.shape[:2]:
        raise PapaError(
            f"mask has the shape {tuple(mask.shape)}, but must be (sequences, tokens) = {tuple(query.shape[:2])}, "
            "true for a real token."
        )


def check_grid(side: int, length: int) -> None:
    """Refuse a number of tokens that is not the number of cells of a square grid."""
    if side * side != length:
        raise PapaError(
            f"side is {side}, but the sequences have {length} tokens, which is no grid of {side} x {side}: pass square "
            "images, without tokens beside the grid."
        )


def check_bias(bias: Tensor, length: int, channels: int) -> Tensor:
    """Position biases as (H, T', T'); refuse those that do not fit the sequence or the channels."""
    groups = bias if bias.dim() == 3 else bias[None]
    if groups.dim() != 3 or groups.shape[1] != groups.shape[2] or groups.shape[1] < length:
        raise PapaError(
            f"position_bias has the shape {tuple(bias.shape)}, but must be square, and as long as the {length} tokens "
            "of the sequences: make it with a larger max_length, or cut the sequences."
        )
    check_divides("the groups of position_bias", groups.shape[0], channels)
    return groups


def check_band(band: Tensor, length: int, channels: int) -> Tensor:
    """Position biases of a band as (H, T or 1, n); refuse those that do not fit the sequence or the channels."""
    groups = band if band.dim() == 3 else band[None]
    if groups.dim() != 3 or groups.shape[1] not in (1, length):
        raise PapaError(
            f"band has the shape {tuple(band.shape)}, but must be (groups, {length}, offsets), a row for each of the "
            f"{length} tokens, or (groups, 1, offsets)."
        )
    check_divides("the groups of band", groups.shape[0], channels)
    return groups


def check_kernel(kernel: Tensor, heads: int, dimensions: int) -> None:
    """Refuse a kernel that is not (H, s), or (H, s, s) for a grid."""
    sizes = set(kernel.shape[1:])
    if kernel.dim() != 1 + dimensions or kernel.shape[0] != heads or len(sizes) != 1 or sizes == {0}:
        wanted = ", ".join(["s"] * dimensions)
        raise PapaError(
            f"kernel has the shape {tuple(kernel.shape)}, but must be ({heads}, {wanted}): one for each of the "
            f"{heads} heads."
        )


def check_divides(name: str, parts: int, channels: int) -> None:
    """Refuse a number of parts that does not divide the channels."""
    if parts < 1 or channels % parts:
        divisors = [number for number in range(1, channels + 1) if channels % number == 0]
        raise PapaError(f"{name} are {parts}, which does not divide the {channels} channels: choose one of {divisors}.")


def check_window(window: int, longest: int, what: str) -> None:
    """Refuse a window that is longer than what it slides over."""
    whole(1)("window", window)
    if window > longest:
        raise PapaError(f"window is {window}, but {what} is only {longest}: choose a window of at most {longest}.")
