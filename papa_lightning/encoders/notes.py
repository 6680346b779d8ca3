"""The note in config.json that an encoder is swapped, without which nobody who reads the folder would know.

It stands where transformers looks for a quantisation, because that is its way to change a model before its weights are
read. Nothing is quantised: a configuration in memory never has the note, and another encoder that was built from the
same configuration object has no part in it.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from papa_lightning.attention import TokenMixer
from papa_lightning.errors import PapaError


class LostSwapWarning(UserWarning):
    """A model was saved whose swapped encoder cannot be found again."""


_METHOD = "papa_lightning"


@register_quantization_config(_METHOD)
class SwapNote(QuantizationConfigMixin):
    """What stands in each layer of a swapped encoder.

    Args:
        layers: Kind, heads and options of each layer, in layer order.
        max_length: T.
        trimmed: Whether the query and key weights of constant heads are gone, as an export leaves them out.
        others: The rest of the entry in config.json.

    Raises:
        PapaError: When the entry is damaged.
    """

    #: What transformers knows the note by, and names in the warning that it gives where papa_lightning is not imported.
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
    def of(cls, mixers: Sequence[TokenMixer], trimmed: bool) -> SwapNote:
        """The note of an encoder.

        Args:
            mixers: One a layer.
            trimmed: As in the class.
        """
        layers = [{"kind": one.kind, "heads": list(one.constant_heads), "options": one.options()} for one in mixers]
        return cls(layers, mixers[0].max_length, trimmed)

    def facts(self) -> tuple[Any, ...]:
        """What must be so in the weights, too."""
        return self.layers, self.max_length, self.trimmed


def is_noted(folder: str | Path) -> bool:
    """Whether the config.json of a folder notes that the encoder is swapped."""
    try:
        note = json.loads((Path(folder).expanduser() / "config.json").read_bytes())["quantization_config"]
        return bool(note["quant_method"] == _METHOD)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def saving_model() -> tuple[PreTrainedModel, str] | None:
    """The model whose ``save_pretrained`` is running, and the folder, while its state dict is collected.

    The encoder may be a part of it that knows nothing of the whole, and save_pretrained calls nobody else; so the frame
    is looked for.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is PreTrainedModel.save_pretrained.__code__:
            names = frame.f_locals
            # Of adapters alone, and on other ranks than the first, no config.json is written.
            if names.get("_hf_peft_config_loaded", False) or not names.get("save_on_this_rank", True):
                return None
            return names["self"], names["save_directory"]
        frame = frame.f_back
    return None


def write_note(model: PreTrainedModel, folder: str, note: SwapNote) -> None:
    """Write the config.json of a model that is being saved once more, with the note."""
    noted = copy.copy(model.config)
    noted.quantization_config = note
    noted.save_pretrained(folder)
