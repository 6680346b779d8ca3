"""Choosing heads and putting them back."""

import itertools
import random

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from papa_lightning.attention.head_slices import head_index, head_runs, merge_heads, take_heads


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_runs_of_every_subset(count):
    for size in range(count + 1):
        for subset in itertools.combinations(range(count), size):
            runs = head_runs(subset)
            assert [head for first, number in runs for head in range(first, first + number)] == list(subset)
            assert all(a[0] + a[1] < b[0] for a, b in itertools.pairwise(runs)), "neighbours belong to one run"


@pytest.mark.parametrize("seed", range(100))
def test_merge_undoes_select(seed):
    """Up to nine heads, dealt to up to three groups that arrive in any order, along any dimension."""
    draw = random.Random(seed)
    num_heads, dim, width = draw.randint(1, 9), draw.randint(-4, 3), draw.randint(1, 3)
    labels = [draw.randint(0, 2) for _ in range(num_heads)]
    groups = [[head for head in range(num_heads) if labels[head] == label] for label in draw.sample(range(3), 3)]
    groups = [group for group in groups if group]
    sizes = [2, 3, 1, 4]
    sizes[dim] = num_heads * width
    tensor = torch.arange(torch.Size(sizes).numel()).reshape(sizes)
    parts = [(group, take_heads(tensor, group, dim=dim, width=width)) for group in groups]
    for group, part in parts:
        entries = [head * width + offset for head in group for offset in range(width)]
        assert torch.equal(part, tensor.index_select(dim, torch.tensor(entries)))
    if width == 1:
        assert torch.equal(merge_heads(parts, dim=dim), tensor)


def test_neighbours_are_a_view():
    tensor = torch.rand(2, 6, 3)
    assert take_heads(tensor, [2, 3, 4], dim=1).data_ptr() == tensor[:, 2].data_ptr()


def test_gradient_passes_through():
    tensor = torch.rand(4, 5, requires_grad=True)
    parts = [([0, 2], take_heads(tensor, [0, 2], 0)), ([1, 3], 2 * take_heads(tensor, [1, 3], 0))]
    merge_heads(parts, dim=0).sum().backward()
    assert tensor.grad[:, 0].tolist() == [1, 2, 1, 2]


def test_numbers_of_heads_of_a_stand_in_are_not_kept():
    heads = (0, 3, 7)  # which no other test asks for
    with FakeTensorMode():
        assert isinstance(head_index(heads, torch.zeros(8)), FakeTensor)
    index = head_index(heads, torch.zeros(8))
    assert type(index) is torch.Tensor
    assert index.tolist() == list(heads)


def test_a_compiled_graph_holds_the_numbers_of_heads():
    """A tensor that is made in the graph would be copied to the device in every call, which waits for it."""
    called = []

    def keep(graph, _):
        called.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    def chosen(tensor):
        index = head_index((0, 2), tensor)
        return tensor.index_select(0, index), take_heads(tensor.to("meta"), [0, 2], dim=0, width=2)

    torch._dynamo.reset()
    tensor = torch.arange(6.0)
    found, elsewhere = torch.compile(chosen, backend=keep, fullgraph=True)(tensor)
    torch._dynamo.reset()
    assert found.tolist() == [0, 2]
    assert elsewhere.shape == (4,)
    assert torch.tensor not in called
