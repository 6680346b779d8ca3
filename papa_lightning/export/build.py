"""Building an encoder from its configuration and a state dict, without weights that are thrown away."""

import inspect
import sys
from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel

from papa_lightning.errors import ExportError

#: Argument of a constructor that adds a part -> beginning of the keys of the part.
_OPTIONAL_PARTS = {"add_pooling_layer": "pooler.", "use_mask_token": "embeddings.mask_token"}


def build_encoder(config: PretrainedConfig, name: str, keys: Collection[str]) -> PreTrainedModel:
    """An encoder of this class and configuration whose weights have no memory yet; ``keys`` tell its optional parts."""
    usual: Any = MODEL_MAPPING.get(type(config), None)
    usual = usual[0] if isinstance(usual, (tuple, list)) else usual
    found = getattr(sys.modules.get(getattr(usual, "__module__", "")), name, None)
    if not (inspect.isclass(found) and issubclass(found, PreTrainedModel) and name == found.__name__):
        raise ExportError(
            f"encoder is of class {name!r}, which transformers does not have for the model type "
            f"{config.model_type!r}: export an encoder of transformers or of papa_lightning.from_scratch, without "
            "changes of your own."
        )
    known = inspect.signature(found).parameters
    parts = {part: any(key.startswith(start) for key in keys) for part, start in _OPTIONAL_PARTS.items()}
    with _WeightsWithoutMemory():
        encoder: PreTrainedModel = found(config, **{part: wanted for part, wanted in parts.items() if part in known})
    encoder.train(False)
    return encoder


class _WeightsWithoutMemory(TorchFunctionMode):
    """Puts the results of torch.empty, with which weights are made, on the meta device; buffers keep their values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty:
            given["device"] = "meta"
        return func(*args, **given)


def transient_buffers(encoder: nn.Module) -> dict[str, Tensor]:
    """Floating point buffers outside the state dict (rotary frequencies), whose dtype is another after a cast."""
    saved = encoder.state_dict().keys()
    return {name: one for name, one in encoder.named_buffers() if name not in saved and one.is_floating_point()}


def fill_encoder(encoder: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
    """Give an encoder of :func:`build_encoder`, swapped and trimmed, its weights and :func:`transient_buffers`."""
    given = dict(state)
    for name in transient_buffers(encoder):
        if name in given:
            owner, _, leaf = name.rpartition(".")
            encoder.get_submodule(owner)._buffers[leaf] = given.pop(name)
    dtype = next((held.dtype for held in given.values() if held.is_floating_point()), torch.float32)
    shared: dict[int, nn.Parameter] = {}
    for name, held in encoder.state_dict(keep_vars=True).items():
        if name not in given and not held.numel():
            given[name] = torch.empty(held.shape, dtype=dtype)
        if id(held) in shared:  # tied weights stay one
            given[name] = shared[id(held)]
        elif name in given and isinstance(held, nn.Parameter):
            given[name] = shared[id(held)] = nn.Parameter(given[name], requires_grad=held.requires_grad)
    report = encoder.load_state_dict(given, strict=False, assign=True)
    absent = [*report.missing_keys, *report.unexpected_keys]
    tensors = [*encoder.named_parameters(), *encoder.named_buffers()]
    absent += [name for name, held in tensors if held.is_meta]
    if absent:
        raise ExportError(
            f"the encoder and its configuration do not belong together: {cast(str, min(absent))!r} is in one of them "
            "only. Layers that were added, removed or replaced cannot be exported; adapters can be merged first."
        )


def count_parameters(encoder: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, int]:
    """Numbers of entries: of the encoder without constants, of its part "left_out", "added" constants, and "saved"."""
    tensors = [*encoder.named_parameters(), *((name, one) for name, one in encoder.named_buffers() if ".papa." in name)]
    names = {name for name, _ in tensors}
    saved = sum(held.numel() for name, held in state.items() if name in names)
    added = sum(held.numel() for name, held in state.items() if name in names and ".papa." in name)
    config: PretrainedConfig = encoder.config
    whole = sum(held.numel() for held in build_encoder(config, type(encoder).__name__, state.keys()).parameters())
    return {"whole": whole, "left_out": whole - saved + added, "added": added, "saved": saved}
