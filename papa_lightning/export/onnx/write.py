"""Writing ONNX files."""

import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from papa_lightning.errors import ExportError
from papa_lightning.export.graphs import no_graph, parts, quiet
from papa_lightning.export.onnx.quantization import Quantization, check_quantization, quantize_weights

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

#: The version of ONNX's operators: the first with Gelu; onnxruntime has it since 1.17.
OPSET = 20
#: Bytes of weights above which they are in a second file: one file of ONNX holds less than 2 GiB.
ONE_FILE = 1_900_000_000


def export_onnx(
    encoder: nn.Module, path: str | Path, position_ids: bool = False, quantize: Quantization | None = None
) -> Path:
    """Write a swapped encoder as an ONNX file, for any batch size and any length up to that of its constants.

    Inputs and output are those of :func:`export_program`, with the axes "batch" and "length"; a length of 1 is served
    too. An exported encoder (:func:`load_exported_encoder`) gives the smallest file. Weights are in the dtype of the
    encoder.

    Args:
        encoder: A swapped and calibrated encoder, in evaluation mode.
        path: The file. Weights of more than 1.9 GB are in a second file beside it, ``path`` with ``.data`` at its end.
        position_ids: Whether the graph has the input position_ids too, see :func:`export_program`.
        quantize: "int8" for products of 8-bit integers, with weights quantized by channel and activations as they come;
            None for the numbers of the encoder.

    Raises:
        ExportError: As :func:`export_program`, for another ``quantize``, and when packages are missing.
    """
    check_onnx()
    check_quantization(quantize)
    target = Path(path)
    program = _program(encoder, position_ids)
    large = sum(held.const_value.nbytes for held in program.model.graph.initializers.values() if held.const_value)
    if quantize is None:
        program.save(target, external_data=large > ONE_FILE)
        return target
    if {held.dtype.name for held in program.model.graph.outputs if held.dtype is not None} != {"FLOAT"}:
        raise ExportError("quantize is 'int8', which is made of an encoder in float32: call encoder.float() first.")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".papa-") as folder, quiet():
        whole = Path(folder) / target.name
        program.save(whole, external_data=large > ONE_FILE)
        quantize_weights(whole, target, large > ONE_FILE)
    return target


def _program(encoder: nn.Module, position_ids: bool) -> "ONNXProgram":
    from papa_lightning.export.onnx.attention import TRANSLATIONS
    from papa_lightning.export.onnx.rewriting import rewrite

    module, inputs, sizes = parts(encoder, position_ids)
    names = {name: {axis: "length" if axis else "batch" for axis in sizes[name]} for name in inputs}
    options: Any = {"input_names": list(inputs), "output_names": ["last_hidden_state"], "verbose": False}
    options |= {"opset_version": OPSET, "custom_translation_table": TRANSLATIONS}
    with quiet():
        try:
            program = torch.onnx.export(module, (), kwargs=inputs, dynamo=True, dynamic_shapes=names, **options)
        except Exception as error:  # torch raises anything
            raise no_graph(error) from error
        assert program is not None
        rewrite(program.model)
    return program


def check_onnx() -> None:
    """Refuse to begin without the packages that ONNX files are written with."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"onnx is asked for, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: "
            'pip install "papa-lightning[onnx]".'
        )
