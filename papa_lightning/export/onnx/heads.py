"""Heads that a graph chooses or orders between two products, chosen and ordered in the weights of these instead.

Layers with dynamic and constant heads take the values of either, and put the mixed values of both in the order of the
heads. As the products before and after are with weights, weights with their columns and rows in that order do both.
"""

from typing import Any, cast

import numpy as np
import onnx_ir as ir

from papa_lightning.export.onnx.editing import insert, numbers, producer, replace, sizes, store, store_numbers
from papa_lightning.export.onnx.layout import axes_of


def move_heads(graph: ir.Graph) -> None:
    """Move all choices and orders of heads into weights that can take them."""
    for node in list(graph):
        if node.op_type in ("Gather", "Slice") and not node.domain:
            _choose_before(node)
    for node in list(graph):
        if node.op_type == "MatMul" and not node.domain:
            _order_after(node)


def _choose_before(node: ir.Node) -> None:
    """Compute only the heads that are chosen of a product: W x + b, reshaped to (B, T, H, h) and transposed."""
    chosen, data, orders = _chosen(node), node.inputs[0], []
    if chosen is None:
        return
    axis, heads = chosen
    while (transposed := producer(data, "Transpose")) is not None:
        orders.append(axes_of(transposed))
        axis, data = orders[-1][axis], transposed.inputs[0]
    split, shape = producer(data, "Reshape"), sizes(data)
    if split is None or shape is None or len(shape) != 4 or axis != 2 or not isinstance(shape[3], int):
        return
    added = producer(split.inputs[0], "Add")
    product = producer(split.inputs[0] if added is None else added.inputs[0], "MatMul")
    weight = None if product is None else numbers(product.inputs[1])
    bias = None if added is None else numbers(added.inputs[1])
    if product is None or weight is None or weight.ndim != 2 or weight.shape[1] != shape[2] * shape[3]:
        return
    if added is not None and (bias is None or bias.shape != weight.shape[1:]):
        return
    columns, graph = _places(heads, shape[3]), cast(ir.Graph, node.graph)
    tag = "_heads_" + "_".join(map(str, heads))
    name = f"{cast(ir.Value, product.inputs[1]).name}{tag}"
    width = [*shape[:2], len(columns)]
    value = insert(node, "MatMul", [cast(ir.Value, product.inputs[0]), store(graph, name, weight[:, columns])], width)
    if added is not None and bias is not None:
        name = f"{cast(ir.Value, added.inputs[1]).name}{tag}"
        value = insert(node, "Add", [value, store(graph, name, bias[columns])], width)
    now = [*shape[:2], len(heads), shape[3]]
    value = insert(node, "Reshape", [value, store_numbers(graph, [0, 0, *now[2:]])], now)
    for order in reversed(orders):
        now = [now[place] for place in order]
        value = insert(node, "Transpose", [value], now, perm=order)
    replace(node, value)


def _order_after(node: ir.Node) -> None:
    """Multiply values in the order in which they come, by a weight with its rows in that order."""
    joined = producer(node.inputs[0], "Reshape")
    ordered = None if joined is None else producer(joined.inputs[0], "Gather")
    chosen = None if ordered is None else _chosen(ordered)
    weight, shape = numbers(node.inputs[1]), None if ordered is None else sizes(ordered.outputs[0])
    wanted = sizes(node.outputs[0])
    if joined is None or ordered is None or chosen is None or weight is None or shape is None or wanted is None:
        return
    axis, heads = chosen
    if axis != 2 or len(shape) != 4 or not isinstance(shape[3], int) or weight.shape[0] != shape[2] * shape[3]:
        return
    if sorted(heads) != list(range(shape[2])) or len(wanted) != 3:
        return
    graph, rows = cast(ir.Graph, node.graph), _places(list(np.argsort(heads)), shape[3])
    name = f"{cast(ir.Value, node.inputs[1]).name}_heads_" + "_".join(map(str, heads))
    source = cast(ir.Value, ordered.inputs[0])
    value = insert(node, "Reshape", [source, store_numbers(graph, [0, 0, len(rows)])], [*shape[:2], len(rows)])
    replace(node, insert(node, "MatMul", [value, store(graph, name, weight[rows])], wanted))


def _chosen(node: ir.Node) -> tuple[int, list[int]] | None:
    """Axis and entries that a Gather or a Slice takes, where they are constants."""
    shape = sizes(node.inputs[0])
    if shape is None:
        return None
    if node.op_type == "Gather":
        axis, taken = node.attributes.get_int("axis", 0), numbers(node.inputs[1])
        return None if taken is None or taken.ndim != 1 else (axis % len(shape), [int(one) for one in taken])
    given = [numbers(node.inputs[place]) if place < len(node.inputs) else None for place in range(1, 5)]
    if any(one is None or one.size != 1 for one in given):
        return None
    start, end, axis, step = (int(cast(Any, one).item()) for one in given)
    size = shape[axis]
    return (axis % len(shape), list(range(size))[start:end:step]) if isinstance(size, int) else None


def _places(heads: list[int], width: int) -> list[int]:
    """The places of the channels of heads."""
    return [head * width + channel for head in heads for channel in range(width)]
