"""The class that modules.json of an exported folder names; the only module here that needs sentence-transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from papa_lightning.encoders import SupportedEncoder, is_calibrated
from papa_lightning.errors import ExportError
from papa_lightning.export.facts import CONFIG, FACTS, WEIGHTS
from papa_lightning.export.folder import write_encoder
from papa_lightning.export.load import load_exported_encoder

try:
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
except ImportError:  # before 5.4
    from sentence_transformers.models import Normalize, Pooling, Transformer  # type: ignore[no-redef]

__all__ = ["ExportedTransformer", "Normalize", "Pooling"]

#: Arguments of sentence-transformers that say where files are.
_PLACES = ("subfolder", "token", "cache_dir", "revision", "local_files_only")
#: The others that may be given: those of the dtype, and one that changes nothing, because no code is loaded.
_KNOWN = {*_PLACES, "dtype", "torch_dtype", "trust_remote_code"}


class ExportedTransformer(Transformer):
    """The module Transformer of sentence-transformers, around an exported encoder; its arguments are the same."""

    # sentence-transformers has no public way to say how a model is loaded: _load_model is a method of its own (5.2 to
    # 6.2), and __init__ sees whether it was called.
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not is_calibrated(self.auto_model):
            raise ExportError(
                "this version of sentence-transformers loads models in a way that papa_lightning does not know: use "
                "load_exported_encoder, or an earlier version of sentence-transformers."
            )

    def _load_model(self, model_name_or_path: str, *_: Any, **options: Any) -> PreTrainedModel:
        if self.backend != "torch":
            raise ExportError(
                f"backend is {self.backend!r}, but an exported encoder is one of torch: leave backend out."
            )
        if unknown := sorted(options.keys() - _KNOWN):
            raise ExportError(
                f"model_kwargs has {unknown[0]!r}, which an exported encoder does not take: leave it out; dtype is "
                "taken, and device as an argument of SentenceTransformer."
            )
        encoder = load_exported_encoder(_folder_of(model_name_or_path, options))
        dtype = options.get("dtype", options.get("torch_dtype"))
        if dtype not in (None, "auto"):
            encoder = encoder.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        if not isinstance(getattr(Transformer, "auto_model", None), property):  # before 5.4
            self.auto_model = encoder  # type: ignore[misc]
        return encoder

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Save the module; config.json and weights are those of an export."""
        super().save(output_path, *args, **kwargs)
        write_encoder(SupportedEncoder.find(self.auto_model), Path(output_path))


def _folder_of(name: str, options: Mapping[str, Any]) -> Path:
    """The folder of a model, which is in the cache of the hub where the name is one of those."""
    if (folder := Path(name, options.get("subfolder") or "")).is_dir():
        return folder
    where = {key: options[key] for key in _PLACES if key in options}
    return [Path(str(cached_file(name, file, **where))) for file in (FACTS, WEIGHTS, CONFIG)][-1].parent
