"""Swapping the attention of an encoder in place, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from papa_lightning.attention import GatedHeads, TokenMixer, ZeroMassWatch, mixer_class
from papa_lightning.encoders.families import EncoderFamily, attention_modules, encoder_shape, family_of, find_encoder
from papa_lightning.encoders.inputs import fits_positions, position_limit
from papa_lightning.encoders.interface import Observer, OriginalAttention, attach, detach, mixer_of, original_of
from papa_lightning.encoders.projections import HeadProjection
from papa_lightning.encoders.selection import HeadSelection, select_heads
from papa_lightning.exceptions import HeadSelectionError, PapaError, UnsupportedEncoderError
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

    The names of the encoder's own parameters stay; what is added has keys with ``papa.`` in them. Query and key rows
    of constant heads are no longer computed, and where a layer has no other heads, those parameters are frozen. A
    second swap replaces the first. Swap before DistributedDataParallel wraps the model.

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
    modules = attention_modules(base)
    length = _length(base, constants, max_length)
    num_heads = encoder_shape(base)[1]
    selection = select_heads(heads, len(modules), num_heads, ranking)
    build = mixer_class(kind)
    if kind == "gated" and any(len(own) < num_heads for own in selection):
        raise HeadSelectionError(f'heads is {heads!r}, but kind "gated" puts a gate on every head: pass heads="all".')
    family, watch = family_of(base), ZeroMassWatch()
    for module in modules:  # refuse before anything is touched
        _check_projections(module, family)
    restore_attention(encoder)
    first = next((layer for layer, own in enumerate(selection) if own), None)
    for layer, (module, own) in enumerate(zip(modules, selection, strict=True)):
        weight = getattr(module, family.query).weight
        mixer = build(layer, num_heads, length, own, weight.dtype, weight.device, watch)
        _install(module, mixer.train(module.training), family, checks_mask=layer == first)
    if constants is not None:
        _fill(swapped_layers(encoder), constants)
    return encoder


def restore_attention(encoder: Model) -> Model:
    """Undo :func:`swap_attention`: exactly the encoder of before, with the same modules, keys and outputs.

    Parameters keep the values that they have by now. An encoder that is not swapped is left as it is.

    Args:
        encoder: What was passed to :func:`swap_attention`.

    Returns:
        The encoder that was passed.

    Raises:
        UnsupportedEncoderError: For a model that is not a supported encoder, or whose query and key projections were
            replaced since the swap. The encoder is unchanged then.
    """
    base = find_encoder(encoder)
    family = family_of(base)
    swapped = [module for module in attention_modules(base) if mixer_of(module) is not None]
    for module in swapped:
        _check_projections(module, family)
    for module in swapped:
        original = cast(OriginalAttention, original_of(module))
        for name in (family.query, family.key):
            projection = getattr(module, name)
            setattr(module, name, projection.original())
        del module.papa
        for name in original.trainable:
            module.get_parameter(name).requires_grad_(True)
        detach(module)
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
    mixers = [mixer_of(module) for module in attention_modules(find_encoder(encoder))]
    return [mixer for mixer in mixers if mixer is not None]


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


@contextmanager
def observe_attention(encoder: nn.Module, observers: Sequence[Observer]) -> Iterator[None]:
    """Let observers see the dynamic attention of an encoder, swapped or not, as it was pretrained.

    Args:
        encoder: The encoder, with or without a task head.
        observers: One a layer; each gets the attention matrices (B, H, T, T) and the mask (B, T) of its layer.
    """
    modules = attention_modules(find_encoder(encoder))
    try:
        for module, observer in zip(modules, observers, strict=True):
            attach(module).observer = observer
            _suspend(module, True)
        yield
    finally:
        for module in modules:
            if (original := original_of(module)) is not None:
                original.observer = None
            _suspend(module, False)
            if mixer_of(module) is None:
                detach(module)


def _suspend(module: nn.Module, suspended: bool) -> None:
    if (mixer := mixer_of(module)) is not None:
        mixer.heads.suspended = suspended


def _length(encoder: PreTrainedModel, constants: Constants | None, max_length: int | None) -> int:
    if constants is None:
        if max_length is None:
            raise PapaError(
                "constants is None: pass the AttentionConstants of this encoder, or max_length to wait for them."
            )
        if not fits_positions(encoder, max_length):
            raise PapaError(
                f"max_length is {max_length!r}, but must be a whole number from 1 to "
                f"{position_limit(encoder) or 'any length'}, the positions of the encoder: pass the length of the "
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


def _check_projections(module: nn.Module, family: EncoderFamily) -> None:
    for name in (family.query, family.key):
        projection = getattr(module, name)
        if mixer_of(module) is None:
            HeadProjection.check(projection)
        elif not isinstance(projection, HeadProjection):
            raise UnsupportedEncoderError(
                f"the projection {name!r} of the swapped encoder is a {type(projection).__name__}: it was replaced "
                "after the swap. Undo that before the attention is restored or swapped again."
            )


def _install(module: nn.Module, mixer: TokenMixer, family: EncoderFamily, checks_mask: bool) -> None:
    original = attach(module)
    original.checks_mask = checks_mask
    module.papa = mixer
    for name in (family.query, family.key):
        setattr(module, name, HeadProjection(getattr(module, name), mixer.heads))
    if not mixer.dynamic_when_calibrated():
        # Before DDP counts the trainable parameters: no loss will ever reach these.
        for name, parameter in module.named_parameters():
            if name.startswith((f"{family.query}.", f"{family.key}.")) and parameter.requires_grad:
                original.trainable.append(name)
                parameter.requires_grad_(False)
