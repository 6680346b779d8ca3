"""One product for queries, keys and values that learn: what three products of cut rows give, with their gradients."""

import copy
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel

from papa_lightning import AttentionConstants, swap_attention
from papa_lightning.encoders.projections import joint
from papa_lightning.encoders.projections.joined import joined_linear

HEADS = (1, 3, 4 + 1, 4 + 3, 8 + 1, 8 + 3, 8 + 0, 8 + 2)  # of three layers of four heads


def make(bias, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 5, 6, generator=generator, dtype=dtype).requires_grad_()
    weights = [torch.randn(8, 6, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]
    biases = [torch.randn(8, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)] if bias else None
    return states, weights, biases


def by_rows(states, weights, biases):
    """The definition: rows 2 n and 2 n + 1 of all weights one after the other are those of head n."""
    rows = [2 * head + place for head in HEADS for place in (0, 1)]
    return F.linear(states, torch.cat(weights)[rows], None if biases is None else torch.cat(biases)[rows])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", ["none", "states", "weights", "keys"])
def test_output_and_gradients(bias, frozen):
    states, weights, biases = make(bias)
    parameters = [*weights, *(biases or ())]
    asleep = {"none": [], "states": [states], "weights": parameters, "keys": parameters[1::3]}[frozen]
    for one in asleep:
        one.requires_grad_(False)
    learns = [one for one in (states, *parameters) if one.requires_grad]
    found, expected = joined_linear(states, HEADS, 2, weights, biases), by_rows(states, weights, biases)
    torch.testing.assert_close(found, expected)
    up = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
    torch.testing.assert_close(torch.autograd.grad(found, learns, up), torch.autograd.grad(expected, learns, up))


def test_second_derivatives():
    states, weights, biases = make(True)
    learns, found = [states, *weights, *biases], []
    for function in (lambda *given: joined_linear(given[0], HEADS, 2, *given[1:]), by_rows):
        out = function(states, weights, biases)
        first = torch.autograd.grad(out.tanh().square().sum(), learns, create_graph=True)
        found.append(torch.autograd.grad(sum(one.square().sum() for one in first), learns))
    torch.testing.assert_close(*found)


def test_autocast_takes_its_dtype_and_gives_gradients_in_that_of_the_weights():
    states, weights, biases = make(True, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = joined_linear(states, HEADS, 2, weights, biases), by_rows(states, weights, biases)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)
    learns = [states, *weights, *biases]
    gradients = torch.autograd.grad(found.float().square().sum(), learns)
    for one, other in zip(gradients, torch.autograd.grad(expected.float().square().sum(), learns), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2 * float(other.abs().max()))


@pytest.mark.parametrize("heads", [[(0, 0), (0, 2), (1, 1)], [(0, 0), (0, 1), (1, 3)]])
def test_an_encoder_that_learns_trains_as_with_three_products(monkeypatch, heads):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 8}
    model = BertModel(BertConfig(**sizes, vocab_size=20, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    constants = AttentionConstants(torch.rand(2, 4, 6, 6), torch.ones(6, 6))
    model = swap_attention(model.double(), "constant", constants=constants, heads=heads).train()
    ids = torch.randint(20, (3, 6), generator=torch.Generator().manual_seed(1))
    gradients = []
    for pays in (False, True):
        own, product = copy.deepcopy(model), Mock(side_effect=joined_linear)
        monkeypatch.setattr(joint, "_pays", lambda device, pays=pays: pays)
        monkeypatch.setattr(joint, "joined_linear", product)
        own(input_ids=ids).last_hidden_state.square().sum().backward()
        assert product.call_count == 2 * pays
        gradients.append({name: one.grad for name, one in own.named_parameters() if one.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, one in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], one)
