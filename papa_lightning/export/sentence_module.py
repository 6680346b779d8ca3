"""The class that modules.json of an exported folder names; the only module here that needs sentence-transformers."""

from typing import Any

from papa_lightning.export.build import absent_parts

try:
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
except ImportError:  # before 5.4
    from sentence_transformers.models import Normalize, Pooling, Transformer  # type: ignore[no-redef]

__all__ = ["ExportedTransformer", "Normalize", "Pooling"]


class ExportedTransformer(Transformer):
    """The module Transformer of sentence-transformers, around an exported encoder; its arguments are the same.

    sentence-transformers imports the class that modules.json names, and papa_lightning with it, so that transformers
    knows the note in config.json by which it swaps the encoder. It is saved and loaded again as other modules are.
    """

    def get_config_dict(self) -> dict[str, Any]:
        """Arguments for the next time that it is loaded, without the parts that the encoder lacks."""
        return {**super().get_config_dict(), "model_args": absent_parts(self.auto_model)}
