"""The note in config.json, a quantisation, by which ``from_pretrained`` swaps an encoder again."""

from __future__ import annotations

import copy
import inspect
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from papa_lightning.encoders.finding import SupportedEncoder, is_supported
from papa_lightning.encoders.projections.trimmed import is_trimmed
from papa_lightning.errors import PapaError


class LostSwapWarning(UserWarning):
    """A model was saved whose swapped encoder will not be found when it is loaded."""


_METHOD = "papa_lightning"


@register_quantization_config(_METHOD)
class SwapNote(QuantizationConfigMixin):
    """Kinds, heads and options of the layers of a swapped encoder; a damaged note is a PapaError.

    Args:
        layers: Kind, heads and options of each layer, in layer order.
        max_length: The number of slots T.
        trimmed: Whether the query and key weights of constant heads are gone, as in an export.
        others: The rest of the entry in config.json.
    """

    #: Name of the method, which transformers shows in a warning where papa_lightning is not imported.
    METHOD: ClassVar[str] = _METHOD

    def __init__(self, layers: Any = None, max_length: Any = None, trimmed: Any = False, **others: Any) -> None:
        if not (isinstance(layers, list) and isinstance(max_length, int) and isinstance(trimmed, bool)):
            raise PapaError(
                "quantization_config in config.json is of papa_lightning, but lacks layers, max_length or trimmed: it "
                "is damaged, or of another version. Save the model again."
            )
        self.quant_method: Any = self.METHOD
        self.read_with = "import papa_lightning before from_pretrained; without it the constants are lost"
        self.max_length, self.trimmed, self.layers = max_length, trimmed, layers

    @classmethod
    def of(cls, found: SupportedEncoder) -> SwapNote:
        """The note of a swapped encoder."""
        mixers = found.mixers
        layers = [{"kind": one.kind, "heads": list(one.constant_heads), "options": one.options()} for one in mixers]
        return cls(layers, mixers[0].max_length, is_trimmed(found.model))

    def facts(self) -> tuple[Any, ...]:
        """The entries that must agree with the weights."""
        return self.layers, self.max_length, self.trimmed


def is_noted(folder: str | Path) -> bool:
    """Whether the config.json of a folder notes that the encoder is swapped."""
    try:
        note = json.loads((Path(folder).expanduser() / "config.json").read_bytes())["quantization_config"]
        return bool(note["quant_method"] == _METHOD)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def note_when_saved(encoder: nn.Module, base: PreTrainedModel) -> None:
    """Let the models with a swapped encoder (base) save the note: those known by :func:`_save`, others by a hook."""
    base.register_state_dict_post_hook(_note_running_save)  # type: ignore[no-untyped-call]
    for whole in _models_with(base, encoder):
        whole.save_pretrained = partial(_save, whole)  # type: ignore[method-assign]


def stop_noting(encoder: nn.Module, base: PreTrainedModel) -> None:
    """Undo :func:`note_when_saved`."""
    for key in [key for key, hook in base._state_dict_hooks.items() if hook is _note_running_save]:
        del base._state_dict_hooks[key]
    for whole in _models_with(base, encoder):
        vars(whole).pop("save_pretrained", None)


def _models_with(base: PreTrainedModel, module: nn.Module) -> list[PreTrainedModel]:
    """The models in a module that an encoder is part of, itself included."""
    models = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    return [model for model in models if any(part is base for part in model.modules())]


def _save(model: PreTrainedModel, save_directory: str, *args: Any, **kwargs: Any) -> None:
    """``save_pretrained`` with the note also when a state dict is passed, for which the hook does not run."""
    type(model).save_pretrained(model, save_directory, *args, **kwargs)
    whole = kwargs.get("is_main_process", True) and not getattr(model, "_hf_peft_config_loaded", False)
    if kwargs.get("state_dict") is not None and whole and is_supported(model):
        found = SupportedEncoder.find(model)
        if found.mixers:
            _write_note(found, model, save_directory)


def _note_running_save(base: PreTrainedModel, *_: Any) -> None:
    """State dict hook of a swapped encoder: write the note if ``save_pretrained`` collects the state dict."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not PreTrainedModel.save_pretrained.__code__:
        frame = frame.f_back
    if frame is None:
        return
    names = frame.f_locals
    # No config.json is written for adapters alone, and on other ranks than the first.
    if names.get("_hf_peft_config_loaded", False) or not names.get("save_on_this_rank", True):
        return
    model, folder = names["self"], names["save_directory"]
    found = SupportedEncoder.find(model) if is_supported(model) else None
    if found is None or found.model is not base:
        warnings.warn(
            f"{type(model).__name__}.save_pretrained cannot note in config.json that a part of it is swapped: "
            f"from_pretrained will give dynamic attention. Save the {type(base).__name__} alone, or use state dicts "
            "and swap_as_saved.",
            LostSwapWarning,
            stacklevel=2,
        )
        return
    _write_note(found, model, folder)


def _write_note(found: SupportedEncoder, model: PreTrainedModel, folder: str) -> None:
    """Write the config.json of a model that is being saved once more, with the note."""
    noted = copy.copy(model.config)
    noted.quantization_config = SwapNote.of(found)
    noted.save_pretrained(folder)
