"""Query and key projections that do not have the rows of constant heads at all: those of an exported encoder.

The projections of :mod:`~papa_lightning.encoders.projections.cut` leave rows out of the computation and keep them, so
that a swap can be undone. Those here have lost them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from papa_lightning.attention import DynamicHeads
from papa_lightning.attention.head_slices import select_heads
from papa_lightning.encoders.finding import attention_modules, family_of, head_size
from papa_lightning.encoders.projections.cut import (
    CutProjection,
    FusedConv1D,
    FusedProjection,
    GroupedKeyProjection,
    HeadProjection,
    InterleavedProjection,
    QueryKeyValue,
    split_fused,
)
from papa_lightning.encoders.seam.layer import mixers_of
from papa_lightning.errors import PapaError


@dataclass(frozen=True)
class Slices:
    """The equal slices that the output of a projection is made of, and which of them some heads need.

    Args:
        total: Their number.
        kept: Those that are needed, in the order in which a trimmed projection has them.
    """

    total: int
    kept: tuple[int, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is left out; the projection then stays as it is, its rows in the order that they have."""
        return len(self.kept) == self.total

    def cut(self, tensor: Tensor, dim: int) -> Tensor:
        """The part of a weight or a bias that belongs to the slices that are kept."""
        if not self.kept:
            return tensor.narrow(dim, 0, 0)
        return select_heads(tensor, self.kept, dim=dim, width=tensor.shape[dim] // self.total)


def slices_of(projection: CutProjection, heads: Sequence[int]) -> Slices:
    """The slices of a projection that these heads need; values are needed by all heads.

    Args:
        projection: One of :data:`TRIMMED`, or a trimmed one.
        heads: Ascending.
    """
    count = projection.heads.num_heads
    if isinstance(projection, GroupedKeyProjection):
        group = count // projection.num_heads
        return Slices(projection.num_heads, tuple(dict.fromkeys(head // group for head in heads)))
    if isinstance(projection, HeadProjection):
        return Slices(count, tuple(heads))
    if isinstance(projection, InterleavedProjection):  # in the order of its parts, so that nothing is sorted later
        parts = [*(3 * head for head in heads), *(3 * head + 1 for head in heads)]
        return Slices(3 * count, (*parts, *range(2, 3 * count, 3)))
    values = range(2 * count, 3 * count)
    return Slices(3 * count, (*heads, *(count + head for head in heads), *values))


class TrimmedProjection(CutProjection):
    """What trimmed projections have in common; each is also the projection whose place it takes."""

    slices: Slices

    def rows(self, heads: DynamicHeads | None = None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias for the heads that are dynamic right now.

        Args:
            heads: As in :meth:`HeadProjection.forward`.

        Raises:
            PapaError: When a head is asked for whose rows are not there.
        """
        layer, held = cast(nn.Linear, self), self.slices.kept
        bias = cast("Tensor | None", layer.bias)
        needed = slices_of(self, (self.heads if heads is None else heads).dynamic).kept
        if needed == held:
            return layer.weight, bias
        if not set(needed) <= set(held):
            raise left_out_error()
        places = Slices(len(held), tuple(held.index(number) for number in needed))
        return places.cut(layer.weight, self.rows_dim), None if bias is None else places.cut(bias, 0)

    def original(self) -> nn.Module:
        """There is none.

        Raises:
            PapaError: Always.
        """
        raise left_out_error()


def left_out_error() -> PapaError:
    """The error for whatever wants the dynamic attention of heads that have lost it."""
    return PapaError(
        "the encoder was exported without the query and key weights of its constant heads, so it cannot be restored, "
        "swapped anew, calibrated or ranked: do this with the encoder that it was exported from."
    )


class TrimmedHeadProjection(TrimmedProjection, HeadProjection):
    """A linear layer to the dynamic heads."""

    def forward(self, hidden_states: Tensor, heads: DynamicHeads | None = None) -> Tensor:
        """See :meth:`HeadProjection.forward`."""
        weight, bias = self.rows(heads)
        if not weight.shape[0]:
            return hidden_states.new_empty(*hidden_states.shape[:-1], 0)
        return F.linear(hidden_states, weight, bias)


class TrimmedGroupedKeyProjection(TrimmedHeadProjection, GroupedKeyProjection):
    """The same to the key heads that a dynamic head needs."""


class TrimmedFusedProjection(TrimmedProjection, FusedProjection):
    """One linear layer to the queries and keys of the dynamic heads, and to all values."""

    def forward(self, hidden_states: Tensor) -> QueryKeyValue:  # type: ignore[override]
        """See :meth:`FusedProjection.forward`."""
        return split_fused(F.linear(hidden_states, *self.rows()), self.heads)


class TrimmedFusedConv1D(TrimmedProjection, FusedConv1D):
    """The same with a transposed weight."""

    def forward(self, hidden_states: Tensor) -> QueryKeyValue:
        """See :meth:`FusedProjection.forward`."""
        weight, bias = self.rows()
        flat = torch.addmm(cast(Tensor, bias), hidden_states.reshape(-1, hidden_states.shape[-1]), weight)
        return split_fused(flat.view(*hidden_states.shape[:-1], -1), self.heads)


class TrimmedInterleavedProjection(TrimmedProjection, InterleavedProjection):
    """DeBERTa's, with its rows in the order of queries, keys and values."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Only asked while all heads are dynamic.

        Raises:
            PapaError: Always.
        """
        raise left_out_error()

    def split_heads(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`InterleavedProjection.split_heads`."""
        return split_fused(F.linear(hidden_states, *self.rows()), self.heads).parts


#: How a projection that was cut is trimmed. Those that are not here keep all their rows.
TRIMMED: dict[type[CutProjection], type[TrimmedProjection]] = {
    HeadProjection: TrimmedHeadProjection,
    GroupedKeyProjection: TrimmedGroupedKeyProjection,
    FusedProjection: TrimmedFusedProjection,
    FusedConv1D: TrimmedFusedConv1D,
    InterleavedProjection: TrimmedInterleavedProjection,
}


def trim_projection(owner: nn.Module, name: str, heads: Sequence[int]) -> None:
    """Let a projection lose the rows that these heads do not need; its parameters become smaller ones.

    Args:
        owner: The self-attention module.
        name: Attribute of the projection.
        heads: The heads that stay dynamic, ascending.
    """
    whole = owner._modules.get(name)
    kind = TRIMMED.get(cast(Any, type(whole)))
    if kind is None:
        return
    slices = slices_of(cast(CutProjection, whole), heads)
    if slices.complete:
        return
    trimmed = cast(Any, kind.__new__(kind))
    trimmed.__dict__.update({key: held for key, held in whole.__dict__.items() if key != "_original"})
    trimmed.__dict__["_parameters"] = {
        leaf: None if held is None else trimmed_parameter(held, slices, kind.rows_dim if leaf == "weight" else 0)
        for leaf, held in cast(nn.Module, whole)._parameters.items()
    }
    trimmed.slices = slices
    setattr(trimmed, "nf" if isinstance(trimmed, FusedConv1D) else "out_features", trimmed.weight.shape[kind.rows_dim])
    setattr(owner, name, trimmed)


def trimmed_parameter(whole: nn.Parameter, slices: Slices, dim: int = 0) -> nn.Parameter:
    """A parameter of its own with the slices that are kept."""
    return nn.Parameter(slices.cut(whole.detach(), dim).clone(), requires_grad=whole.requires_grad)


def trim(encoder: PreTrainedModel) -> None:
    """Let a swapped encoder lose the query and key weights of its constant heads, for good.

    Args:
        encoder: The bare encoder, swapped; its constants may still be to come.
    """
    family = family_of(encoder)
    for module, heads in _dynamic_heads(encoder).items():
        for name in family.projections:
            trim_projection(module, name, heads)
        for path, slices in _biases(encoder, module, heads):
            module._parameters[path] = trimmed_parameter(cast(nn.Parameter, module._parameters[path]), slices)
        for name in _idle_parts(encoder, module, heads):
            setattr(module, name, nn.Identity())


def trimmed_state(encoder: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict that an encoder would have after :func:`trim`, without what has no entries; nothing is changed.

    Args:
        encoder: The bare encoder, swapped, trimmed or not.
    """
    state: dict[str, Tensor] = dict(encoder.state_dict())
    paths = {module: path for path, module in encoder.named_modules()}
    for module, heads in _dynamic_heads(encoder).items():
        for name in family_of(encoder).projections:
            projection = cast(CutProjection, module._modules.get(name))
            if type(projection) not in TRIMMED:  # absent, an adapter's, or trimmed already
                continue
            slices, key = slices_of(projection, heads), f"{paths[module]}.{name}."
            for leaf, dim in (("weight", projection.rows_dim), ("bias", 0)):
                if key + leaf in state and not slices.complete:
                    state[key + leaf] = slices.cut(state[key + leaf], dim)
        for path, slices in _biases(encoder, module, heads):
            state[f"{paths[module]}.{path}"] = slices.cut(state[f"{paths[module]}.{path}"], 0)
        for name in _idle_parts(encoder, module, heads):
            state = {key: held for key, held in state.items() if not key.startswith(f"{paths[module]}.{name}.")}
    return {key: held for key, held in state.items() if held.numel()}


def is_trimmed(encoder: nn.Module) -> bool:
    """Whether some heads of an encoder have lost their query and key weights."""
    return any(isinstance(part, TrimmedProjection) for part in encoder.modules())


def refuse_trimmed(encoder: nn.Module) -> None:
    """Refuse to look for dynamic attention where it is gone.

    Raises:
        PapaError: Says what to do instead.
    """
    if is_trimmed(encoder):
        raise left_out_error()


def _dynamic_heads(encoder: PreTrainedModel) -> dict[nn.Module, tuple[int, ...]]:
    """The heads of each self-attention module that need a query and a key in one of its layers, ascending."""
    return {
        module: tuple(sorted({head for mixer in mixers_of(module) for head in mixer.dynamic_when_calibrated()}))
        for module in dict.fromkeys(attention_modules(encoder))
    }


def _biases(encoder: PreTrainedModel, module: nn.Module, heads: tuple[int, ...]) -> Iterator[tuple[str, Slices]]:
    """Parameters of the module itself that only queries and keys depend on (DeBERTa's q_bias): one slice a head."""
    count, width = mixers_of(module)[0].heads.num_heads, head_size(encoder)
    for path in family_of(encoder).query_parameters:
        held = module._parameters.get(path)
        if held is not None and held.shape[0] == count * width and len(heads) < count:
            yield path, Slices(count, heads)


def _idle_parts(encoder: PreTrainedModel, module: nn.Module, heads: tuple[int, ...]) -> list[str]:
    """Parts of the module that only queries and keys go through (Qwen3's norms), where there are none."""
    names = {path.partition(".")[0] for path in family_of(encoder).query_parameters if "." in path}
    return [name for name in sorted(names & module._modules.keys()) if not heads]
