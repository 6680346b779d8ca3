"""Controls to compare an average with; entry points of the group ``papa_lightning.controls`` add others."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from papa_lightning.calibration.constants import AttentionConstants
from papa_lightning.checks import whole
from papa_lightning.errors import PapaError, did_you_mean
from papa_lightning.registry import Registry

#: Values of a control, (L, H, T, T) or broadcastable to it, from an average; a random one also takes ``seed``.
Control: TypeAlias = Callable[..., Tensor]

#: Controls by name. :func:`control_constants` makes constants of one.
CONTROLS: Registry[Control] = Registry("kind", callable, group="papa_lightning.controls")

#: Weight on the diagonal of "previous" and "next", for rows whose neighbour may be missing. Constants do not know the
#: mask of a sequence; but constant attention divides each row by its mass over the real tokens, so that a weight this
#: small only counts where nothing else is left, and there it counts as 1. It stays above the smallest mass that is
#: divided by (``papa_lightning.attention.functional.EPS``), and is no zero in half precision either. Where both are
#: there, the neighbour loses a millionth. In float16 the rows that fall back are rounded coarsely, by some percent.
FALLBACK = 1e-6


@CONTROLS.register("average")
def _average(average: AttentionConstants) -> Tensor:
    """The average itself."""
    return average.values


@CONTROLS.register("uniform")
def _uniform(average: AttentionConstants) -> Tensor:
    """``1 / T``: all real tokens alike."""
    return torch.full((average.max_length, average.max_length), 1.0 / average.max_length, dtype=torch.float64)


@CONTROLS.register("identity")
def _identity(average: AttentionConstants) -> Tensor:
    """``1`` where j = i, else 0: each token sees itself."""
    return torch.eye(average.max_length, dtype=torch.float64)


@CONTROLS.register("previous")
def _previous(average: AttentionConstants) -> Tensor:
    """``1`` where j = i - 1, else 0; the first position sees itself, and so do rows without that neighbour."""
    return _neighbour(average.max_length, -1)


@CONTROLS.register("next")
def _next(average: AttentionConstants) -> Tensor:
    """``1`` where j = i + 1, else 0; the last position sees itself, and so do rows without that neighbour."""
    return _neighbour(average.max_length, 1)


@CONTROLS.register("zero")
def _zero(average: AttentionConstants) -> Tensor:
    """``0``: the head is pruned, its output is 0."""
    return torch.zeros(average.max_length, average.max_length, dtype=torch.float64)


@CONTROLS.register("shuffled")
def _shuffled(average: AttentionConstants, seed: int) -> Tensor:
    """``average[l,h,i,p(j)]``, with a random permutation p for each layer, head and row."""
    generator = torch.Generator().manual_seed(seed)
    values = average.values.detach().cpu()
    shuffled = values.clone()
    # Only columns with a weight are permuted, so that in a causal encoder none moves to where attention cannot look.
    used = (values != 0).any(dim=1)
    for layer, query in used.any(dim=2).nonzero().tolist():
        columns = used[layer, query].nonzero().flatten()
        weights = values[layer, :, query][:, columns]
        order = torch.rand(weights.shape, generator=generator, dtype=torch.float64).argsort(dim=1)
        shuffled[layer, :, query][:, columns] = weights.gather(1, order)
    return shuffled


def _neighbour(length: int, offset: int) -> Tensor:
    pattern = FALLBACK * torch.eye(length, dtype=torch.float64)
    pattern.diagonal(offset).fill_(1.0)
    edge = 0 if offset < 0 else length - 1
    pattern[edge, edge] = 1.0
    return pattern


def control_constants(kind: str, average: AttentionConstants, *, seed: int = 0) -> AttentionConstants:
    """Constants to compare an average with, ``C[l,h,i,j]`` by the name of a control.

        average    the average itself
        uniform    1 / T: all real tokens alike
        identity   1 where j = i: each token sees itself
        previous   1 where j = i - 1; the first position sees itself
        next       1 where j = i + 1; the last position sees itself
        zero       0: the head is pruned, its output is 0
        shuffled   average[l,h,i,p(j)], with a random p for each layer, head and row

    The fixed controls hold for every position up to T, also for those that calibration did not reach. For "previous"
    and "next", a row whose neighbour is padding or a gap, or cannot be seen by the build of the encoder ("next" in a
    causal one), sees itself: see :data:`FALLBACK`.

    Args:
        kind: Name of a control in :data:`CONTROLS`.
        average: Constants that :func:`~papa_lightning.calibrate` returned.
        seed: Seed of a random control, such as "shuffled".

    Returns:
        Constants of the same shape, pair_counts, dtype and metadata, with "kind" added, and for random controls "seed".
        The variance of the average stays with kind "average" only.

    Raises:
        PapaError: For an unknown control, constants that are no AttentionConstants, or a bad seed.

    Example:
        >>> average = AttentionConstants(torch.ones(1, 1, 3, 3), torch.ones(3, 3))
        >>> control_constants("previous", average).values
        tensor([[[[1.0000e+00, 0.0000e+00, 0.0000e+00],
                  [1.0000e+00, 1.0000e-06, 0.0000e+00],
                  [0.0000e+00, 1.0000e+00, 1.0000e-06]]]])
        >>> control_constants("previous", average).metadata
        {'kind': 'previous'}
    """
    if not isinstance(average, AttentionConstants):
        raise PapaError(
            f"average is a {type(average).__name__}, but must be an AttentionConstants: pass what calibrate(...) "
            "returned, or AttentionConstants.load(path)."
        )
    control, noted = CONTROLS[kind], {**average.metadata, "kind": kind}
    if "seed" in inspect.signature(control).parameters:
        values, noted["seed"] = control(average, seed=whole()("seed", seed)), seed
    else:
        values = control(average)
    if values is average.values:
        return replace(average, metadata=noted)
    values = values.to(average.values).expand_as(average.values).clone()
    return AttentionConstants(values, average.pair_counts, noted)


@dataclass(frozen=True)
class ConstantsKind:
    """Kind of the constants of a run, as :func:`constants_kind` reads it.

    Args:
        name: Name of a control in :data:`CONTROLS`, or "sequences" or "other".
        sequences: Number of sequences that the average is taken over, for "sequences".
        other_task: Task whose average it is, for "other".

    Example:
        >>> str(ConstantsKind("sequences", sequences=16))
        'sequences:16'
    """

    name: str
    sequences: int | None = None
    other_task: str | None = None

    def __str__(self) -> str:
        """The setting that :func:`constants_kind` reads."""
        detail = self.other_task if self.sequences is None else self.sequences
        return self.name if detail is None else f"{self.name}:{detail}"


def constants_kind(spec: str, also: Sequence[str] = ()) -> ConstantsKind:
    """Read the kind of constants from a setting.

    Args:
        spec: Name of a control in :data:`CONTROLS`; "sequences:16" for an average over that many sequences; or
            "other:TASK" for the average of another task.
        also: Names of further kinds, which the caller makes.

    Raises:
        PapaError: For anything else; the message lists the choices.

    Example:
        >>> constants_kind("sequences:16")
        ConstantsKind(name='sequences', sequences=16, other_task=None)
        >>> constants_kind("other:cola").other_task
        'cola'
    """
    if isinstance(spec, str):
        if spec in CONTROLS or spec in also:
            return ConstantsKind(spec)
        name, _, detail = spec.partition(":")
        if name == "sequences" and detail.isascii() and detail.isdecimal() and len(detail) < 19 and detail[0] != "0":
            return ConstantsKind(name, sequences=int(detail))
        if name == "other" and detail and detail == detail.strip():
            return ConstantsKind(name, other_task=detail)
    raise PapaError(
        f"constants is {spec!r}, but must be one of {', '.join(map(repr, (*CONTROLS, *also)))}, 'sequences:N' with a "
        "whole number N from 1 on (an average over N sequences), or 'other:TASK' (the average of another task)"
        f"{did_you_mean(spec, (*CONTROLS, *also)) or '.'}"
    )
