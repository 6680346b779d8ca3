"""Opening the self-attention of an encoder for observers and mixers, and closing it again."""

import copy
import inspect
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from papa_lightning.attention import RowMixing
from papa_lightning.attention.functional import apply_attention
from papa_lightning.encoders.finding import SupportedEncoder
from papa_lightning.encoders.seam.batch import ReadBatch
from papa_lightning.encoders.seam.forward import CurrentBatch
from papa_lightning.encoders.seam.inline import adopt, refuse_own_forward, release
from papa_lightning.encoders.seam.interface import IMPLEMENTATION, check_implementation, wants_weights
from papa_lightning.encoders.seam.layer import (
    LAYER,
    Mixing,
    Observer,
    TouchedLayer,
    cache_error,
    gives_matrices,
    is_touched,
    layer_of,
    mixers_of,
)
from papa_lightning.encoders.seam.short import ShortForward, shorten
from papa_lightning.errors import PapaError, UnsupportedEncoderError


def attach(found: SupportedEncoder) -> SupportedEncoder:
    """Open the self-attention of an encoder, and return it with its new modules; unchanged after an error."""
    encoder, inline = found.model, found.family.inline
    if is_touched(found.modules[0]):
        return found
    for module in found.modules:
        if inline is None:
            check_implementation(_config_of(module))
        else:
            refuse_own_forward(module)
            inline.check(module)
    paths, batch = {module: path for path, module in encoder.named_modules()}, CurrentBatch()
    for module in found.distinct_modules:
        group = getattr(module, "num_key_value_groups", 1)
        layer = TouchedLayer(found.family.reach(module), found.slot_rule, cast(int, group), batch)
        if inline is None:
            layer.config = _config_of(module)
            opened = shorten(found.family.short, module)
            vars(opened)[LAYER] = layer  # first, because other threads may be on their way through the module
            own = copy.copy(layer.config)
            own._attn_implementation_internal = IMPLEMENTATION
            opened.config = own  # type: ignore[assignment]
            if opened is not module:
                encoder.set_submodule(paths[module], opened)
        else:
            opened = adopt(inline, module)
            vars(opened)[LAYER] = layer
            encoder.set_submodule(paths[module], opened)
    if inline is not None:
        inline.prepare_encoder(encoder)
    attached = replace(found)
    encoder.register_forward_pre_hook(refuse_cache, with_kwargs=True)
    encoder.register_forward_pre_hook(ReadBatch.of(attached), with_kwargs=True)
    if inline is None and "output_attentions" in inspect.signature(type(found.modules[0]).forward).parameters:
        encoder.register_forward_pre_hook(pass_request_on, with_kwargs=True)
    encoder.register_forward_hook(align_attentions)
    return attached


def detach(found: SupportedEncoder) -> SupportedEncoder:
    """Undo :func:`attach`; returns the encoder with its own self-attention modules."""
    encoder = found.model
    kept = (encoder._forward_pre_hooks_with_kwargs, encoder._forward_hooks_with_kwargs)
    for hooks in (encoder._forward_pre_hooks, encoder._forward_hooks):  # their handles do not survive copies
        for key in [key for key, hook in hooks.items() if hook in _HOOKS or isinstance(hook, ReadBatch)]:
            for entries in (hooks, *kept, encoder._forward_hooks_always_called):
                entries.pop(key, None)
    if found.family.inline is not None:
        found.family.inline.reset_encoder(encoder)
    paths = {module: path for path, module in encoder.named_modules()}
    for module in found.distinct_modules:
        if not is_touched(module):
            continue
        if found.family.inline is None:
            module.config = layer_of(module).config  # type: ignore[assignment]
            del vars(module)[LAYER]
            if isinstance(module, ShortForward) and "forward" not in vars(module):  # else it is called by its own
                encoder.set_submodule(paths[module], release(module))
        else:
            del vars(module)[LAYER]
            encoder.set_submodule(paths[module], release(module))
    return replace(found)


def refuse_cache(encoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
    """Forward pre-hook: refuse cached keys; here and below kwargs is None while other threads attach or detach."""
    cache = (kwargs or {}).get("past_key_values")
    if cache is None or not hasattr(cache, "get_seq_length") or not cache.get_seq_length():
        return
    if any(isinstance(hook, ReadBatch) and hook.differs for hook in encoder._forward_pre_hooks.values()):
        raise cache_error(f"past_key_values holds {cache.get_seq_length()} tokens")


def pass_request_on(
    encoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook: pass a request for matrices on to the layers, where the encoder (GPT-2) does not."""
    return None if kwargs is None else (args, {**kwargs, "papa_weights": wants_weights(encoder.config, kwargs)})


def align_attentions(encoder: PreTrainedModel, args: tuple[Any, ...], output: Any) -> Any:
    """Forward hook: None for the matrices of layers without any, which transformers leaves out, so that others move."""
    found = _attentions(output)
    if found is None:
        return None
    modules = SupportedEncoder.find(encoder).modules
    turns = [(module, modules[:layer].count(module)) for layer, module in enumerate(modules)]
    gaps = [not gives_matrices(module, turn) for module, turn in turns]
    if not any(gaps):
        return None
    place, held = found
    if len(held) == gaps.count(False):
        rest = iter(held)
        held = tuple(None if gap else next(rest) for gap in gaps)
    if not layer_of(modules[0]).warned:
        layer_of(modules[0]).warned = True
        without = [number for number, gap in enumerate(gaps) if gap]
        kinds = sorted({repr(mixers_of(turns[number][0])[turns[number][1]].kind) for number in without})
        warnings.warn(
            f"attentions has None for layers {without}: kind {', '.join(kinds)} makes no attention matrices. "
            "(Reported once.)",
            stacklevel=1,
        )
    if isinstance(output, tuple):
        return (*output[:place], held, *output[place + 1 :])
    output[place] = held
    return output


_HOOKS = (refuse_cache, pass_request_on, align_attentions)


def _attentions(output: Any) -> tuple[Any, tuple[Tensor | None, ...]] | None:
    """The place (key or index) of the matrices in an output of an encoder, and the matrices; None without them."""
    if isinstance(output, ModelOutput):
        held = output.get("attentions")
        return None if held is None else ("attentions", held)
    for place, held in enumerate(output if isinstance(output, tuple) else ()):
        if type(held) is tuple and all(one is None or (isinstance(one, Tensor) and one.dim() == 4) for one in held):
            return place, held
    return None


def _config_of(module: nn.Module) -> PretrainedConfig:
    config = getattr(module, "config", None)
    if not isinstance(config, PretrainedConfig):
        raise UnsupportedEncoderError(
            f"{type(module).__name__} has no configuration to find its attention function by, so it does not dispatch "
            "through transformers' attention interface: its family wants a subclass of InlineAttention (inline=...)."
        )
    return config


@contextmanager
def observe_attention(encoder: nn.Module, observers: Sequence[Observer]) -> Iterator[None]:
    """Show observers, one a layer, the matrices (B, H, T, T) and mask (B, T) of an encoder's own dynamic attention."""
    with replace_mixing(encoder, [_observed(observer) for observer in observers]):
        yield


@contextmanager
def dynamic_attention_of(encoder: nn.Module | SupportedEncoder) -> Iterator[None]:
    """Let an encoder, swapped or not, mix with all heads dynamic, in this thread."""
    found = SupportedEncoder.find(encoder)
    dynamic = RowMixing(lambda attention, value: attention.mix(value), reads_slots=True)
    with replace_mixing(found, [dynamic] * found.num_layers):
        yield


def _observed(observer: Observer) -> Mixing:
    def mix(attention: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        mixed = apply_attention(attention, value)
        observer(attention, mask)  # last, because it may overwrite the matrices
        return mixed

    return mix


@contextmanager
def replace_mixing(
    encoder: nn.Module | SupportedEncoder, mixings: Sequence[Mixing | RowMixing]
) -> Iterator[SupportedEncoder]:
    """Mix the values of an encoder, swapped or not, by functions of its dynamic attention as it was pretrained.

    It is yielded with opened self-attention. Forwards of other threads are not affected, but for a compiled encoder.

    Args:
        encoder: The encoder, with or without a task head.
        mixings: One a layer; each gets the attention matrices (B, H, T, T), the values (B, H, T, h) and the mask
            (B, T) or None of its layer, and returns the mixed values (B, T, H, h). A
            :class:`~papa_lightning.attention.RowMixing` gets the matrices in pieces of some rows.

    Raises:
        PapaError: When the encoder is observed already, by this thread or another.
    """
    found = SupportedEncoder.find(encoder)
    with _WATCHING:
        attached = attach(found)
        if any(layer_of(module).mixings for module in attached.modules):
            raise PapaError(
                "the encoder is calibrated or observed already, by this thread or another: wait until that has ended, "
                "or work on a copy (copy.deepcopy) of the encoder."
            )
        held: dict[nn.Module, list[Mixing | RowMixing]] = {module: [] for module in attached.modules}
        for module, mixing in zip(attached.modules, mixings, strict=True):
            held[module].append(mixing)
        for module, own in held.items():
            layer_of(module).watcher = threading.get_ident()  # first, because of the forwards of other threads
            layer_of(module).mixings = own
            for mixer in mixers_of(module):
                mixer.heads.suspended = True
    try:
        yield attached
    finally:
        with _WATCHING:
            for module in held:
                layer_of(module).mixings = []
                for mixer in mixers_of(module):
                    mixer.heads.suspended = False
            if not any(mixers_of(module) for module in held):
                detach(attached)


#: Serialises threads that begin or end to observe an encoder.
_WATCHING = threading.Lock()
