"""The result of calibration, in memory and as a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from papa_lightning.calibration.encoder_constants import (
    EncoderConstants,
    damaged_file,
    plain_metadata,
    read_tensors,
    write_tensors,
)
from papa_lightning.errors import ConstantsFileError

if TYPE_CHECKING:
    from typing_extensions import Self

_FORMAT = "papa_lightning.attention_constants/1"

#: What holds them, and what writes them: for messages.
_MADE_BY = ("attention constants", "AttentionConstants.save", "papa calibrate")

#: Of constants.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SAVED = ("values", "pair_counts", "variance")
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
#: How far above 1 an average of attention in 16 bits can be.
_ROUNDING = 0.02


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth value
class AttentionConstants(EncoderConstants):
    """Averaged attention matrices of an encoder.

    Args:
        values: (L, H, T, T) floating point, from 0 to 1; rows are queries, and need not sum to 1.
        pair_counts: (T, T), the number of sequences in which both positions held a real token.
        metadata: What they were made with: "model" (name, type, sizes, weights fingerprint), "tokenizer", "layout",
            "data", "sequences", "max_length", "versions". Primitives only, and kept as a file would give them back:
            tuples are lists, keys are strings. May be empty.
        variance: (L, H), how far the attention of each head was from its constants, see
            :meth:`~papa_lightning.AttentionAverages.variance`; None where that is not known: constants that were not
            calibrated, and files of versions before.

    Raises:
        ConstantsFileError: When the shapes do not fit each other, a number is not what it can be (values from 0 to 1,
            counts whole and symmetric, variance from 0 on), or metadata cannot be saved.

    Example:
        >>> import torch
        >>> constants = AttentionConstants(torch.full((2, 4, 8, 8), 0.125), torch.ones(8, 8))
        >>> constants.num_layers, constants.num_heads, constants.max_length
        (2, 4, 8)
    """

    values: Tensor
    pair_counts: Tensor
    metadata: Mapping[str, Any] = field(default_factory=dict)
    variance: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("values", "pair_counts"):
            if not isinstance(found := getattr(self, name), Tensor):
                raise ConstantsFileError(f"{name} is a {type(found).__name__}, but must be a tensor.")
        shape = tuple(self.values.shape)
        if len(shape) != 4 or shape[2] != shape[3] or 0 in shape or self.values.dtype not in DTYPES:
            raise ConstantsFileError(
                f"values has shape {shape} and dtype {self.values.dtype}, but constants are a floating point tensor of "
                "16 to 64 bits and of shape (layers, heads, max_length, max_length)."
            )
        if tuple(self.pair_counts.shape) != shape[2:]:
            raise ConstantsFileError(
                f"pair_counts has shape {tuple(self.pair_counts.shape)}, but values has max_length {shape[2]}: "
                f"expected ({shape[2]}, {shape[2]})."
            )
        _check_range(self.values)
        _check_counts(self.pair_counts)
        if self.variance is not None:
            _check_variance(self.variance, shape[:2])
        object.__setattr__(self, "metadata", plain_metadata(self.metadata))

    @property
    def num_layers(self) -> int:
        """L."""
        return self.values.shape[0]

    @property
    def num_heads(self) -> int:
        """H."""
        return self.values.shape[1]

    @property
    def max_length(self) -> int:
        """T, the longest sequence that the constants serve."""
        return self.values.shape[2]

    def by_layer(self) -> list[Tensor]:
        """The constants of each layer, (H, T, T): what a swap hands to it."""
        return list(self.values)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all.

        Args:
            path: The file; its folder is made when missing.

        Returns:
            The path.
        """
        tensors = {"values": self.values, "pair_counts": self.pair_counts}
        if self.variance is not None:
            tensors["variance"] = self.variance
        return write_tensors(path, _FORMAT, tensors, self.metadata)

    @classmethod
    def _read(cls, path: Path) -> Self:
        tensors, metadata, ours = read_tensors(path, _FORMAT, _SAVED.__contains__, _MADE_BY)
        if missing := {"values", "pair_counts"} - tensors.keys():
            raise damaged_file(path, f"it lacks {min(missing)!r}")
        constants, counts = cls(**tensors, metadata=metadata), tensors["pair_counts"]
        if not ours and (not torch.equal(counts, counts.T) or bool((counts > counts.diagonal()).any())):
            raise damaged_file(path, "pair_counts is not symmetric, or has more than on its diagonal")
        return constants


def _check_range(values: Tensor) -> None:
    low, high = (float(one) for one in values.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ConstantsFileError("values has NaN or infinite entries: calibrate again, in 32-bit precision.")
    if low < 0 or high > 1 + _ROUNDING:
        raise ConstantsFileError(
            f"values has entries from {low:g} to {high:g}, but attention lies between 0 and 1: calibrate again, or "
            "divide constants of your own by their largest entry; rows are divided by their sum in any case."
        )


def _check_counts(counts: Tensor) -> None:
    if counts.is_complex() or counts.dtype not in (*DTYPES, *_WHOLE):
        raise ConstantsFileError(f"pair_counts has dtype {counts.dtype}, but must have one of numbers.")
    exact = counts.double()
    if not bool((exact.isfinite() & (exact >= 0) & (exact == exact.round())).all()):
        raise ConstantsFileError(
            "pair_counts has entries that are not whole numbers from 0 on: calibrate again; constants of your own have "
            "ones there."
        )


def _check_variance(variance: object, heads: tuple[int, ...]) -> None:
    if not isinstance(variance, Tensor):
        raise ConstantsFileError(f"variance is a {type(variance).__name__}, but must be a tensor or None.")
    if tuple(variance.shape) != tuple(heads) or variance.dtype not in DTYPES:
        raise ConstantsFileError(
            f"variance has shape {tuple(variance.shape)} and dtype {variance.dtype}, but values has {heads[0]} layers "
            f"of {heads[1]} heads: expected a floating point tensor of shape {tuple(heads)}."
        )
    if not bool(variance.isfinite().all()) or bool((variance < 0).any()):
        raise ConstantsFileError("variance has entries that are NaN, infinite or below 0: calibrate again.")
