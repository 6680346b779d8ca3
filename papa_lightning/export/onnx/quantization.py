"""ONNX files with products of 8-bit integers."""

import importlib.util
from pathlib import Path
from typing import Literal, TypeAlias

from papa_lightning.errors import ExportError

#: How the weights of a graph are quantized.
Quantization: TypeAlias = Literal["int8"]


def check_quantization(quantize: object) -> None:
    """Refuse a quantization that is not known, or whose package is missing."""
    if quantize is None:
        return
    if quantize != "int8":
        raise ExportError(f"quantize is {quantize!r}, but must be 'int8', or None for weights as they are.")
    if importlib.util.find_spec("onnxruntime") is None:
        raise ExportError("quantize is 'int8', but onnxruntime is not installed: pip install onnxruntime.")


def quantize_weights(whole: Path, path: Path, large: bool) -> None:
    """Write an ONNX file with 8-bit weights: dynamic quantization of onnxruntime, a scale for each output channel.

    Activations are quantized while it runs, with a scale for each product. Constants of heads stay as they are.

    Args:
        whole: The file to read.
        path: The file to write.
        large: Whether weights are to be in a second file beside it.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(whole, path, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=large)
