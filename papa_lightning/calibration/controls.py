"""Constants to set beside the average: what of its effect is the average, and what would any fixed matrix do?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from papa_lightning.calibration.constants import AttentionConstants
from papa_lightning.errors import PapaError

#: What :func:`control_constants` writes on the diagonal for a row whose neighbour may be missing. Constants do not know
#: the mask of a sequence; but constant attention divides each row by its mass over the real tokens, so that a weight
#: this small only counts where nothing else is left, and there it counts as 1. It stays above the smallest mass that
#: is divided by (``papa_lightning.attention.functional.EPS``), and is no zero in half precision either. Where both are
#: there, the neighbour loses a millionth. In float16 the rows that fall back are rounded coarsely, by some percent.
FALLBACK = 1e-6

_AVERAGE = "average"
_SHUFFLED = "shuffled"
_SEQUENCES = "sequences"
_OTHER = "other"
_LARGEST_SEED = 2**63 - 1

_Pattern: TypeAlias = Callable[[int], Tensor]


def _uniform(length: int) -> Tensor:
    return torch.full((length, length), 1.0 / length, dtype=torch.float64)


def _identity(length: int) -> Tensor:
    return torch.eye(length, dtype=torch.float64)


def _previous(length: int) -> Tensor:
    return _neighbour(length, -1)


def _next(length: int) -> Tensor:
    return _neighbour(length, 1)


def _neighbour(length: int, offset: int) -> Tensor:
    pattern = FALLBACK * _identity(length)
    pattern.diagonal(offset).fill_(1.0)
    edge = 0 if offset < 0 else length - 1
    pattern[edge, edge] = 1.0
    return pattern


def _zero(length: int) -> Tensor:
    return torch.zeros(length, length, dtype=torch.float64)


#: The controls that are one matrix (T, T) for all heads, whatever the average is.
_PATTERNS: Mapping[str, _Pattern] = MappingProxyType(
    {"uniform": _uniform, "identity": _identity, "previous": _previous, "next": _next, "zero": _zero}
)

#: The kinds that :func:`control_constants` makes out of an average.
CONTROL_KINDS: tuple[str, ...] = (_AVERAGE, *_PATTERNS, _SHUFFLED)


def control_constants(kind: str, average: AttentionConstants, *, seed: int = 0) -> AttentionConstants:
    """Constants to set beside an average, ``C[l,h,i,j]`` by kind.

        uniform    1 / T: every real token alike
        identity   1 where j = i: a token sees itself
        previous   1 where j = i - 1; the first position sees itself
        next       1 where j = i + 1; the last position sees itself
        zero       0: the head is pruned, its output is 0
        shuffled   average[l,h,i,p(j)], with a random p of its own for each layer, head and row
        average    the average itself

    The fixed kinds hold for every position up to T, also for those that calibration did not reach. For "previous"
    and "next", a row whose neighbour is padding or a gap, or cannot be seen by the build of the encoder ("next" in a
    causal one), sees itself: see :data:`FALLBACK`. "shuffled" keeps the weights of each row, but not where they point;
    it permutes the columns that calibration has seen together with the row and that some head of the layer attends
    to, so that in a causal encoder nothing moves to where attention cannot look.

    Args:
        kind: One of :data:`CONTROL_KINDS`.
        average: What :func:`~papa_lightning.calibrate` returned.
        seed: Of the permutations of "shuffled"; the other kinds have nothing random.

    Returns:
        Constants of the same shape, pair_counts, dtype and metadata, with "kind" added, and for "shuffled" "seed". What
        else was measured on the average (its variance) stays with kind "average" only.

    Raises:
        PapaError: For another kind, constants that are no AttentionConstants, or a bad seed.

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
    if kind == _AVERAGE:
        return replace(average, metadata={**average.metadata, "kind": kind})
    if kind == _SHUFFLED:
        values, noted = _shuffled(average, _checked_seed(seed)), {"kind": kind, "seed": seed}
    elif isinstance(kind, str) and kind in _PATTERNS:
        pattern = _PATTERNS[kind](average.max_length).to(average.values)
        values, noted = pattern.expand_as(average.values).clone(), {"kind": kind}
    else:
        raise PapaError(f"kind is {kind!r}, but must be one of {', '.join(map(repr, CONTROL_KINDS))}.")
    return AttentionConstants(values, average.pair_counts, {**average.metadata, **noted})


def _checked_seed(seed: object) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _LARGEST_SEED:
        raise PapaError(f"seed is {seed!r}, but must be a whole number from 0 to {_LARGEST_SEED}.")
    return seed


def _shuffled(average: AttentionConstants, seed: int) -> Tensor:
    """(L, H, T, T), each row of each head permuted within its columns."""
    generator = torch.Generator().manual_seed(seed)
    values = average.values.detach().cpu()
    shuffled = values.clone()
    seen = (average.pair_counts.cpu() > 0) & (values != 0).any(dim=1)
    for layer, query in seen.any(dim=2).nonzero().tolist():
        columns = seen[layer, query].nonzero().flatten()
        weights = values[layer, :, query][:, columns]
        order = torch.rand(weights.shape, generator=generator, dtype=torch.float64).argsort(dim=1)
        shuffled[layer, :, query][:, columns] = weights.gather(1, order)
    return shuffled.to(average.values.device)


@dataclass(frozen=True)
class ConstantsKind:
    """What the constants of a run are, as :func:`constants_kind` reads it.

    Args:
        name: One of :data:`CONTROL_KINDS`, or "sequences" or "other".
        sequences: Of "sequences": over how many the average is taken.
        other_task: Of "other": the task whose average it is.

    Example:
        >>> str(ConstantsKind("sequences", sequences=16))
        'sequences:16'
    """

    name: str
    sequences: int | None = None
    other_task: str | None = None

    def __str__(self) -> str:
        """As :func:`constants_kind` reads it."""
        detail = self.other_task if self.sequences is None else self.sequences
        return self.name if detail is None else f"{self.name}:{detail}"


def constants_kind(spec: str) -> ConstantsKind:
    """Read the kind of constants from a setting.

    Args:
        spec: One of :data:`CONTROL_KINDS`; "sequences:16" for an average over that many sequences; or "other:TASK" for
            the average of another task.

    Raises:
        PapaError: For anything else; the message lists what there is.

    Example:
        >>> constants_kind("sequences:16")
        ConstantsKind(name='sequences', sequences=16, other_task=None)
        >>> constants_kind("other:cola").other_task
        'cola'
    """
    if isinstance(spec, str):
        if spec in CONTROL_KINDS:
            return ConstantsKind(spec)
        name, _, detail = spec.partition(":")
        if name == _SEQUENCES and detail.isascii() and detail.isdecimal() and len(detail) < 19 and detail[0] != "0":
            return ConstantsKind(name, sequences=int(detail))
        if name == _OTHER and detail and detail == detail.strip():
            return ConstantsKind(name, other_task=detail)
    raise PapaError(
        f"constants is {spec!r}, but must be one of {', '.join(map(repr, CONTROL_KINDS))}, 'sequences:N' with a whole "
        "number N from 1 on (an average over N sequences), or 'other:TASK' (the average of another task)."
    )
