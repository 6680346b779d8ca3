"""Dot-product attention in ONNX: the operators that onnxruntime is fastest with, in place of those of torch."""

from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset20
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention

#: Its functions are typed for values of numpy.
op: Any = opset20


def dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Translation of ``torch.nn.functional.scaled_dot_product_attention``.

    A mask is one addition, the same in all layers, of a finite number, so that no row can be NaN: those that see no key
    are averages. Forms of decoders have torch's translation.
    """
    if is_causal or enable_gqa or attn_mask is None or attn_mask.dtype != ir.DataType.BOOL:
        return aten_scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    low = -3e4 if query.dtype == ir.DataType.FLOAT16 else -1e30  # its sum with a score is finite too
    given = (float(query.shape[3]) ** -0.5 if scale is None else scale, 0.0, low)
    factor, zero, lowest = (op.Constant(value=ir.tensor(one, dtype=query.dtype)) for one in given)
    scores = op.MatMul(op.Mul(query, factor), op.Transpose(key, perm=[0, 1, 3, 2]))
    return op.MatMul(op.Softmax(op.Add(scores, op.Where(attn_mask, zero, lowest)), axis=-1), value)


#: Translations of this file, for torch.onnx.export.
TRANSLATIONS = {torch.ops.aten.scaled_dot_product_attention.default: dot_product_attention}
