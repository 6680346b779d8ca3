"""Swapping the attention of an encoder in place, and back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from papa_lightning.attention import (
    DynamicHeads,
    FoldedHeads,
    GatedHeads,
    Place,
    TokenMixer,
    ZeroMassWatch,
    declares,
)
from papa_lightning.encoders.families.table import EncoderFamily
from papa_lightning.encoders.finding import SupportedEncoder, swapped_layers
from papa_lightning.encoders.head_selection import HeadSelection, select_heads
from papa_lightning.encoders.inputs import compute_device, describe_lengths, fits_positions, position_limit
from papa_lightning.encoders.layer_plan import Kinds, LayerPlan, Options, plan_layers
from papa_lightning.encoders.notes import note_when_saved, stop_noting
from papa_lightning.encoders.projections.cut import CutProjection
from papa_lightning.encoders.projections.folded import check_folding, fold, unfold
from papa_lightning.encoders.projections.joint import order_values
from papa_lightning.encoders.projections.trimmed import is_trimmed, left_out_error
from papa_lightning.encoders.seam.attaching import attach, detach
from papa_lightning.encoders.seam.layer import Frozen, freeze, is_touched, layer_of, mixers_of, thaw
from papa_lightning.encoders.weights import accept_plain_states, refuse_plain_states
from papa_lightning.errors import PapaError
from papa_lightning.ranking import HeadRanking

Model = TypeVar("Model", bound=nn.Module)

#: Attribute of a swapped encoder: the parameters outside its layers that the swap froze.
_FROZEN = "papa_frozen"
#: Attribute in which DistributedDataParallel looks for names that it is to ignore.
_IGNORED = "_ddp_params_and_buffers_to_ignore"


class Constants(Protocol):
    """The part of :class:`~papa_lightning.AttentionConstants` that a swap needs; the class is in a room above."""

    @property
    def max_length(self) -> int:
        """The number of slots T."""

    def by_layer(self) -> Sequence[Any]:
        """The argument of :meth:`TokenMixer.load_constants` for each layer, in layer order."""

    def check(self, encoder: nn.Module | SupportedEncoder, max_length: int | None = None) -> None:
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
    watch: ZeroMassWatch | None = None,
) -> Model:
    """Swap what mixes the tokens of an encoder, in place.

    Own parameters keep their names; keys of what is added have ``papa.`` in them. A plain state dict still loads
    strictly, with a warning, and leaves the constants. Query and key rows of constant heads are not computed, and are
    frozen in layers without others. A second swap replaces the first. Swap before DistributedDataParallel wraps it.

    Args:
        encoder: A PreTrainedModel, with or without a task head; it is returned.
        kind: "constant" (chosen heads use their constants), "gated" (every head mixes both, with a learned gate), or
            another of :data:`~papa_lightning.attention.KINDS`; or a list with one kind a layer, in which "dynamic"
            leaves a layer alone.
        constants: The averaged attention matrices. For kinds that need them, None leaves all heads dynamic until
            :func:`load_constants` or a checkpoint brings the constants; ``max_length`` is required then.
        heads: "all"; a list of (layer, head) pairs; a map from layer to heads; or a number (int) or share
            (float) of heads, which needs a ranking. Kinds other than "constant" take "all" only, in their layers.
        ranking: The order in which heads become constant.
        max_length: T of the constants to come, when there are none yet. For kinds that need none, the longest
            sequence; None means all positions of the encoder.
        options: Further arguments of the kind, as primitives: {"window": 32}. Where kinds differ by layer, each
            layer takes the options that its kind has; or a list with one map a layer.
        watch: The watch for real tokens that attend to nothing, for several swaps that warn once together; None makes
            one that warns once a swap.

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
        >>> uniform = AttentionConstants(torch.full((1, 2, 4, 4), 0.25), torch.ones(4, 4))
        >>> encoder = swap_attention(BertModel(config), "constant", constants=uniform, heads=[(0, 1)])
        >>> encoder.encoder.layer[0].attention.self.papa.constants.shape
        torch.Size([1, 4, 4])
    """
    found = SupportedEncoder.find(encoder)
    selection = select_heads(heads, found.num_layers, found.num_heads, ranking)
    plans = plan_layers(kind, options, selection, found.num_heads, constants is not None)
    length = _length(found, plans, constants, max_length)
    built = _build(found, plans, length, watch or ZeroMassWatch(), waits=constants is None)
    if constants is not None:
        for mixer, plan, piece in zip(built, plans, constants.by_layer(), strict=True):
            if plan.needs_constants:
                mixer.load_constants(piece)
    _install(attach(_restore(encoder, found)), built)
    accept_plain_states(found.model)
    for model in (found.model, encoder):
        leave_out_of_ddp(model)
    note_when_saved(encoder, found.model)
    return encoder


def _build(
    found: SupportedEncoder, plans: Sequence[LayerPlan], length: int, watch: ZeroMassWatch, waits: bool
) -> list[TokenMixer]:
    """The mixers, one a layer, made before the encoder is changed."""
    built: list[TokenMixer] = []
    for layer, (plan, module, reach) in enumerate(zip(plans, found.modules, found.reaches, strict=True)):
        dtype, device = _dtype_and_device(module, found, waits)
        place = Place(layer, found.num_heads, length, found.head_size, dtype, device, watch, reach)
        mixer = plan.mixer(place, plan.heads, **plan.options)
        mixer.checks_mask = bool(plan.heads) and not any(earlier.constant_heads for earlier in built)
        built.append(mixer)
    check_folding(found, built)
    return built


def restore_attention(encoder: Model) -> Model:
    """Undo :func:`swap_attention`: the same modules and keys as before, with present values; nothing if not swapped.

    Args:
        encoder: The module that was passed to :func:`swap_attention`; it is returned.

    Raises:
        UnsupportedEncoderError: For a model that is not a supported encoder.
        PapaError: For an exported encoder, which has lost the weights of its constant heads.
    """
    _restore(encoder, SupportedEncoder.find(encoder))
    return encoder


def _restore(encoder: nn.Module, found: SupportedEncoder) -> SupportedEncoder:
    """Restore an encoder that was found in a module, and return it with its original modules."""
    base = found.model
    if is_trimmed(base):
        raise left_out_error()
    for module in found.distinct_modules:
        if not mixers_of(module):
            continue
        unfold(module)
        for path, part in list(module.named_modules()):  # an adapter may have wrapped a projection
            if isinstance(part, CutProjection):
                module.set_submodule(path, part.original())
        del module.papa
        layer_of(module).value, layer_of(module).joint = "", None
        thaw(module, layer_of(module).frozen)
    thaw(base, vars(base).pop(_FROZEN, Frozen()))
    refuse_plain_states(base)
    stop_noting(encoder, base)
    for model in (base, encoder):
        if isinstance(held := vars(model).get(_IGNORED), LeftOut):
            del vars(model)[_IGNORED]
            if held.others:
                vars(model)[_IGNORED] = list(held.others)
    return detach(found)


def leave_out_of_ddp(model: nn.Module) -> None:
    """Let DistributedDataParallel ignore what a swap made idle or constant, even if it is unfrozen later.

    :func:`swap_attention` does so for the model that it is passed, and the callbacks for the LightningModule. Call it
    for a module of your own around an encoder, before DistributedDataParallel wraps it, if you unfreeze all parameters.
    """
    held = vars(model).get(_IGNORED, ())
    if not isinstance(held, LeftOut):
        vars(model)[_IGNORED] = LeftOut(model, tuple(held))


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Names that DDP is to ignore, read at each wrapping: idle parameters (no gradient), constants (equal anyway)."""

    model: nn.Module
    others: tuple[str, ...]  # set by others before

    def __iter__(self) -> Iterator[str]:
        yield from self.others
        for path, part in self.model.named_modules():
            names = [*vars(part).get(_FROZEN, Frozen()).idle]
            if is_touched(part):
                names += layer_of(part).frozen.idle
            if isinstance(part, TokenMixer):
                names += [name for name in part.constant_tensors if name in part._buffers]
            for name in names:
                full = f"{path}.{name}" if path else name
                yield from (full, f"_orig_mod.{full}")  # a compiled model has them under the second


def learn_constants(encoder: nn.Module, learn: bool = True) -> None:
    """Make the constants of a swapped encoder parameters that learn, or (``learn=False``) fixed buffers again.

    To be called before the optimizer is made and DistributedDataParallel wraps the model. PapaError without constants.
    """
    mixers = [mixer for mixer in swapped_layers(encoder) if mixer.constant_tensors]
    if not mixers:
        raise PapaError("the encoder has no constants to learn: call swap_attention(encoder, ...) first.")
    for mixer in mixers:
        mixer.learn_constants(learn)


def load_constants(encoder: nn.Module, constants: Constants) -> None:
    """Give constants of the same max_length to a swapped encoder; its constant heads take effect at once.

    Raises:
        PapaError: When the encoder is not swapped.
        ConstantsFileError: When the constants do not fit.
    """
    found = SupportedEncoder.find(encoder)
    mixers = found.mixers
    if not mixers:
        raise PapaError("the encoder is not swapped: call swap_attention(encoder, ...) before load_constants.")
    constants.check(found, max_length=mixers[0].max_length)
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


def gate_logits(encoder: nn.Module) -> list[nn.Parameter]:
    """Gate logits of an encoder that was swapped to kind "gated".

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
    found: SupportedEncoder, plans: Sequence[LayerPlan], constants: Constants | None, max_length: int | None
) -> int:
    """The length T of a swap."""
    needed = any(plan.needs_constants for plan in plans)
    if constants is None:
        if max_length is None and needed:
            raise PapaError(
                "constants is None: pass the AttentionConstants of this encoder, or max_length to wait for them."
            )
        max_length = position_limit(found.model) if max_length is None else max_length
        if max_length is None:
            raise PapaError(
                "max_length is None, and the encoder names no limit: pass the length of the longest sequences."
            )
        if not fits_positions(found.model, max_length):
            raise PapaError(
                f"max_length is {max_length!r}, but must be {describe_lengths(found.model)}: pass the length of the "
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
    constants.check(found, max_length=max_length)
    return constants.max_length


def _dtype_and_device(module: nn.Module, found: SupportedEncoder, waits: bool) -> tuple[torch.dtype, torch.device]:
    """Dtype and device of a layer, by its floating point parameters: quantised ones are no dtype to compute in."""
    first = next((own for own in module.parameters() if own.is_floating_point()), None)
    dtype = found.model.dtype if first is None else first.dtype
    try:
        return dtype, compute_device(module, found.model.device)
    except PapaError:
        if not waits:
            raise
        return dtype, torch.device("meta")  # constants and weights come later, together


def _install(found: SupportedEncoder, mixers: Sequence[TokenMixer]) -> None:
    """Install mixers, one a layer, in an encoder that is attached."""
    held: dict[nn.Module, list[TokenMixer]] = {module: [] for module in found.modules}
    for module, mixer in zip(found.modules, mixers, strict=True):
        held[module].append(mixer.train(module.training))
    for module, own in held.items():
        if len(own) == 1:
            module.papa, heads = own[0], own[0].heads
        else:
            module.papa = nn.ModuleList(own)
            heads = DynamicHeads(found.num_heads)  # the heads of the layer that runs come with the call
        for name, projection in found.family.projections.items():
            if name in module._modules:
                projection.replace(module, name, heads)
        layer_of(module).frozen = freeze(module, _unused(own, found.family))
        if isinstance(own[0], FoldedHeads):
            fold(found, module, own[0].heads)
        elif len(own) == 1 and found.family.value in module._modules and declares(own[0], "reorders_values"):
            layer_of(module).value = found.family.value
            queries = tuple(found.family.projections)[:2]
            layer_of(module).joint = order_values(module, found.family.value, heads, queries)
    if not any(mixer.uses_scores and mixer.dynamic_when_calibrated() for mixer in mixers):
        vars(found.model)[_FROZEN] = freeze(found.model, found.family.position_parameters)


def _unused(mixers: Sequence[TokenMixer], family: EncoderFamily) -> list[str]:
    """Beginnings of the names of the parameters of a module that no loss reaches any more."""
    if not any(mixer.dynamic_when_calibrated() for mixer in mixers):
        queries = [f"{name}." for name, projection in family.projections.items() if not projection.holds_values]
        return [*queries, *family.query_parameters]
    if not any(mixer.uses_scores for mixer in mixers):
        return [f"{name}." for name in family.projections if name.startswith("pos_")]  # of relative positions
    return []
