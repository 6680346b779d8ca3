"""One (d x d) matrix in the place of a layer's value and output projections, where all heads share one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from papa_lightning.attention import DynamicHeads, FoldedHeads, TokenMixer
from papa_lightning.attention.parameter_cache import Remembered
from papa_lightning.encoders.finding import SupportedEncoder
from papa_lightning.encoders.projections.cut import CutProjection, Rows
from papa_lightning.errors import PapaError, UnsupportedEncoderError


class FoldedProjection(CutProjection, nn.Linear):
    """One of the two projections of a folded layer, with a reference to the other."""

    partner: FoldedProjection
    _product: Remembered[Rows]

    def original(self) -> nn.Module:
        """See :meth:`CutProjection.original`."""
        original = super().original()
        for name in ("partner", "_product"):
            original.__dict__.pop(name, None)
        return original

    @property
    def folds(self) -> bool:
        """Whether the layer that runs now is folded; not if an adapter wraps one of the two."""
        return not self.heads.dynamic and self.cuts and self.partner.cuts


class FoldedOutput(FoldedProjection):
    """An output projection that only adds its bias, because the value projection does its work."""

    def forward(self, mixed: Tensor) -> Tensor:
        """Map mixed values (B, T, d) to the output; they are in its space already while the layer is folded."""
        if not self.folds:
            return F.linear(mixed, self.weight, self.bias)
        return mixed if self.bias is None else mixed + self.bias


class FoldedValue(FoldedProjection):
    """A value projection that gives ``x W^T + Wo bv`` with ``W = Wo Wv``: rows of constants sum to 1 or are 0."""

    holds_values = True

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map hidden states (B, T, hidden) to values (B, T, d)."""
        if not self.folds:
            return F.linear(hidden_states, self.weight, self.bias)
        output, value, bias = self.partner.weight, self.weight, cast("Tensor | None", self.bias)

        def product() -> Rows:
            return output @ value, None if bias is None else output @ bias

        read = [output, value] if bias is None else [output, value, bias]
        return F.linear(hidden_states, *self._product.recall(product, read, training=self.training))

    def _forget(self) -> None:
        super()._forget()
        self._product.forget()


def fold(found: SupportedEncoder, module: nn.Module, heads: DynamicHeads) -> None:
    """Let the value and output projections of a layer work as one matrix while the layer has no dynamic heads."""
    owner, name = _output_of(found, module)
    value_name = cast(str, found.family.value)
    FoldedOutput.replace(owner, name, heads)
    FoldedValue.replace(module, value_name, heads)
    output, value = cast(nn.Module, owner._modules[name]), cast(nn.Module, module._modules[value_name])
    output.__dict__["partner"] = value  # neither is a submodule of the other
    value.__dict__.update(partner=output, _product=Remembered())


def unfold(module: nn.Module) -> None:
    """Undo :func:`fold` outside the module; projections inside are restored with the others of the module."""
    for value in [part for part in module.modules() if isinstance(part, FoldedValue)]:
        output = value.partner
        owner, _ = output._place
        for path, part in list(owner.named_modules()):  # an adapter may have wrapped it
            if part is output:
                owner.set_submodule(path, output.original())


def check_folding(found: SupportedEncoder, mixers: Sequence[TokenMixer]) -> None:
    """Refuse layers to be folded whose value and output projections cannot be one matrix; one mixer a layer."""
    modules = found.modules
    for module in found.distinct_modules:
        layers = [layer for layer, one in enumerate(modules) if one is module]
        folds = {isinstance(mixers[layer], FoldedHeads) for layer in layers}
        if len(folds) > 1:
            kinds = [mixers[layer].kind for layer in layers]
            raise PapaError(
                f"kind is {kinds}, but layers {layers} share one module, whose projections are folded for all or none: "
                'pass "folded" for all of them, or "constant".'
            )
        if folds == {True}:
            owner, name = _output_of(found, module)
            output = cast(nn.Linear, owner._modules[name])
            channels = (output.in_features, output.out_features)
            if channels[0] != channels[1]:
                raise _refusal(module, f"its values have {channels[0]} channels, but its output {channels[1]}")
            if getattr(module, "rotary_value", False):
                raise _refusal(module, "its values are rotated by their position before they are mixed")


def _output_of(found: SupportedEncoder, module: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds the output projection of a self-attention module, and its name there."""
    if found.family.value is None:
        raise _refusal(module, "its values come out of one layer with the queries, or are shared by several heads")
    start, path = module, found.family.output
    if path.startswith("../"):
        own = next(name for name, one in found.model.named_modules() if one is module)
        start, path = found.model.get_submodule(own.rpartition(".")[0]), path[3:]
    parent, _, name = path.rpartition(".")
    owner = start.get_submodule(parent)
    for held, attribute in ((module, found.family.value), (owner, name)):
        layer = held._modules.get(attribute)
        if not isinstance(layer, nn.Linear):
            raise _refusal(module, f"{type(held).__name__}.{attribute} is a {type(layer).__name__}, no linear layer")
    return owner, name


def _refusal(module: nn.Module, reason: str) -> UnsupportedEncoderError:
    return UnsupportedEncoderError(
        f'kind "folded" cannot make one matrix of the value and output projections of {type(module).__name__}: '
        f'{reason}. Use kind "constant".'
    )
