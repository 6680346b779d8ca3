"""Swapping the attention of an encoder in place, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from papa_lightning.attention import GatedHeads, HeadsInTurn, Place, TokenMixer, ZeroMassWatch, mixer_class
from papa_lightning.encoders.attaching import attach, detach
from papa_lightning.encoders.families import EncoderFamily
from papa_lightning.encoders.finding import attention_modules, encoder_shape, family_of, find_encoder, head_size
from papa_lightning.encoders.freezing import freeze, thaw
from papa_lightning.encoders.inputs import describe_lengths, fits_positions
from papa_lightning.encoders.layer import layer_of, mixers_of
from papa_lightning.encoders.plain_states import accept_plain_states, refuse_plain_states
from papa_lightning.encoders.projections import CutProjection
from papa_lightning.encoders.selection import HeadSelection, select_heads
from papa_lightning.exceptions import HeadSelectionError, PapaError
from papa_lightning.ranking import HeadRanking

Model = TypeVar("Model", bound=nn.Module)


class Constants(Protocol):
    """What a swap needs of :class:`~papa_lightning.AttentionConstants`, whose room stands above this one."""

    @property
    def values(self) -> Tensor:
        """(L, H, T, T)."""

    @property
    def max_length(self) -> int:
        """T."""

    def check(self, encoder: nn.Module, max_length: int | None = None) -> None:
        """Refuse an encoder, or a length, that the constants do not fit."""


def swap_attention(
    encoder: Model,
    kind: str,
    *,
    constants: Constants | None = None,
    heads: HeadSelection = "all",
    ranking: HeadRanking | None = None,
    max_length: int | None = None,
) -> Model:
    """Swap what mixes the tokens of an encoder, in place.

    The names of the encoder's own parameters stay; what is added has keys with ``papa.`` in them. The state dict of a
    plain encoder still loads strictly, and leaves the constants as they are, with a warning. Query and key rows of
    constant heads are no longer computed, and where a layer has no other heads, those parameters are frozen. A second
    swap replaces the first. Swap before DistributedDataParallel wraps the model.

    Args:
        encoder: A PreTrainedModel, with or without a task head.
        kind: "constant" (chosen heads use their constants) or "gated" (every head mixes both, with a learned gate).
        constants: The averaged attention matrices. None leaves the encoder waiting, with all heads dynamic, until
            :func:`load_constants` or a checkpoint brings them; ``max_length`` is required then.
        heads: "all"; a list of (layer, head) pairs; a map from layer to heads; or a number (int) or share
            (float) of heads, which wants a ranking. "gated" takes "all" only.
        ranking: The order in which heads become constant.
        max_length: T of the constants to come, when there are none yet.

    Returns:
        The encoder that was passed.

    Raises:
        UnsupportedEncoderError: For a model that is not a supported encoder; the message lists those that are.
        HeadSelectionError: For heads that do not exist or are not determined.
        ConstantsFileError: When the constants do not fit the encoder.
        PapaError: For other invalid arguments. The encoder is unchanged after any error.

    Example:
        >>> import torch
        >>> from papa_lightning import AttentionConstants, swap_attention
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=8, intermediate_size=8)
        >>> encoder = BertModel(config)
        >>> uniform = AttentionConstants(torch.full((1, 2, 4, 4), 0.25), torch.ones(4, 4))
        >>> encoder = swap_attention(encoder, "constant", constants=uniform, heads=[(0, 1)])
        >>> encoder.encoder.layer[0].attention.self.papa.constants.shape
        torch.Size([1, 4, 4])
    """
    base = find_encoder(encoder)
    length = _length(base, constants, max_length)
    num_layers, num_heads = encoder_shape(base)
    selection = select_heads(heads, num_layers, num_heads, ranking)
    build = mixer_class(kind)
    if kind == "gated" and any(len(own) < num_heads for own in selection):
        raise HeadSelectionError(f'heads is {heads!r}, but kind "gated" puts a gate on every head: pass heads="all".')
    restore_attention(encoder)
    layers, watch = attach(base), ZeroMassWatch()
    mixers: dict[nn.Module, list[TokenMixer]] = {module: [] for module in layers}
    for layer, (module, own) in enumerate(zip(layers, selection, strict=True)):
        dtype, device = _dtype_and_device(module, base)
        reach = layer_of(module).reach
        mixer = build(Place(layer, num_heads, length, head_size(base), dtype, device, watch, reach), own)
        mixer.checks_mask = bool(own) and not any(selection[:layer])
        mixers[module].append(mixer.train(module.training))
    for module, own_mixers in mixers.items():
        _install(module, own_mixers, family_of(base))
    if not any(mixer.dynamic_when_calibrated() for mixer in swapped_layers(base)):
        layer_of(layers[0]).frozen_positions = freeze(base, family_of(base).position_parameters)
    if constants is not None:
        _fill(swapped_layers(encoder), constants)
    accept_plain_states(base)
    return encoder


def restore_attention(encoder: Model) -> Model:
    """Undo :func:`swap_attention`: exactly the encoder of before, with the same modules, keys and outputs.

    Parameters keep the values that they have by now. An encoder that is not swapped is left as it is.

    Args:
        encoder: What was passed to :func:`swap_attention`.

    Returns:
        The encoder that was passed.

    Raises:
        UnsupportedEncoderError: For a model that is not a supported encoder.
    """
    base = find_encoder(encoder)
    for module in dict.fromkeys(attention_modules(base)):
        if not mixers_of(module):
            continue
        for path, part in list(module.named_modules()):  # an adapter may have taken a projection in
            if isinstance(part, CutProjection):
                module.set_submodule(path, part.original())
        del module.papa
        thaw(module, layer_of(module).frozen)
        thaw(base, layer_of(module).frozen_positions)
    refuse_plain_states(base)
    detach(base)
    return encoder


def load_constants(encoder: nn.Module, constants: Constants) -> None:
    """Give constants to a swapped encoder; its constant heads take effect at once.

    Args:
        encoder: A swapped encoder, with or without a task head.
        constants: Averages of this encoder with the same max_length.

    Raises:
        PapaError: When the encoder is not swapped.
        ConstantsFileError: When the constants do not fit.
    """
    mixers = swapped_layers(encoder)
    if not mixers:
        raise PapaError("the encoder is not swapped: call swap_attention(encoder, ...) before load_constants.")
    constants.check(find_encoder(encoder), max_length=mixers[0].max_length)
    _fill(mixers, constants)


def _fill(mixers: Sequence[TokenMixer], constants: Constants) -> None:
    for mixer, values in zip(mixers, constants.values, strict=True):
        mixer.load_constants(values)


def swapped_layers(encoder: nn.Module) -> list[TokenMixer]:
    """The mixers of a swapped encoder, one a layer in layer order; empty when it is not swapped."""
    modules = attention_modules(find_encoder(encoder))
    mixers = {module: iter(mixers_of(module)) for module in modules}
    return [mixer for module in modules for mixer in [next(mixers[module], None)] if mixer is not None]


def is_calibrated(encoder: nn.Module) -> bool:
    """Whether an encoder is swapped and has its constants."""
    mixers = swapped_layers(encoder)
    return bool(mixers) and all(mixer.calibrated for mixer in mixers)


def gate_logits(encoder: nn.Module) -> list[nn.Parameter]:
    """The gate logits of an encoder that was swapped to kind "gated".

    Args:
        encoder: The encoder, with or without a task head.

    Returns:
        One (H,) parameter a layer, in layer order.

    Raises:
        PapaError: When the encoder has no gates.
    """
    mixers = [mixer for mixer in swapped_layers(encoder) if isinstance(mixer, GatedHeads)]
    if not mixers:
        raise PapaError('the encoder has no gates: call swap_attention(encoder, "gated", constants=...) first.')
    return [mixer.gate_logits for mixer in mixers]


def _length(encoder: PreTrainedModel, constants: Constants | None, max_length: int | None) -> int:
    if constants is None:
        if max_length is None:
            raise PapaError(
                "constants is None: pass the AttentionConstants of this encoder, or max_length to wait for them."
            )
        if not fits_positions(encoder, max_length):
            raise PapaError(
                f"max_length is {max_length!r}, but must be {describe_lengths(encoder)}: pass the length of the "
                "constants to come."
            )
        return max_length
    if not isinstance(getattr(constants, "values", None), Tensor):
        raise PapaError(
            f"constants is a {type(constants).__name__}, but must be an AttentionConstants: pass what calibrate(...) "
            "returned, or AttentionConstants.load(path)."
        )
    constants.check(encoder, max_length=max_length)
    return constants.max_length


def _dtype_and_device(module: nn.Module, encoder: PreTrainedModel) -> tuple[torch.dtype, torch.device]:
    """Of the layer's own parameters; quantised ones have a dtype that nothing can be computed in."""
    first = next((own for own in module.parameters() if own.is_floating_point()), None)
    return (encoder.dtype, encoder.device) if first is None else (first.dtype, first.device)


def _install(module: nn.Module, mixers: list[TokenMixer], family: EncoderFamily) -> None:
    if len(mixers) == 1:
        module.papa, heads = mixers[0], mixers[0].heads
    else:
        module.papa = nn.ModuleList(mixers)
        heads = HeadsInTurn([mixer.heads for mixer in mixers], layer_of(module).turn)
    for name, projection in family.projections.items():
        if name in module._modules:
            projection.replace(module, name, heads)
    if not any(mixer.dynamic_when_calibrated() for mixer in mixers):
        unused = [f"{name}." for name, projection in family.projections.items() if not projection.holds_values]
        layer_of(module).frozen = freeze(module, (*unused, *family.query_parameters))
