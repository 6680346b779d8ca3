"""Resolving the arguments of a swap to the kind, the heads and the options of each layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from transformers import PreTrainedModel

from papa_lightning.attention import KINDS, TokenMixer, UntouchedLayer
from papa_lightning.encoders.finding import encoder_shape
from papa_lightning.errors import HeadSelectionError, PapaError

#: One kind for all layers, or one a layer.
Kinds: TypeAlias = str | Sequence[str]
#: Options for all layers whose kind has them, or one map a layer.
Options: TypeAlias = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class LayerPlan:
    """The mixer that a layer is to get.

    Args:
        mixer: Class of the mixer.
        heads: The heads that it replaces.
        options: Its other arguments.
    """

    mixer: type[TokenMixer]
    heads: tuple[int, ...]
    options: dict[str, Any]

    @property
    def needs_constants(self) -> bool:
        """Whether the layer needs constants."""
        return self.mixer.needs_constants(self.options)


def plan_layers(
    kind: Kinds, options: Options | None, selection: Sequence[tuple[int, ...]], num_heads: int, constants_given: bool
) -> list[LayerPlan]:
    """The plan of each layer, by the arguments of a swap; ``selection`` has the selected heads of each layer."""
    num_layers = len(selection)
    kinds = [kind] * num_layers if isinstance(kind, str) else kind
    if not isinstance(kinds, Sequence) or not all(isinstance(name, str) for name in kinds):
        raise PapaError(f"kind is {kind!r}, but must be the name of a kind, or a list with one name a layer.")
    if len(kinds) != num_layers:
        raise PapaError(f"kind names {len(kinds)} layers, but the encoder has {num_layers}: pass one kind for each.")
    mixers = [KINDS[name] for name in kinds]
    plans = []
    for layer, (mixer, own, wanted) in enumerate(zip(mixers, selection, _options(options, mixers), strict=True)):
        if mixer.whole_layer and len(own) < num_heads:
            raise HeadSelectionError(
                f"heads has {len(own)} of {num_heads} heads in layer {layer}, but kind {mixer.kind!r} "
                f'{mixer.whole_layer}: pass heads="all", and "dynamic" as the kind of layers to leave alone.'
            )
        heads = () if mixer is UntouchedLayer else own
        plans.append(LayerPlan(mixer, heads, mixer.complete_options(wanted, constants_given)))
    return plans


def plan_whole_layers(
    encoder: PreTrainedModel, kind: Kinds, options: Options | None, constants_given: bool
) -> list[LayerPlan]:
    """The plan of each layer in a swap of all heads, which start from constants where they can and some are given."""
    num_layers, num_heads = encoder_shape(encoder)
    return plan_layers(kind, options, [tuple(range(num_heads))] * num_layers, num_heads, constants_given)


def _options(options: Options | None, mixers: Sequence[type[TokenMixer]]) -> Sequence[Mapping[str, Any]]:
    if options is None:
        return [{}] * len(mixers)
    if isinstance(options, Mapping):
        for name in options:
            _check_option(name, mixers)
        return [{name: options[name] for name in mixer.option_names() if name in options} for mixer in mixers]
    if not isinstance(options, Sequence) or not all(isinstance(own, Mapping) for own in options):
        raise PapaError(f"options is {options!r}, but must be a map from option to value, or a list with one a layer.")
    if len(options) != len(mixers):
        raise PapaError(f"options has {len(options)} maps, but the encoder has {len(mixers)} layers: pass one a layer.")
    for own, mixer in zip(options, mixers, strict=True):
        for name in own:
            _check_option(name, [mixer])
    return options


def _check_option(name: str, mixers: Sequence[type[TokenMixer]]) -> None:
    known = {mixer.kind: mixer.option_names() for mixer in mixers}
    if not any(name in names for names in known.values()):
        listed = "; ".join(f"{kind!r} has {', '.join(names) or 'none'}" for kind, names in known.items())
        raise PapaError(f"options has {name!r}, which is no option of the kinds that were asked for: {listed}.")
