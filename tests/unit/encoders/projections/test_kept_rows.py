"""Query and key rows of the dynamic heads: taken out once, and never used after the weights changed."""

import copy

import pytest
import torch
from conformance import tiny_models
from torch import nn
from unit.encoders.tiny_encoders import (
    LENGTH,
    build,
    make_constants,
    make_inputs,
    projections,
    self_attentions,
)

from papa_lightning import swap_attention
from papa_lightning.encoders.projections import cut as projections_module

#: The dynamic heads that are left are no neighbours: their rows are a copy, and no view of the weight.
SCATTERED = [(0, 0), (0, 2), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3)]
# BERT's two projections, ModernBERT's and GPT-2's fused ones, DeBERTa's interleaved one.
FAMILIES = ["bert", "modernbert", "gpt2", "deberta"]


def swapped(dtype=torch.float64):
    return swap_attention(build(dtype=dtype), "constant", constants=make_constants(dtype=dtype), heads=SCATTERED)


def last(model, **inputs):
    with torch.no_grad():
        return model(**(inputs or make_inputs())).last_hidden_state


@pytest.fixture
def choices(monkeypatch):
    """Counts how often slices of a weight are taken out."""
    counted = []
    original = projections_module.take_heads

    def counting(tensor, heads, dim, width=1):
        counted.append(tuple(heads))
        return original(tensor, heads, dim, width)

    monkeypatch.setattr(projections_module, "take_heads", counting)
    return counted


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_rows_are_taken_out_once(name, choices):
    model = tiny_models.swapped(name, "partial")
    inputs = tiny_models.make_inputs(name)
    options = {"use_cache": False} if tiny_models.CASES[name].kind == "causal" else {}
    first = model(**inputs, **options).last_hidden_state
    number = len(choices)
    assert number > 0
    assert torch.equal(model(**inputs, **options).last_hidden_state, first)
    assert len(choices) == number
    model.eval()
    model(**inputs, **options)
    assert len(choices) == 2 * number


def train_a_step(model):
    model.train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.1)
    model(**make_inputs()).last_hidden_state.square().sum().backward()
    optimizer.step()
    model.eval()


def scale_in_place(model):
    with torch.no_grad():
        for module in self_attentions(model):
            for projection in projections(module)[:2]:
                projection.weight.mul_(2)
                projection.bias.add_(1)


def average_through_data(model):
    for parameter in model.parameters():  # as averages of weights are written by hand; torch does not count these
        parameter.data.mul_(0.5)
    model.eval()


CHANGES = {
    "step": train_a_step,
    "in place": scale_in_place,
    "load": lambda model: model.load_state_dict(swapped_twice().state_dict()),
    "move": lambda model: model.float().double(),
    "data": average_through_data,
}


def swapped_twice():
    model = swapped()
    scale_in_place(model)
    return model


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_by_the_encoder(change):
    model = swapped()
    before = last(model)
    CHANGES[change](model)
    found = last(model)
    assert not torch.equal(found, before)
    assert torch.equal(found, last(copy.deepcopy(model)))  # a copy has nothing to remember


def test_a_layer_that_an_adapter_takes_in_forgets():
    """Adapters merge their weights through ``weight.data``."""
    model = swapped()
    last(model)
    module = self_attentions(model)[0]
    query = module.query
    module.query = nn.Sequential(query)  # as an adapter does
    last(model)
    query.weight.data.mul_(2)
    module.query = query
    assert torch.equal(last(model), last(copy.deepcopy(model)))


def test_gradients_reach_the_rows_after_an_evaluation():
    model = swapped()
    last(model)
    model(**make_inputs()).last_hidden_state.square().sum().backward()
    weight = self_attentions(model)[0].query.weight
    assert weight.grad[8:16].abs().sum() > 0  # head 1 is the dynamic one
    assert weight.grad[:8].abs().sum() == 0


def test_a_restored_projection_has_nothing_of_ours():
    from papa_lightning import restore_attention

    model = swapped()
    last(model)
    plain = vars(build().get_submodule("encoder.layer.0.attention.self.query")).keys()
    assert vars(restore_attention(model).get_submodule("encoder.layer.0.attention.self.query")).keys() == plain


@torch.no_grad()
def test_short_batches_and_padding_give_the_same_with_what_is_kept():
    model = swapped()
    for length in (LENGTH, 4, LENGTH, 7):
        full = {**make_inputs(length=length), "attention_mask": torch.ones(4, length, dtype=torch.int64)}
        padded = {name: nn.functional.pad(tensor, (0, LENGTH - length)) for name, tensor in full.items()}
        torch.testing.assert_close(last(model, **full), last(model, **padded)[:, :length], atol=1e-12, rtol=1e-12)
