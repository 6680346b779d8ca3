"""``papa export``."""

from pathlib import Path
from typing import Any

from papa_lightning.cli.verbs.registry import VERBS
from papa_lightning.text import tell


@VERBS.register("export")
def export(*, output: str, **settings: Any) -> Path:
    """Write an encoder to a folder, without the query and key weights of its constant heads; ONNX on demand.

    Args:
        output: The folder to make.
        settings: Fields of ExportSettings.
    """
    from papa_lightning.export.folder import describe_export
    from papa_lightning.export.source import ExportSettings, export_source

    folder = export_source(ExportSettings(**settings), output)
    tell(describe_export(folder))
    return folder
