"""Swapping the attention of an encoder in place, and back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from papa_lightning.attention import DynamicHeads, FoldedHeads, GatedHeads, Place, TokenMixer, ZeroMassWatch
from papa_lightning.encoders.families.table import EncoderFamily
from papa_lightning.encoders.finding import (
    attention_modules,
    attention_reaches,
    encoder_shape,
    family_of,
    find_encoder,
    head_size,
    is_supported,
)
from papa_lightning.encoders.freezing import freeze, leave_in, leave_out, thaw
from papa_lightning.encoders.head_selection import HeadSelection, select_heads
from papa_lightning.encoders.inputs import compute_device, describe_lengths, fits_positions, position_limit
from papa_lightning.encoders.layer_plan import Kinds, LayerPlan, Options, plan_layers
from papa_lightning.encoders.notes import LostSwapWarning, SwapNote, saving_model, write_note
from papa_lightning.encoders.projections.cut import CutProjection
from papa_lightning.encoders.projections.folded import check_folding, fold, unfold
from papa_lightning.encoders.projections.trimmed import is_trimmed, refuse_trimmed
from papa_lightning.encoders.seam.attaching import attach, detach
from papa_lightning.encoders.seam.layer import is_touched, layer_of, mixers_of
from papa_lightning.encoders.weights import accept_plain_states, refuse_plain_states
from papa_lightning.errors import PapaError
from papa_lightning.ranking import HeadRanking

Model = TypeVar("Model", bound=nn.Module)


class Constants(Protocol):
    """What a swap needs of :class:`~papa_lightning.AttentionConstants`, whose room stands above this one."""

    @property
    def max_length(self) -> int:
        """T."""

    def by_layer(self) -> Sequence[Any]:
        """What :meth:`TokenMixer.load_constants` of each layer takes, in layer order."""

    def check(self, encoder: nn.Module, max_length: int | None = None) -> None:
        """Refuse an encoder, or a length, that the constants do not fit."""


def swap_attention(
    encoder: Model,
    kind: Kinds,
    *,
    constants: Constants | None = None,
    heads: HeadSelection = "all",
    ranking: HeadRanking | None = None,
    max_length: int | None = None,
    options: Options | None = None,
) -> Model:
    """Swap what mixes the tokens of an encoder, in place.

    The names of the encoder's own parameters stay; what is added has keys with ``papa.`` in them. The state dict of a
    plain encoder still loads strictly, and leaves the constants as they are, with a warning. Query and key rows of
    constant heads are no longer computed, and where a layer has no other heads, those parameters are frozen. A second
    swap replaces the first. Swap before DistributedDataParallel wraps the model.

    Args:
        encoder: A PreTrainedModel, with or without a task head.
        kind: "constant" (chosen heads use their constants), "gated" (every head mixes both, with a learned gate), or
            another of :data:`~papa_lightning.attention.KINDS`; or a list with one kind a layer, in which "dynamic"
            leaves a layer alone.
        constants: The averaged attention matrices. For kinds that need them, None leaves the encoder waiting, with
            all heads dynamic, until :func:`load_constants` or a checkpoint brings them; ``max_length`` is required
            then.
        heads: "all"; a list of (layer, head) pairs; a map from layer to heads; or a number (int) or share
            (float) of heads, which wants a ranking. Kinds other than "constant" take "all" only, in their layers.
        ranking: The order in which heads become constant.
        max_length: T of the constants to come, when there are none yet. For kinds that need none, the longest
            sequence; None means all positions of the encoder.
        options: What the kind takes beside that, as primitives: {"window": 32}. Where kinds differ by layer, each
            layer takes the options that its kind has; or a list with one map a layer.

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
    num_layers, num_heads = encoder_shape(base)
    selection = select_heads(heads, num_layers, num_heads, ranking)
    plans = plan_layers(kind, options, selection, num_heads, constants is not None)
    built = _build(base, plans, _length(base, plans, constants, max_length), waits=constants is None)
    pieces = [None] * num_layers if constants is None else constants.by_layer()
    for mixer, plan, piece in zip(built, plans, pieces, strict=True):
        if plan.needs_constants and constants is not None:
            mixer.load_constants(piece)
    restore_attention(encoder)
    layers = attach(base)
    mixers: dict[nn.Module, list[TokenMixer]] = {module: [] for module in layers}
    for module, mixer in zip(layers, built, strict=True):
        mixers[module].append(mixer.train(module.training))
    for module, own_mixers in mixers.items():
        _install(module, own_mixers, family_of(base))
        if isinstance(own_mixers[0], FoldedHeads):
            fold(base, module, family_of(base), own_mixers[0].heads)
    if not any(mixer.uses_scores and mixer.dynamic_when_calibrated() for mixer in built):
        layer_of(layers[0]).frozen_positions = freeze(base, family_of(base).position_parameters)
    accept_plain_states(base)
    for model in (base, encoder):
        leave_out_of_ddp(model)
    base.register_state_dict_post_hook(_note_swap)  # type: ignore[no-untyped-call]
    for whole in _holding(encoder, base):
        whole.save_pretrained = partial(_save, whole)  # type: ignore[method-assign]
    return encoder


def _build(encoder: PreTrainedModel, plans: Sequence[LayerPlan], length: int, waits: bool) -> list[TokenMixer]:
    """The mixers, one a layer, before anything about the encoder is changed."""
    num_heads, watch, built = encoder_shape(encoder)[1], ZeroMassWatch(), list[TokenMixer]()
    places = zip(attention_modules(encoder), attention_reaches(encoder), strict=True)
    for layer, (plan, (module, reach)) in enumerate(zip(plans, places, strict=True)):
        dtype, device = _dtype_and_device(module, encoder, waits)
        place = Place(layer, num_heads, length, head_size(encoder), dtype, device, watch, reach)
        mixer = plan.mixer(place, plan.heads, **plan.options)
        mixer.checks_mask = bool(plan.heads) and not any(earlier.constant_heads for earlier in built)
        built.append(mixer)
    check_folding(encoder, family_of(encoder), built)
    return built


def restore_attention(encoder: Model) -> Model:
    """Undo :func:`swap_attention`: exactly the encoder of before, with the same modules, keys and outputs.

    Parameters keep the values that they have by now. An encoder that is not swapped is left as it is.

    Args:
        encoder: What was passed to :func:`swap_attention`.

    Returns:
        The encoder that was passed.

    Raises:
        UnsupportedEncoderError: For a model that is not a supported encoder.
        PapaError: For an exported encoder, which has lost the weights of its constant heads.
    """
    base = find_encoder(encoder)
    refuse_trimmed(base)
    for module in dict.fromkeys(attention_modules(base)):
        if not mixers_of(module):
            continue
        unfold(module)
        for path, part in list(module.named_modules()):  # an adapter may have taken a projection in
            if isinstance(part, CutProjection):
                module.set_submodule(path, part.original())
        del module.papa
        thaw(module, layer_of(module).frozen)
        thaw(base, layer_of(module).frozen_positions)
    refuse_plain_states(base)
    for key in [key for key, hook in base._state_dict_hooks.items() if hook is _note_swap]:
        del base._state_dict_hooks[key]
    for whole in _holding(encoder, base):
        vars(whole).pop("save_pretrained", None)
    detach(base)
    for model in (base, encoder):
        leave_in(model)
    return encoder


def leave_out_of_ddp(model: nn.Module) -> None:
    """Let DistributedDataParallel leave alone what a swap made idle or constant, whoever unfreezes it later.

    :func:`swap_attention` does so for the model that it is passed, and the callbacks for the LightningModule. Call it
    for a module of your own around an encoder, before DistributedDataParallel wraps it, if you unfreeze all parameters.

    Args:
        model: What will be wrapped; it holds swapped encoders.
    """
    leave_out(model, _idle_or_constant)


def learn_constants(encoder: nn.Module, learn: bool = True) -> None:
    """Make the constants of a swapped encoder parameters that learn, or fixed again.

    They are no parameters otherwise, so that unfreezing an encoder leaves them as they are. To be called before the
    optimizer is made, and before DistributedDataParallel wraps the model. Keys in the state dict stay.

    Args:
        encoder: A swapped encoder, with or without a task head.
        learn: Whether they are to learn.

    Raises:
        PapaError: When the encoder has no constants.
    """
    mixers = [mixer for mixer in swapped_layers(encoder) if mixer.constant_tensors]
    if not mixers:
        raise PapaError("the encoder has no constants to learn: call swap_attention(encoder, ...) first.")
    for mixer in mixers:
        mixer.learn_constants(learn)


def _idle_or_constant(model: nn.Module) -> Iterator[str]:
    """Names in a model: of parameters that no loss reaches, and of constants that do not learn."""
    for path, part in model.named_modules():
        prefix = f"{path}." if path else ""
        if is_touched(part):
            yield from (prefix + name for name in layer_of(part).frozen.idle)
        if isinstance(part, TokenMixer):
            yield from (prefix + name for name in part.constant_tensors if name in part._buffers)
        if isinstance(part, PreTrainedModel) and is_supported(part) and find_encoder(part) is part:
            first = attention_modules(part)[0]
            yield from (prefix + name for name in (layer_of(first).frozen_positions.idle if is_touched(first) else ()))


def _note_swap(base: PreTrainedModel, *_: Any) -> None:
    """Where a model with this encoder is being saved: note the swap in its config.json."""
    saving = saving_model()
    if saving is None:
        return
    _note(base, *saving)


def _save(model: PreTrainedModel, save_directory: str, *args: Any, **kwargs: Any) -> None:
    """The save_pretrained of a model; where it gets a state dict that was collected before, it asks for none."""
    type(model).save_pretrained(model, save_directory, *args, **kwargs)
    swapped = is_supported(model) and swapped_layers(model)
    whole = kwargs.get("is_main_process", True) and not getattr(model, "_hf_peft_config_loaded", False)
    if swapped and whole and kwargs.get("state_dict") is not None:
        _note(find_encoder(model), model, save_directory)


def _holding(module: nn.Module, base: PreTrainedModel) -> list[PreTrainedModel]:
    """The models in a module that an encoder is a part of, itself among them."""
    models = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    return [model for model in models if any(part is base for part in model.modules())]


def _note(base: PreTrainedModel, model: PreTrainedModel, folder: str) -> None:
    if not is_supported(model) or find_encoder(model) is not base:
        warnings.warn(
            f"{type(model).__name__}.save_pretrained cannot note in config.json that a part of it is swapped: "
            f"from_pretrained will give dynamic attention. Save the {type(base).__name__} alone, or use state dicts "
            "and swap_as_saved.",
            LostSwapWarning,
            stacklevel=2,
        )
        return
    write_note(model, folder, SwapNote.of(swapped_layers(base), is_trimmed(base)))


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
    pieces = zip(mixers, constants.by_layer(), strict=True)
    wanted = [(mixer, piece) for mixer, piece in pieces if mixer.needs_constants(mixer.options())]
    if not wanted:
        raise _unwanted([mixer.kind for mixer in mixers])
    for mixer, piece in wanted:
        mixer.load_constants(piece)


def _unwanted(kinds: Sequence[str]) -> PapaError:
    return PapaError(
        f"constants are given, but layers of kind {', '.join(sorted(set(kinds)))} with these options take none: leave "
        'them out, or ask for a start from them (options={"init": "from_constants"} where the kind has it).'
    )


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


def _length(
    encoder: PreTrainedModel, plans: Sequence[LayerPlan], constants: Constants | None, max_length: int | None
) -> int:
    needed = any(plan.needs_constants for plan in plans)
    if constants is None:
        if max_length is None and needed:
            raise PapaError(
                "constants is None: pass the AttentionConstants of this encoder, or max_length to wait for them."
            )
        max_length = position_limit(encoder) if max_length is None else max_length
        if max_length is None:
            raise PapaError(
                "max_length is None, and the encoder names no limit: pass the length of the longest sequences."
            )
        if not fits_positions(encoder, max_length):
            raise PapaError(
                f"max_length is {max_length!r}, but must be {describe_lengths(encoder)}: pass the length of the "
                "constants to come, or of the longest sequences."
            )
        return max_length
    if not callable(getattr(constants, "by_layer", None)):
        raise PapaError(
            f"constants is a {type(constants).__name__}, but must be an AttentionConstants: pass what calibrate(...) "
            "returned, or AttentionConstants.load(path)."
        )
    if not needed:
        raise _unwanted([plan.mixer.kind for plan in plans])
    constants.check(encoder, max_length=max_length)
    return constants.max_length


def _dtype_and_device(module: nn.Module, encoder: PreTrainedModel, waits: bool) -> tuple[torch.dtype, torch.device]:
    """Of the layer's own parameters; quantised ones have a dtype that nothing can be computed in."""
    first = next((own for own in module.parameters() if own.is_floating_point()), None)
    dtype = encoder.dtype if first is None else first.dtype
    try:
        return dtype, compute_device(module, encoder.device)
    except PapaError:
        if not waits:
            raise
        return dtype, torch.device("meta")  # constants and weights come later, together


def _install(module: nn.Module, mixers: list[TokenMixer], family: EncoderFamily) -> None:
    if len(mixers) == 1:
        module.papa, heads = mixers[0], mixers[0].heads
    else:
        module.papa = nn.ModuleList(mixers)
        heads = DynamicHeads(mixers[0].heads.num_heads)  # those of the layer that runs come with the call
    for name, projection in family.projections.items():
        if name in module._modules:
            projection.replace(module, name, heads)
    layer_of(module).frozen = freeze(module, _unused(mixers, family))


def _unused(mixers: Sequence[TokenMixer], family: EncoderFamily) -> list[str]:
    """What the names of the parameters of a module begin with that no loss can reach any more."""
    if not any(mixer.dynamic_when_calibrated() for mixer in mixers):
        queries = [f"{name}." for name, projection in family.projections.items() if not projection.holds_values]
        return [*queries, *family.query_parameters]
    if not any(mixer.uses_scores for mixer in mixers):
        return [f"{name}." for name in family.position_projections]
    return []
