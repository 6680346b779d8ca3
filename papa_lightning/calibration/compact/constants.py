"""Compact constants: averaged attention as a few numbers a head, in memory and as a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from papa_lightning.attention import CompactLayer, Reach
from papa_lightning.attention.compact.layer import FORMS, PARTS
from papa_lightning.calibration.compact.fit import (
    BandSums,
    average_sums,
    clip_reach,
    fit_all_columns,
    fit_low_rank,
    infer_reach,
    relative_error,
)
from papa_lightning.calibration.constants import (
    DTYPES,
    AttentionConstants,
    EncoderConstants,
    damaged_file,
    plain_metadata,
    read_tensors,
    write_tensors,
)
from papa_lightning.encoders import SupportedEncoder
from papa_lightning.errors import ConstantsFileError, PapaError
from papa_lightning.text import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Self

_FORMAT = "papa_lightning.compact_constants/1"

#: The tensors of a file beside those of its layers.
_OF_ALL = ("errors", "forms", "reaches")
#: The tensors of a layer in a file.
_SAVED = (*PARTS, "beyond")


@dataclass(frozen=True, eq=False, repr=False)  # tensors do not compare to one truth value
class CompactConstants(EncoderConstants):
    """Constants of an encoder in few numbers a head, ``C[i,j] = rho(i - j) + alpha(j)`` for most heads.

    A head of form "profile" has O(T + w) numbers and mixes T tokens in O(T w), where a matrix has T^2 numbers and takes
    O(T^2); "low_rank" has 2 T r. No number is negative: rows are divided by their sum over the real keys.

    Args:
        layers: One :class:`~papa_lightning.attention.CompactLayer` a layer.
        errors: (L, H), the relative error of each head: ``sqrt(sum n (C - F)^2 / sum n C^2)`` over all pairs that were
            seen, with C the average, F the compact constants and n the pair counts.
        metadata: Metadata of the average, and "compact": width, rank and tolerance of the fit, and "error_rows", the
            number of query rows on which the error was measured, if not all.

    Raises:
        ConstantsFileError: When the layers do not fit each other, a number is not finite or below 0, or metadata cannot
            be saved.

    Example:
        >>> import torch
        >>> average = AttentionConstants(torch.full((2, 4, 8, 8), 0.125), torch.ones(8, 8))
        >>> compact = CompactConstants.fit(average, width=2)
        >>> compact.num_layers, compact.num_heads, compact.max_length, compact.num_elements
        (2, 4, 8, 104)
        >>> bool(compact.errors.max() < 1e-6)
        True
    """

    layers: tuple[CompactLayer, ...]
    errors: Tensor
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {(len(layer.forms), layer.max_length) for layer in self.layers}
        if len(sizes) != 1 or 0 in next(iter(sizes)):
            raise ConstantsFileError(
                f"layers have {sorted(sizes)} heads and positions, but compact constants have one number of each for "
                "all layers: pass what CompactConstants.fit gave."
            )
        shape = (len(self.layers), len(self.layers[0].forms))
        if tuple(self.errors.shape) != shape:
            raise ConstantsFileError(
                f"errors has shape {tuple(self.errors.shape)}, but there are {shape[0]} layers of {shape[1]} heads."
            )
        _check_numbers("errors", self.errors)
        for number, layer in enumerate(self.layers):
            for name in _SAVED:
                _check_numbers(f"{name} of layer {number}", getattr(layer, name))
        object.__setattr__(self, "metadata", plain_metadata(self.metadata))

    @classmethod
    def fit(
        cls, constants: AttentionConstants, width: int = 64, rank: int = 16, tolerance: float | None = None
    ) -> CompactConstants:
        """Fit compact constants to an average, by least squares weighted with the pair counts.

        A head has the first of these forms whose error is within the tolerance: "profile", "low_rank", "dense" (the
        average itself). Low rank is not offered where the queries cannot see all keys, or where it is no smaller than
        a matrix.

        Args:
            constants: The average.
            width: w, the farthest offset of the profile; more than T - 1 is T - 1.
            rank: Rank r of heads of low rank.
            tolerance: The largest relative error of a head; None makes every head a profile, whatever its error.

        Raises:
            PapaError: For bad arguments.
        """
        if not isinstance(constants, AttentionConstants):
            raise PapaError(
                f"constants is a {type(constants).__name__}, but must be an AttentionConstants: pass what "
                "calibrate(...) returned, or AttentionConstants.load(path)."
            )
        check_width("width", width, PapaError)
        check_width("rank", rank, PapaError)
        if tolerance is not None and not (isinstance(tolerance, (int, float)) and tolerance >= 0):
            raise PapaError(
                f"tolerance is {tolerance!r}, but must be a relative error of at least 0, e.g. 0.1, or None."
            )
        fits = [
            _fit_layer(values, constants.pair_counts, min(width, constants.max_length - 1), rank, tolerance)
            for values in constants.values.detach()
        ]
        # JSON has no infinity; None means the same.
        within = tolerance if tolerance is not None and math.isfinite(tolerance) else None
        noted = {"compact": {"width": width, "rank": rank, "tolerance": within}}
        errors = torch.stack([error for _, error in fits])
        return cls(tuple(layer for layer, _ in fits), errors, {**constants.metadata, **noted})

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Number of layers L, number of heads H and number of slots T."""
        return len(self.layers), len(self.layers[0].forms), self.layers[0].max_length

    @property
    def num_elements(self) -> int:
        """The number of entries; an average has ``L H T^2``."""
        return sum(layer.num_elements for layer in self.layers)

    def by_layer(self) -> list[CompactLayer]:
        """The constants of each layer, as :func:`~papa_lightning.swap_attention` gives them to its layers."""
        return list(self.layers)

    def extend(self, max_length: int) -> CompactConstants:
        """Constants for longer sequences than those of the calibration.

        The profile stays as it is. A column that was never seen gets the median weight of the columns of its head that
        were seen at least half as often as the one seen most.

        Args:
            max_length: T of the result, at least the present one.

        Raises:
            PapaError: When it is less, or a head has another form than "profile".

        Example:
            >>> average = AttentionConstants(torch.full((1, 1, 4, 4), 0.25), torch.ones(4, 4))
            >>> CompactConstants.fit(average).extend(6).layers[0].columns.shape
            torch.Size([1, 6])
        """
        noted = {**self.metadata, "max_length": max_length, "extended_from": self.max_length}
        return replace(self, layers=tuple(layer.extend(max_length) for layer in self.layers), metadata=noted)

    def check(self, encoder: nn.Module | SupportedEncoder, max_length: int | None = None) -> None:
        """See :meth:`EncoderConstants.check`; the layers must have the same reach too."""
        found = SupportedEncoder.find(encoder)
        super().check(found, max_length)
        for number, (layer, reach) in enumerate(zip(self.layers, found.reaches, strict=True)):
            wanted = clip_reach(reach, self.max_length)
            if clip_reach(layer.reach, self.max_length) != wanted:
                raise ConstantsFileError(
                    f"the compact constants of layer {number} were fitted for {layer.reach}, but the encoder has "
                    f"{wanted}: fit them to an average of this encoder, or use calibrate_compact."
                )

    def head_columns(self) -> dict[str, Any]:
        """Form and relative error (L, H) of every head: the columns of :meth:`table`."""
        return {"form": np.array([layer.forms for layer in self.layers]), "error": self.errors.detach().cpu().double()}

    def _picture(self, title: str) -> Figure:
        from papa_lightning.figures import constants_grid, shown_layers

        shown = shown_layers(self.num_layers)  # the whole would be as large as the average that this replaces
        return constants_grid(torch.stack([self.layers[layer].expand() for layer in shown]), title, shown)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all, in a folder that is made when missing; returns the path."""
        names = list(FORMS)
        forms = [[names.index(form) for form in layer.forms] for layer in self.layers]
        tensors = {"errors": self.errors, "forms": torch.tensor(forms, dtype=torch.uint8)}
        limits = [(layer.reach.before, layer.reach.after) for layer in self.layers]
        numbers = [[-1 if limit is None else limit for limit in own] for own in limits]
        tensors["reaches"] = torch.tensor(numbers, dtype=torch.int64)
        for number, layer in enumerate(self.layers):
            tensors |= {f"layers.{number}.{name}": getattr(layer, name) for name in _SAVED}
        return write_tensors(path, _FORMAT, tensors, self.metadata)

    @classmethod
    def _read(cls, path: Path) -> Self:
        def is_saved(name: str) -> bool:
            return name in _OF_ALL or (name.startswith("layers.") and name.rpartition(".")[2] in _SAVED)

        made_by = ("compact constants", "CompactConstants.save", "papa compact --constants FILE")
        tensors, metadata, _ = read_tensors(path, _FORMAT, is_saved, made_by)
        try:
            return cls(_layers(tensors), tensors["errors"], metadata)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise damaged_file(path, error) from error


def profile_layer(sums: BandSums, reach: Reach, dtype: torch.dtype) -> CompactLayer:
    """All heads of a layer as profiles on the CPU, fitted to sums over their attention."""
    profile, columns, beyond = fit_all_columns(sums)
    parts = {"profile": profile, "columns": columns, "beyond": beyond, **_empty(columns.shape[1])}
    return CompactLayer(
        ("profile",) * len(profile), reach=reach, **{name: part.to("cpu", dtype) for name, part in parts.items()}
    )


def check_width(name: str, value: object, error: type[PapaError]) -> None:
    """Refuse values other than whole numbers from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise error(f"{name} is {value!r}, but must be a whole number from 1 on.")


def _fit_layer(
    values: Tensor, counts: Tensor, width: int, rank: int, tolerance: float | None
) -> tuple[CompactLayer, Tensor]:
    """The constants of one layer and the error of each head."""
    reach = infer_reach(values, counts)
    seen = reach.cut(counts.double())
    layer = profile_layer(average_sums(values, counts, width, reach), reach, values.dtype)
    errors = relative_error(values, layer.expand(), seen)
    if tolerance is None or bool((errors <= tolerance).all()):
        return layer, errors
    return _other_forms(layer, errors, values, seen, rank, tolerance)


def _other_forms(
    layer: CompactLayer, errors: Tensor, values: Tensor, counts: Tensor, rank: int, tolerance: float
) -> tuple[CompactLayer, Tensor]:
    """Give another form to the heads of a layer whose profile is not within the tolerance."""
    length, good = values.shape[-1], errors <= tolerance
    parts = _empty(length) | {name: getattr(layer, name)[good] for name in ("profile", "columns", "beyond")}
    forms, errors = ["profile" if one else "dense" for one in good.tolist()], torch.where(good, errors, 0.0)
    if layer.reach.unlimited and 2 * rank < length:
        poor = (~good).nonzero().flatten()
        left, right = (factor.to(values.dtype) for factor in fit_low_rank(values[poor], counts, rank))
        found = relative_error(values[poor], left @ right.mT, counts)
        low = found <= tolerance
        parts |= {"left": left[low], "right": right[low]}
        errors[poor[low]] = found[low]
        for head in poor[low].tolist():
            forms[head] = "low_rank"
    parts["matrices"] = values[[head for head, form in enumerate(forms) if form == "dense"]].clone()
    parts = {name: part.to(values.dtype) for name, part in parts.items()}
    return CompactLayer(tuple(forms), reach=layer.reach, **parts), errors


def _empty(length: int) -> dict[str, Tensor]:
    """The parts of the other forms, for a layer without such heads."""
    factor = torch.zeros(0, length, 0)
    return {"left": factor, "right": factor.clone(), "matrices": torch.zeros(0, length, length)}


def _layers(tensors: Mapping[str, Tensor]) -> tuple[CompactLayer, ...]:
    """The layers of a file."""
    names = list(FORMS)
    forms, reaches = tensors["forms"], tensors["reaches"]
    if (forms.dtype, reaches.dtype) != (torch.uint8, torch.int64) or forms.dim() != 2 or bool((reaches < -1).any()):
        raise ValueError("forms and reaches are not those of heads and layers")
    if len(tensors) != len(_OF_ALL) + len(forms) * len(_SAVED):
        raise ValueError(f"it has {len(tensors)} tensors, which are not those of {len(forms)} layers")
    layers: list[CompactLayer] = []
    for number, (own, limits) in enumerate(zip(forms.tolist(), reaches.tolist(), strict=True)):
        reach = Reach(*(None if limit < 0 else limit for limit in limits))
        parts = {name: tensors[f"layers.{number}.{name}"] for name in _SAVED}
        layers.append(CompactLayer(tuple(names[form] for form in own), reach=reach, **parts))
    return tuple(layers)


def _check_numbers(name: str, part: Tensor) -> None:
    """Refuse numbers that are not finite, below 0, or not of 16 to 64 bits."""
    if part.dtype not in DTYPES:
        raise ConstantsFileError(f"{name} has dtype {part.dtype}, but must be floating point of 16 to 64 bits.")
    if part.numel():
        low, high = (float(one) for one in part.detach().aminmax())
        if not (low >= 0 and math.isfinite(high)):
            raise ConstantsFileError(f"{name} has entries that are NaN, infinite or below 0: fit again.")


def describe_compact(compact: CompactConstants) -> str:
    """A table of the errors and forms of the heads by layer and over all, and the size relative to that of an average.

    Example:
        >>> import torch
        >>> from papa_lightning import AttentionConstants
        >>> average = AttentionConstants(torch.full((1, 2, 8, 8), 0.125), torch.ones(8, 8))
        >>> print(describe_compact(CompactConstants.fit(average, width=2)))
        layer   error  largest  of head  profile  low rank  dense
        0      0.0000   0.0000        0        2         0      0
        all    0.0000   0.0000        0        2         0      0
        numbers  26, which is 20.31 % of the average's 128
    """
    parts = [(str(number), [layer], compact.errors[number]) for number, layer in enumerate(compact.layers)]
    rows = []
    for name, layers, errors in [*parts, ("all", compact.layers, compact.errors)]:
        worst = int(errors.view(-1, compact.num_heads).max(dim=0).values.argmax())
        counts = (str(sum(layer.forms.count(form) for layer in layers)) for form in FORMS)
        rows.append((name, f"{errors.mean():.4f}", f"{errors.max():.4f}", str(worst), *counts))
    columns = ("layer", "error", "largest", "of head", *(form.replace("_", " ") for form in FORMS))
    whole = compact.num_layers * compact.num_heads * compact.max_length**2
    share = f"{100 * compact.num_elements / whole:.2f} %"
    return f"{Table(columns, rows)}\nnumbers  {compact.num_elements:,}, which is {share} of the average's {whole:,}"
