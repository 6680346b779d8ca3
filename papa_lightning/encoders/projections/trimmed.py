"""Query and key projections of an exported encoder: the rows of constant heads are gone, and not only skipped."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from torch import Tensor, nn

from papa_lightning.attention import DynamicHeads
from papa_lightning.encoders.finding import SupportedEncoder
from papa_lightning.encoders.projections import cut
from papa_lightning.encoders.projections.cut import CutProjection, Rows, Slices
from papa_lightning.encoders.seam.layer import layer_of, mixers_of
from papa_lightning.errors import PapaError


class TrimmedProjection(CutProjection):
    """Base of trimmed projections; each also derives from the class of the projection that it replaces."""

    #: The slices that are left.
    held: Slices

    def cuts_to(self, heads: DynamicHeads) -> bool:
        """Always true: there is no layer with all heads any more."""
        return True

    def rows(self, heads: Sequence[int]) -> Rows:
        """Weight and bias for the given heads, see :meth:`cut_rows`."""
        return self.cut_rows(heads)

    def cut_rows(self, heads: Sequence[int]) -> Rows:
        """Weight and bias for the given heads; PapaError when rows of a head are needed that are gone."""
        layer, held, needed = cast(nn.Linear, self), self.held.kept, self.slices(heads).kept
        bias = cast("Tensor | None", layer.bias)
        if needed == held:
            return layer.weight, bias
        if not set(needed) <= set(held):
            raise left_out_error()
        places = Slices(len(held), tuple(held.index(number) for number in needed))
        return places.cut(layer.weight, self.rows_dim), None if bias is None else places.cut(bias, 0)

    def original(self) -> nn.Module:
        """Refused, because the original's weights are gone."""
        raise left_out_error()


def left_out_error() -> PapaError:
    """The error for uses of the dynamic attention of heads whose weights are gone."""
    return PapaError(
        "the encoder was exported without the query and key weights of its constant heads, so it cannot be restored, "
        "swapped anew, calibrated or ranked: do this with the encoder that it was exported from."
    )


class TrimmedHeadProjection(TrimmedProjection, cut.HeadProjection):
    """A linear layer to the dynamic heads."""


class TrimmedGroupedKeyProjection(TrimmedProjection, cut.GroupedKeyProjection):
    """A linear layer to the key heads that a dynamic head needs."""


class TrimmedFusedProjection(TrimmedProjection, cut.FusedProjection):
    """One linear layer to the queries and keys of the dynamic heads, and to all values."""


class TrimmedFusedConv1D(TrimmedProjection, cut.FusedConv1D):
    """A :class:`TrimmedFusedProjection` with a transposed weight."""


class TrimmedInterleavedProjection(TrimmedProjection, cut.InterleavedProjection):
    """DeBERTa's projection, with its rows in the order of queries, keys and values."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Refused: called only for all heads, by an adapter."""
        raise left_out_error()


#: Class of a cut projection -> class of the trimmed one. Other projections keep all their rows.
TRIMMED: dict[type[CutProjection], type[TrimmedProjection]] = {
    cut.HeadProjection: TrimmedHeadProjection,
    cut.GroupedKeyProjection: TrimmedGroupedKeyProjection,
    cut.FusedProjection: TrimmedFusedProjection,
    cut.FusedConv1D: TrimmedFusedConv1D,
    cut.InterleavedProjection: TrimmedInterleavedProjection,
}


def trim_projection(owner: nn.Module, name: str, heads: Sequence[int]) -> None:
    """Remove the rows of a projection that these heads do not need."""
    whole = owner._modules.get(name)
    kind = TRIMMED.get(cast(Any, type(whole)))
    if kind is None:
        return
    slices = cast(CutProjection, whole).slices(heads)
    if slices.complete:
        return
    trimmed = cast(Any, kind.__new__(kind))
    trimmed.__dict__.update({key: held for key, held in whole.__dict__.items() if key != "_original"})
    trimmed.__dict__["_parameters"] = {
        leaf: None if held is None else trimmed_parameter(held, slices, kind.rows_dim if leaf == "weight" else 0)
        for leaf, held in cast(nn.Module, whole)._parameters.items()
    }
    trimmed.held = slices
    setattr(
        trimmed, "nf" if isinstance(trimmed, cut.FusedConv1D) else "out_features", trimmed.weight.shape[kind.rows_dim]
    )
    setattr(owner, name, trimmed)


def trimmed_parameter(whole: nn.Parameter, slices: Slices, dim: int = 0) -> nn.Parameter:
    """A new parameter with the kept slices."""
    return nn.Parameter(slices.cut(whole.detach(), dim).clone(), requires_grad=whole.requires_grad)


def trim(found: SupportedEncoder) -> None:
    """Remove the query and key weights of the constant heads of an encoder for good."""
    for module, heads in _dynamic_heads(found).items():
        for name in found.family.projections:
            trim_projection(module, name, heads)
        if (joint := layer_of(module).joint) is not None:
            layer_of(module).joint = joint.anew(module)
        for path, slices in _biases(found, module, heads):
            module._parameters[path] = trimmed_parameter(cast(nn.Parameter, module._parameters[path]), slices)
        for name in _idle_parts(found, module, heads):
            setattr(module, name, nn.Identity())


def trimmed_state(found: SupportedEncoder) -> dict[str, Tensor]:
    """The state dict that a swapped encoder would have after :func:`trim`, without empty tensors."""
    state: dict[str, Tensor] = dict(found.model.state_dict())
    paths = {module: path for path, module in found.model.named_modules()}
    for module, heads in _dynamic_heads(found).items():
        for name in found.family.projections:
            projection = cast(CutProjection, module._modules.get(name))
            if type(projection) not in TRIMMED:  # absent, an adapter's, or trimmed already
                continue
            slices, key = projection.slices(heads), f"{paths[module]}.{name}."
            for leaf, dim in (("weight", projection.rows_dim), ("bias", 0)):
                if key + leaf in state and not slices.complete:
                    state[key + leaf] = slices.cut(state[key + leaf], dim)
        for path, slices in _biases(found, module, heads):
            state[f"{paths[module]}.{path}"] = slices.cut(state[f"{paths[module]}.{path}"], 0)
        for name in _idle_parts(found, module, heads):
            state = {key: held for key, held in state.items() if not key.startswith(f"{paths[module]}.{name}.")}
    return {key: held for key, held in state.items() if held.numel()}


def is_trimmed(encoder: nn.Module) -> bool:
    """Whether some heads of an encoder have lost their query and key weights."""
    return any(isinstance(part, TrimmedProjection) for part in encoder.modules())


def _dynamic_heads(found: SupportedEncoder) -> dict[nn.Module, tuple[int, ...]]:
    """The heads of each self-attention module that need a query and a key in one of its layers, ascending."""
    return {
        module: tuple(sorted({head for mixer in mixers_of(module) for head in mixer.dynamic_when_calibrated()}))
        for module in found.distinct_modules
    }


def _biases(found: SupportedEncoder, module: nn.Module, heads: tuple[int, ...]) -> Iterator[tuple[str, Slices]]:
    """Parameters of the module itself that only queries and keys depend on (DeBERTa's q_bias): one slice a head."""
    count, width = mixers_of(module)[0].heads.num_heads, found.head_size
    for path in found.family.query_parameters:
        held = module._parameters.get(path)
        if held is not None and held.shape[0] == count * width and len(heads) < count:
            yield path, Slices(count, heads)


def _idle_parts(found: SupportedEncoder, module: nn.Module, heads: tuple[int, ...]) -> list[str]:
    """Parts of the module that only queries and keys go through (Qwen3's norms), where there are none."""
    names = {path.partition(".")[0] for path in found.family.query_parameters if "." in path}
    return [name for name in sorted(names & module._modules.keys()) if not heads]
