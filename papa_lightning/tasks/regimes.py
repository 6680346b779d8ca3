"""Regimes: which of probe, encoder and constants learn, and how constants that learn stay distributions."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from papa_lightning.attention import MatrixHeads, TokenMixer
from papa_lightning.attention.functional import EPS, accumulation_dtype
from papa_lightning.errors import PapaError

Regime = Literal["probe", "fine_tune", "fine_tune_constants", "probe_constants", "constants"]


class Learners(NamedTuple):
    """What learns.

    Args:
        probe: The probe.
        encoder: The parameters of the encoder itself.
        constants: The constants of its heads.
    """

    probe: bool
    encoder: bool
    constants: bool


#: What learns in every regime.
REGIMES: Mapping[str, Learners] = MappingProxyType(
    {
        "probe": Learners(probe=True, encoder=False, constants=False),
        "fine_tune": Learners(probe=True, encoder=True, constants=False),
        "fine_tune_constants": Learners(probe=True, encoder=True, constants=True),
        "probe_constants": Learners(probe=True, encoder=False, constants=True),
        "constants": Learners(probe=False, encoder=False, constants=True),
    }
)


def regime_of(regime: str | None, freeze_encoder: bool) -> Regime:
    """The regime that two arguments of a task mean together.

    Args:
        regime: Its name; None leaves the choice to `freeze_encoder`.
        freeze_encoder: True for ``"probe"``, False for ``"fine_tune"``.

    Returns:
        The name of the regime.

    Raises:
        PapaError: If there is no such regime, or the two contradict each other.

    Example:
        >>> regime_of(None, freeze_encoder=False)
        'fine_tune'
        >>> regime_of("constants", freeze_encoder=True)
        'constants'
    """
    if regime is None:
        return "probe" if freeze_encoder else "fine_tune"
    if regime not in REGIMES:
        raise PapaError(f"regime is {regime!r}: choose from {', '.join(REGIMES)}.")
    # True is the default of freeze_encoder, so only False can be a wish.
    if not freeze_encoder and not REGIMES[regime].encoder:
        raise PapaError(
            f"freeze_encoder is False, but regime={regime!r} freezes the encoder: leave freeze_encoder out, or pass "
            'regime="fine_tune" or "fine_tune_constants".'
        )
    return regime  # type: ignore[return-value]


def learning_mixers(mixers: Sequence[TokenMixer]) -> list[MatrixHeads]:
    """The layers that have constants to learn: an empty parameter would get no gradient, and stop DDP."""
    return [mixer for mixer in mixers if isinstance(mixer, MatrixHeads) and mixer.constants.numel()]


def project_rows(constants: Tensor) -> Tensor:
    r"""Make every row a distribution, :math:`C_{ij} \leftarrow \max(C_{ij}, 0) / \sum_k \max(C_{ik}, 0)`.

    Dividing changes nothing that the encoder computes, because constant attention divides each row by its mass over
    the real tokens anyway. A row of zeros, whose query calibration never saw, stays; one whose entries have all
    fallen below 0 starts again from equal weights for the keys that it had.

    Args:
        constants: (..., T, T), rows are queries.

    Returns:
        (..., T, T), in the same dtype: no entry below 0, and rows that sum to 1, or to 0 where nothing is known.

    Example:
        >>> project_rows(torch.tensor([[3.0, -1.0, 1.0], [0.0, 0.0, 0.0], [-2.0, -1.0, 0.0]]))
        tensor([[0.7500, 0.0000, 0.2500],
                [0.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.0000]])
    """
    exact = constants.to(accumulation_dtype(constants.dtype))
    kept = exact.clamp_min(0.0)
    fallen = kept.sum(dim=-1, keepdim=True) <= EPS
    kept = torch.where(fallen, (exact != 0).to(exact.dtype), kept)
    mass = kept.sum(dim=-1, keepdim=True)
    return (kept / mass.clamp_min(EPS)).to(constants.dtype)


@torch.no_grad()
def project_constants(mixers: Sequence[MatrixHeads]) -> None:
    """Apply :func:`project_rows` to the constants of the given layers, in place, within the reach of each layer."""
    for mixer in mixers:
        mixer.constants.copy_(project_rows(mixer.reach.cut(mixer.constants)))


@torch.no_grad()
def drop_unknown_gradients(mixers: Sequence[MatrixHeads]) -> None:
    """Set the gradient of rows of zeros to 0.

    Constant attention divides such a row by the smallest number that it allows, so that its gradient is huge and
    says nothing; clipping by norm would then silence all others.
    """
    for mixer in mixers:
        if mixer.constants.grad is not None:
            unknown = (mixer.constants == 0).all(dim=-1, keepdim=True)
            mixer.constants.grad.masked_fill_(unknown, 0.0)
