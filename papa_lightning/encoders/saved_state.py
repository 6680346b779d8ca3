"""Swapping an encoder as it was when its state dict was saved."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer

from papa_lightning.attention import read_extra_state
from papa_lightning.encoders.finding import SupportedEncoder
from papa_lightning.encoders.notes import SwapNote
from papa_lightning.encoders.projections.trimmed import trim
from papa_lightning.encoders.swap import swap_attention
from papa_lightning.errors import PapaError


def swap_as_saved(encoder: nn.Module, state: Mapping[str, Tensor], prefix: str | None = None) -> bool:
    """Swap an encoder to the kinds, heads and options that a state dict was saved with, so that it loads strictly.

    The encoder has no constants afterwards: ``load_state_dict`` brings them. A state dict of a plain encoder changes
    nothing, and returns False.

    Args:
        encoder: A supported encoder, or a module that holds one: in ``on_load_checkpoint`` a LightningModule passes
            itself and ``checkpoint["state_dict"]``, and can then load the checkpoint of a run with a callback.
        state: A state dict that holds the encoder's.
        prefix: Prefix of the keys of the bare encoder in ``state``, e.g. "encoder."; None takes that of ``encoder``.

    Raises:
        UnsupportedEncoderError: For a model that is not a supported encoder.
        PapaError: When the encoder has other layers or heads than the one that was saved.
    """
    found = SupportedEncoder.find(encoder)
    base, modules = found.model, found.modules
    if prefix is None:
        place = next(path for path, module in encoder.named_modules() if module is base)
        prefix = f"{place}." if place else ""
    paths = {module: path for path, module in base.named_modules()}
    layers: list[Mapping[str, Any]] = []
    for layer, module in enumerate(modules):
        added = f"{prefix}{paths[module]}.papa."
        if modules.count(module) > 1:  # it serves several layers
            added += f"{modules[:layer].count(module)}."
        if f"{added}_extra_state" not in state:
            return False
        layers.append(read_extra_state(state[f"{added}_extra_state"]))
    swap_attention(
        encoder,
        [saved["kind"] for saved in layers],
        heads={layer: saved["heads"] for layer, saved in enumerate(layers)},
        max_length=layers[0]["max_length"],
        options=[saved["options"] for saved in layers],
    )
    return True


_ADDED = ".papa."


@register_quantizer(SwapNote.METHOD)
class SwapReader(HfQuantizer):
    """Reader of saved swapped encoders, which transformers makes for a :class:`~papa_lightning.encoders.SwapNote`."""

    quantization_config: SwapNote

    def preprocess_model(self, model: PreTrainedModel, dtype: Any = None, **kwargs: Any) -> None:
        """Before the weights are read: read what the swap added, and trim a trimmed encoder."""
        vars(model.config).pop("quantization_config", None)
        found = SupportedEncoder.find(model)
        noted = len(self.quantization_config.layers)
        if noted != found.num_layers:
            raise PapaError(
                f"config.json notes a swap of {noted} layers, but the model is made with {found.num_layers}: load it "
                "as it was saved, and take layers away after restore_attention(model)."
            )
        self._state = _by_own_names(found, _read_added(kwargs.get("checkpoint_files")))
        self._mixers: dict[nn.Module, nn.Module | None] = {}
        if self.quantization_config.trimmed:
            swap_as_saved(found.model, self._state, prefix="")
            swapped = SupportedEncoder.find(found.model)
            trim(swapped)
            # transformers must not read weights of mixers: their shapes may depend on what is read.
            self._mixers = {module: module._modules.pop("papa") for module in swapped.modules}
        self._frozen = [name for name, one in model.named_parameters() if not one.requires_grad]
        self._ignored = model._keys_to_ignore_on_load_unexpected
        model._keys_to_ignore_on_load_unexpected = {*(self._ignored or ()), re.escape(_ADDED)}

    def postprocess_model(self, model: PreTrainedModel, **kwargs: Any) -> None:
        """Swap the encoder when it has its weights, and remove every trace of this reader."""
        del model.hf_quantizer
        model._keys_to_ignore_on_load_unexpected = self._ignored
        base = SupportedEncoder.find(model).model
        for name in self._frozen:
            model.get_parameter(name).requires_grad_(False)
        for module, mixer in self._mixers.items():
            module._modules["papa"] = mixer
        if not self._mixers:
            swap_as_saved(base, self._state, prefix="")
        cast = {
            name: held.to(base.device, base.dtype) if held.is_floating_point() else held
            for name, held in self._state.items()
        }
        report = base.load_state_dict(cast, strict=False, assign=bool(self._mixers))
        absent = [name for name in report.missing_keys if _ADDED in name]
        note = SwapNote.of(SupportedEncoder.find(base))
        if absent or note.facts() != self.quantization_config.facts():
            raise _not_together(f"{absent[0]} is missing" if absent else "kinds, heads or lengths differ")
        base.train(base.training)

    def is_serializable(self) -> bool:
        """Required by transformers, but unused: the reader is gone after loading."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Required by transformers, but unused likewise."""
        return True


def _read_added(files: Sequence[str] | str | None) -> dict[str, Tensor]:
    """The entries that a swap added to the files of a checkpoint, whole or in shards."""
    added: dict[str, Tensor] = {}
    for file in [files] if isinstance(files, str) else files or ():
        if str(file).endswith(".safetensors"):
            with safe_open(file, framework="pt", device="cpu") as held:
                added |= {name: held.get_tensor(name) for name in held.keys() if _ADDED in name}  # noqa: SIM118
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
            added |= {name: tensor for name, tensor in state.items() if _ADDED in name}
    if not added:
        raise _not_together("the weights have no constants, or were passed as state_dict")
    return added


def _by_own_names(found: SupportedEncoder, added: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the entries of a swap to the names of the bare encoder; names of the file may have another prefix."""
    modules = found.distinct_modules
    owners = sorted({name.partition(_ADDED)[0] for name in added}, key=_numbers_apart)
    if len(owners) != len(modules):
        raise _not_together(f"the weights have constants of {len(owners)} attention modules, the model {len(modules)}")
    paths = {module: path for path, module in found.model.named_modules()}
    places = {owner: paths[module] for owner, module in zip(owners, modules, strict=True)}
    parts = {name: name.partition(_ADDED) for name in added}
    return {f"{places[owner]}{dot}{rest}": added[name] for name, (owner, dot, rest) in parts.items()}


def _numbers_apart(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _not_together(reason: str) -> PapaError:
    return PapaError(
        f"config.json notes that the encoder is swapped, but {reason}: pass a folder that save_pretrained wrote, with "
        "all its files; for other weights take quantization_config out of the configuration."
    )
