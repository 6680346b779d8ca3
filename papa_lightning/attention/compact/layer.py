"""Compact constants of one layer, and the forms that heads can have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from papa_lightning.attention.compact.functional import expand_profile, profile_mass
from papa_lightning.attention.functional import constant_mass
from papa_lightning.attention.head_slices import merge_heads
from papa_lightning.attention.mixer import Reach
from papa_lightning.errors import PapaError

#: The forms that a head can have, and the tensors that hold the heads of each form.
FORMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"profile": ("profile", "columns"), "low_rank": ("left", "right"), "dense": ("matrices",)}
)

#: All these tensors.
PARTS = tuple(part for parts in FORMS.values() for part in parts)


def heads_by_form(forms: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The heads of each form that occurs, ascending, from the form of each head."""
    own = {form: tuple(head for head, found in enumerate(forms) if found == form) for form in FORMS}
    return {form: heads for form, heads in own.items() if heads}


@dataclass(frozen=True, eq=False)
class CompactLayer:
    """Constants of the heads of one layer, in as few numbers as each head allows.

    Args:
        forms: Form of each head: "profile" (``rho(i - j) + alpha(j)``), "low_rank" (``L R^T``) or "dense".
        profile: (heads of that form, 2 w + 1), rho.
        columns: (heads of that form, T), alpha.
        beyond: (heads of that form,), alpha of columns that calibration never saw.
        left: (heads of that form, T, r), L.
        right: (heads of that form, T, r), R.
        matrices: (heads of that form, T, T).
        reach: Keys that the queries of the layer can see; the tensors are not used beyond it.

    Raises:
        PapaError: For an unknown form, or tensors that do not fit the forms or each other.
    """

    forms: tuple[str, ...]
    profile: Tensor
    columns: Tensor
    beyond: Tensor
    left: Tensor
    right: Tensor
    matrices: Tensor
    reach: Reach = field(default_factory=Reach)

    def __post_init__(self) -> None:
        if unknown := set(self.forms) - set(FORMS):
            raise PapaError(f"forms has {sorted(unknown)}, but a form is one of {', '.join(map(repr, FORMS))}.")
        length, rank = self.columns.shape[-1], self.left.shape[-1]
        numbers = {form: self.forms.count(form) for form in FORMS}
        expected = {
            "profile": (numbers["profile"], self.profile.shape[-1] // 2 * 2 + 1),
            "columns": (numbers["profile"], length),
            "beyond": (numbers["profile"],),
            "left": (numbers["low_rank"], length, rank),
            "right": (numbers["low_rank"], length, rank),
            "matrices": (numbers["dense"], length, length),
        }
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise PapaError(
                    f"{name} has shape {tuple(getattr(self, name).shape)}, but with forms {list(self.forms)} and "
                    f"{length} columns must have {shape}."
                )

    @property
    def max_length(self) -> int:
        """T."""
        return self.columns.shape[-1]

    @property
    def num_elements(self) -> int:
        """Number of the constants of the layer."""
        return sum(getattr(self, part).numel() for part in PARTS)

    def select(self, heads: Sequence[int]) -> CompactLayer:
        """Compact constants of some heads, in ascending order."""
        by_form = heads_by_form(self.forms)
        chosen: dict[str, Any] = {}
        for form, parts in {**FORMS, "profile": (*FORMS["profile"], "beyond")}.items():
            rows = [row for row, head in enumerate(by_form.get(form, ())) if head in heads]
            chosen |= {part: getattr(self, part)[rows] for part in parts}
        return replace(self, forms=tuple(self.forms[head] for head in heads), **chosen)

    def extend(self, length: int) -> CompactLayer:
        """Compact constants for sequences of up to ``length`` tokens; new columns have the weight ``beyond``.

        Raises:
            PapaError: When a head has another form than "profile", or ``length`` is less than T.
        """
        if length < self.max_length or set(self.forms) - {"profile"}:
            raise PapaError(
                f"max_length is {length!r}, with {self.max_length} positions and forms {sorted(set(self.forms))}: only "
                'heads of form "profile" go on beyond what they were calibrated for, and none can be shortened.'
            )
        new = self.beyond[:, None].expand(-1, length - self.max_length)
        sizes = {"left": (0, length, 0), "right": (0, length, 0), "matrices": (0, length, length)}
        others: dict[str, Any] = {name: self.columns.new_zeros(size) for name, size in sizes.items()}
        return replace(self, columns=torch.cat([self.columns, new], dim=1), **others)

    def expand(self) -> Tensor:
        """The matrices of all heads, (heads, T, T)."""
        return expand_forms(self.forms, {part: getattr(self, part) for part in PARTS}, self.reach)


def expand_forms(forms: Sequence[str], parts: Mapping[str, Tensor], reach: Reach) -> Tensor:
    """The matrices (heads, T, T) of heads of several forms, 0 beyond the reach, from the tensors of a layer by name."""
    pieces = [(heads, expand_form(form, parts)) for form, heads in heads_by_form(forms).items()]
    length = parts["columns"].shape[-1]
    return reach.cut(merge_heads(pieces, dim=0) if pieces else parts["columns"].new_zeros(0, length, length))


def expand_form(form: str, parts: Mapping[str, Tensor]) -> Tensor:
    """The matrices (heads, T, T) of the heads of one form, in the order of its tensors."""
    if form == "profile":
        return expand_profile(parts["profile"], parts["columns"])
    return parts["left"] @ parts["right"].mT if form == "low_rank" else parts["matrices"]


def cut_parts(parts: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """The tensors of :class:`CompactLayer` for the first ``length`` positions."""
    cut = {name: parts[name][:, :length] for name in ("columns", "left", "right")}
    return {**parts, **cut, "matrices": parts["matrices"][:, :length, :length]}


def own_weights(forms: Sequence[str], parts: Mapping[str, Tensor]) -> Tensor:
    """The weight of each token for itself, ``C[h,i,i]``, (heads, T)."""
    width = parts["profile"].shape[-1] // 2
    by_form = {
        "profile": lambda: parts["profile"][:, width, None] + parts["columns"],
        "low_rank": lambda: (parts["left"] * parts["right"]).sum(dim=-1),
        "dense": lambda: parts["matrices"].diagonal(dim1=1, dim2=2),
    }
    pieces = [(heads, by_form[form]()) for form, heads in heads_by_form(forms).items()]
    return merge_heads(pieces, dim=0) if pieces else parts["columns"]


def row_mass(forms: Sequence[str], parts: Mapping[str, Tensor], mask: Tensor | None, reach: Reach) -> Tensor:
    """The row sums over the real keys, (B or 1, heads, t), from tensors cut to the length t of the batch."""

    def mass_of(form: str) -> Tensor:
        if form == "profile":
            return profile_mass(parts["profile"], parts["columns"], mask, reach)
        return constant_mass(reach.cut(expand_form(form, parts)), mask)

    return merge_heads([(heads, mass_of(form)) for form, heads in heads_by_form(forms).items()], dim=1)
