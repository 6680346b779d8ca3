"""A graph of torch's exporter made faster in onnxruntime, with the same outputs up to rounding."""

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from papa_lightning.export.onnx.editing import insert, producer, replace, sizes
from papa_lightning.export.onnx.heads import move_heads
from papa_lightning.export.onnx.layout import simplify_layout

#: Number of entries above which torch's exporter leaves weights that are made of others to the runtime.
_ANY = 2**62


def rewrite(model: ir.Model) -> None:
    """Rewrite a model in place."""
    optimizer.fold_constants(model, onnx_shape_inference=False, input_size_limit=_ANY, output_size_limit=_ANY)
    move_heads(model.graph)
    for _ in range(2):  # slices and reshapes that transposes stood between
        simplify_layout(model.graph)
        common.CommonSubexpressionEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
    keep_sums(model.graph)
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)  # lines of code, with paths of the machine
    model.metadata_props["onnx.quant.pre_process"] = "onnxruntime.quant"  # else its quantization warns


def keep_sums(graph: ir.Graph) -> None:
    """Write the sum before a layer norm as Sum, not Add, which onnxruntime would make part of the norm.

    Its kernel for both (SkipLayerNormalization) takes several times as long on a CPU as the two one after the other.
    """
    for node in list(graph):
        added = producer(node.inputs[0], "Add") if node.op_type == "LayerNormalization" else None
        shape = None if added is None else sizes(added.outputs[0])
        if added is not None and shape is not None:
            replace(added, insert(added, "Sum", [one for one in added.inputs if one is not None], shape))
