"""Exported encoders: folders without the query and key weights of constant heads, and graphs for other runtimes.

May import everything up to calibration and tasks. A file of the folder is added in folder.py and load.py, another
format of graphs in a file or room of its own, from ``parts`` of graphs.py; aot.py compiles graphs. A folder for another
library is a file of its own, such as sentence_folder.py.
"""

from papa_lightning.export.aot import export_aot
from papa_lightning.export.folder import export_encoder
from papa_lightning.export.graphs import export_program
from papa_lightning.export.load import load_exported_encoder
from papa_lightning.export.onnx.write import export_onnx
from papa_lightning.export.sentence_folder import export_sentence_transformer, load_sentence_transformer

__all__ = [
    "export_aot",
    "export_encoder",
    "export_onnx",
    "export_program",
    "export_sentence_transformer",
    "load_exported_encoder",
    "load_sentence_transformer",
]
