"""Reading and replacing the nodes of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import onnx_ir as ir


def numbers(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The numbers of a constant or a weight; None where they are computed."""
    held = None if value is None else ir.convenience.get_const_tensor(value)
    return None if held is None else held.numpy()


def producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node of a kind that a value comes from, or None."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind and not node.domain else None


def sizes(value: ir.Value | None) -> list[Any] | None:
    """The sizes of a value, each a number or a symbol with a name; None where one of them is not known."""
    found = None if value is None or value.shape is None else list(value.shape)
    if found is None or any(isinstance(size, ir.SymbolicDim) and size.value is None for size in found):
        return None  # two symbols without a name are equal, and may be different sizes
    return found


def store(graph: ir.Graph, name: str, held: np.ndarray[Any, Any]) -> ir.Value:
    """A weight of the graph with this name, which is the same wherever the name is."""
    if name not in graph.initializers:
        tensor = ir.tensor(held, name=name)
        value = ir.Value(name=name, shape=ir.Shape(held.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]


def store_numbers(graph: ir.Graph, found: Sequence[int]) -> ir.Value:
    """Whole numbers, as of sizes and axes, as a value of the graph."""
    return store(graph, "numbers_" + "_".join(map(str, found)), np.array(found, dtype=np.int64))


def insert(
    before: ir.Node, kind: str, inputs: Sequence[ir.Value], shape: Sequence[Any], dtype: Any = None, **attributes: Any
) -> ir.Value:
    """The output of a new node, whose sizes are given; its dtype is that of its first input, or given."""
    dtype = inputs[0].dtype if dtype is None else dtype
    output = ir.Value(shape=ir.Shape(shape), type=ir.TensorType(cast(ir.DataType, dtype)))
    node = ir.node(kind, inputs, attributes=attributes, outputs=[output])
    cast(ir.Graph, before.graph).insert_before(before, node)
    return output


def replace(node: ir.Node, value: ir.Value) -> None:
    """Put a value in the place of the output of a node, which is removed."""
    old = node.outputs[0]
    graph = cast(ir.Graph, node.graph)
    for place, output in enumerate(graph.outputs):
        if output is old:  # outputs keep their names
            value.name, old.name = old.name, None
            graph.outputs[place] = value
    ir.convenience.replace_all_uses_with(old, value)
    graph.remove(node, safe=True)
