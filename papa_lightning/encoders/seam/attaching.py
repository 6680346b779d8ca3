"""Opening the self-attention of an encoder for observers and mixers, and closing it again."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from papa_lightning.attention import RowMixing
from papa_lightning.attention.functional import apply_attention
from papa_lightning.encoders.families.albert import SwappedAlbertAttention, number_layers, stop_numbering
from papa_lightning.encoders.finding import attention_modules, family_of, find_encoder
from papa_lightning.encoders.seam.batch import ReadBatch
from papa_lightning.encoders.seam.inline import InlineAttention
from papa_lightning.encoders.seam.interface import check_implementation, papa_config, wants_weights
from papa_lightning.encoders.seam.layer import (
    Mixing,
    Observer,
    TouchedLayer,
    cache_error,
    gives_matrices,
    is_touched,
    layer_of,
    mixers_of,
    remove_hooks,
    touch,
    untouch,
)
from papa_lightning.errors import PapaError, UnsupportedEncoderError


def attach(encoder: PreTrainedModel) -> list[nn.Module]:
    """Open the self-attention of an encoder; idempotent.

    Args:
        encoder: The bare encoder.

    Returns:
        The modules that stand in it from now on, one a layer in the order in which the layers run.

    Raises:
        UnsupportedEncoderError: When a module cannot be opened; the encoder is unchanged then.
    """
    modules = attention_modules(encoder)
    if is_touched(modules[0]):
        return modules
    family = family_of(encoder)
    for module in modules:
        if family.inline is not None:
            family.inline.check(module)
        else:
            check_implementation(_config_of(module))
    paths = {module: path for path, module in encoder.named_modules()}
    for module in dict.fromkeys(modules):
        layer = TouchedLayer(family.reach(module), family.slot_rule(encoder.config))
        if family.inline is None:
            _dispatch(module, layer)
        else:
            layer.module = module
            module = family.inline.adopt(module)
            touch(module, layer)
            encoder.set_submodule(paths[layer.module], module)
    if family.inline is SwappedAlbertAttention:
        number_layers(encoder)
    encoder.register_forward_pre_hook(refuse_cache, with_kwargs=True)
    encoder.register_forward_pre_hook(ReadBatch.of(encoder), with_kwargs=True)
    if _keeps_requests(modules[0]):
        encoder.register_forward_pre_hook(pass_request_on, with_kwargs=True)
    encoder.register_forward_hook(align_attentions)
    return attention_modules(encoder)


def refuse_cache(encoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
    """Forward pre-hook of an attached encoder: refuse keys of earlier tokens before they meet keys of fewer heads.

    Here and below there are no kwargs where another thread attaches or detaches at this moment, for torch notes apart
    from a hook that it takes them. The forward is then one of an encoder that is not attached.

    Raises:
        PapaError: When the cache is not empty and a layer differs from the original.
    """
    cache = (kwargs or {}).get("past_key_values")
    if cache is None or not hasattr(cache, "get_seq_length") or not cache.get_seq_length():
        return
    if any(isinstance(hook, ReadBatch) and hook.differs for hook in encoder._forward_pre_hooks.values()):
        raise cache_error(f"past_key_values holds {cache.get_seq_length()} tokens")


def _keeps_requests(module: nn.Module) -> bool:
    """Whether an encoder does not hand on to its attention interface that matrices are asked for: GPT-2 does not."""
    own = not isinstance(module, InlineAttention)
    return own and "output_attentions" in inspect.signature(type(module).forward).parameters


def pass_request_on(
    encoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook of an encoder that keeps it to itself: let the layers know that matrices are asked for."""
    return None if kwargs is None else (args, {**kwargs, "papa_weights": wants_weights(encoder.config, kwargs)})


def align_attentions(encoder: PreTrainedModel, args: tuple[Any, ...], output: Any) -> Any:
    """Forward hook of an attached encoder: None in the place of the matrices of layers that have none.

    transformers leaves them out, so that what follows would stand in the place of other layers.
    """
    modules = attention_modules(encoder)
    gaps = [not gives_matrices(module, turn) for module, turn in _turns(modules)]
    found = _attentions(output)
    if not any(gaps) or found is None:
        return None
    place, held = found
    if len(held) == gaps.count(False):
        rest = iter(held)
        held = tuple(None if gap else next(rest) for gap in gaps)
    _tell_of_gaps(modules, gaps)
    if isinstance(output, tuple):
        return (*output[:place], held, *output[place + 1 :])
    output[place] = held
    return output


def _turns(modules: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, int]]:
    """Each module with the number of its layers before this one."""
    for layer, module in enumerate(modules):
        yield module, modules[:layer].count(module)


def _attentions(output: Any) -> tuple[Any, tuple[Tensor | None, ...]] | None:
    """The matrices in what an encoder returned, and under which key or number they are there."""
    if isinstance(output, ModelOutput):
        held = output.get("attentions")
        return None if held is None else ("attentions", held)
    for place, held in enumerate(output if isinstance(output, tuple) else ()):
        if type(held) is tuple and all(one is None or (isinstance(one, Tensor) and one.dim() == 4) for one in held):
            return place, held
    return None


def _tell_of_gaps(modules: Sequence[nn.Module], gaps: Sequence[bool]) -> None:
    layer = layer_of(modules[0])
    if layer.told:
        return
    layer.told = True
    without = [number for number, gap in enumerate(gaps) if gap]
    kinds = sorted(
        {mixers_of(module)[turn].kind for (module, turn), gap in zip(_turns(modules), gaps, strict=True) if gap}
    )
    warnings.warn(
        f"attentions has None for layers {without}: kind {', '.join(map(repr, kinds))} makes no attention matrices. "
        "(Reported once.)",
        stacklevel=2,
    )


def _dispatch(module: nn.Module, layer: TouchedLayer) -> None:
    layer.config = _config_of(module)
    touch(module, layer)  # first, because other threads may be on their way through the module
    module.config = papa_config(layer.config)  # type: ignore[assignment]


def _config_of(module: nn.Module) -> PretrainedConfig:
    config = getattr(module, "config", None)
    if not isinstance(config, PretrainedConfig):
        raise UnsupportedEncoderError(
            f"{type(module).__name__} has no configuration to find its attention function by, so it does not dispatch "
            "through transformers' attention interface: its family wants a subclass of InlineAttention (inline=...)."
        )
    return config


def _is_ours(hook: Any) -> bool:
    return hook in (refuse_cache, pass_request_on, align_attentions) or isinstance(hook, ReadBatch)


def detach(encoder: PreTrainedModel) -> None:
    """Undo :func:`attach`."""
    family, paths = family_of(encoder), {module: path for path, module in encoder.named_modules()}
    remove_hooks(encoder, _is_ours)
    if family.inline is SwappedAlbertAttention:
        stop_numbering(encoder)
    for module in dict.fromkeys(attention_modules(encoder)):
        if not is_touched(module):
            continue
        layer = layer_of(module)
        if family.inline is not None and layer.module is not None:
            untouch(module)
            family.inline.release(module, layer.module)
            encoder.set_submodule(paths[module], layer.module)
        else:
            module.config = layer.config  # type: ignore[assignment]
            untouch(module)


@contextmanager
def observe_attention(encoder: nn.Module, observers: Sequence[Observer]) -> Iterator[None]:
    """Let observers see the dynamic attention of an encoder, swapped or not, as it was pretrained.

    Args:
        encoder: The encoder, with or without a task head.
        observers: One a layer; each gets the attention matrices (B, H, T, T) and the mask (B, T) of its layer.
    """
    with replace_mixing(encoder, [_observed(observer) for observer in observers]):
        yield


def _observed(observer: Observer) -> Mixing:
    def mix(attention: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        mixed = apply_attention(attention, value)
        observer(attention, mask)  # last, because it may overwrite the matrices
        return mixed

    return mix


@contextmanager
def replace_mixing(encoder: nn.Module, mixings: Sequence[Mixing | RowMixing]) -> Iterator[None]:
    """Mix the values of an encoder, swapped or not, by functions of its dynamic attention as it was pretrained.

    It holds for the thread that asks for it; forwards of other threads go on as if nobody looked. A graph that
    ``torch.compile`` made cannot tell threads apart: a compiled encoder is to be used by one thread meanwhile.

    Args:
        encoder: The encoder, with or without a task head.
        mixings: One a layer; each gets the attention matrices (B, H, T, T), the values (B, H, T, h) and the mask
            (B, T) or None of its layer, and returns the mixed values (B, T, H, h). A
            :class:`~papa_lightning.attention.RowMixing` gets the matrices in pieces of some rows.

    Raises:
        PapaError: When the encoder is observed already, by this thread or another.
    """
    base = find_encoder(encoder)
    with _WATCHING:
        modules = attach(base)
        if any(layer_of(module).mixings for module in modules):
            raise PapaError(
                "the encoder is calibrated or observed already, by this thread or another: wait until that has ended, "
                "or work on a copy (copy.deepcopy) of the encoder."
            )
        held: dict[nn.Module, list[Mixing | RowMixing]] = {module: [] for module in modules}
        for module, mixing in zip(modules, mixings, strict=True):
            held[module].append(mixing)
        for module, own in held.items():
            layer_of(module).watch(own)
            _suspend(module, True)
    try:
        yield
    finally:
        with _WATCHING:
            for module in held:
                layer_of(module).mixings = []
                _suspend(module, False)
            if not any(mixers_of(module) for module in held):
                detach(base)


#: Two threads that begin or end to look at one encoder do so one after the other.
_WATCHING = threading.Lock()


def _suspend(module: nn.Module, suspended: bool) -> None:
    for mixer in mixers_of(module):
        mixer.heads.suspended = suspended
