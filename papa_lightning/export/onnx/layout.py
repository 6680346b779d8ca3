"""Shapes and layouts of a graph: shapes as constants, one slice for two, no transposes that undo each other."""

from typing import Any, cast

import onnx_ir as ir

from papa_lightning.export.onnx.editing import insert, numbers, producer, replace, sizes, store_numbers


def simplify_layout(graph: ir.Graph) -> None:
    """Leave out what only moves sizes and axes, wherever the sizes are known."""
    simple = {"Reshape": _reshape, "Transpose": _transpose, "Slice": _slice, "MatMul": _product}
    for node in list(graph):
        if node.graph is not None and not node.domain and node.op_type in simple:
            simple[node.op_type](node)


def _reshape(node: ir.Node) -> None:
    """A reshape by constants, of the tensor before any other reshape; none where nothing changes."""
    data, wanted = node.inputs[0], sizes(node.outputs[0])
    while (before := producer(data, "Reshape")) is not None and sizes(before.inputs[0]) is not None:
        data = before.inputs[0]
    given = sizes(data)
    if given is None or wanted is None or 0 in wanted:
        return
    assert data is not None
    if given == wanted and data is not node.inputs[0]:
        replace(node, data)
        return
    # 0: the size that the input has in this place, -1: whatever is left.
    found = [
        size if isinstance(size, int) else 0 if place < len(given) and given[place] == size else -1
        for place, size in enumerate(wanted)
    ]
    if found.count(-1) <= 1:
        replace(node, insert(node, "Reshape", [data, store_numbers(cast(ir.Graph, node.graph), found)], wanted))


def _transpose(node: ir.Node) -> None:
    """One transpose for two, or none."""
    before = producer(node.inputs[0], "Transpose")
    wanted = sizes(node.outputs[0])
    if before is None or wanted is None:
        return
    order = [axes_of(before)[axis] for axis in axes_of(node)]
    data = cast(ir.Value, before.inputs[0])
    if order == sorted(order):
        replace(node, data)
    else:
        replace(node, insert(node, "Transpose", [data], wanted, perm=order))


def _slice(node: ir.Node) -> None:
    """One slice from the beginning for two along different axes."""
    before, wanted = producer(node.inputs[0], "Slice"), sizes(node.outputs[0])
    if before is None or wanted is None:
        return
    known = [_start_axis_step(one) for one in (before, node)]
    if None in known:
        return
    graph, ends = cast(ir.Graph, node.graph), [cast(ir.Value, one.inputs[2]) for one in (before, node)]
    starts, axes, steps = ([int(one[place]) for one in cast(Any, known)] for place in range(3))
    if axes[0] == axes[1]:
        return
    joined = insert(node, "Concat", ends, [2], axis=0)
    given = [store_numbers(graph, starts), joined, store_numbers(graph, axes), store_numbers(graph, steps)]
    replace(node, insert(node, "Slice", [cast(ir.Value, before.inputs[0]), *given], wanted))


def _product(node: ir.Node) -> None:
    """A product without copies of one factor for each matrix of the other."""
    factors = [cast(ir.Value, one) for one in node.inputs]
    expanded = producer(factors[1], "Expand")
    shapes = [sizes(one) for one in (*factors, node.outputs[0], expanded.inputs[0] if expanded else None)]
    if expanded is None or None in shapes:
        return
    left, right, wanted, alone = cast("list[list[Any]]", shapes)
    if len(left) == len(right) == len(wanted) and left[:-2] == wanted[:-2] and alone[-2:] == right[-2:]:
        replace(node, insert(node, "MatMul", [factors[0], cast(ir.Value, expanded.inputs[0])], wanted))


def axes_of(node: ir.Node) -> list[int]:
    """The order of axes of a Transpose."""
    return list(node.attributes["perm"].as_ints())


def _start_axis_step(node: ir.Node) -> list[int] | None:
    """Start, axis and step of a slice of one axis, where they are constants."""
    given = [numbers(node.inputs[place]) if place < len(node.inputs) else None for place in (1, 3, 4)]
    if any(one is None or one.size != 1 for one in given):
        return None
    return [int(cast(Any, one).item()) for one in given]
