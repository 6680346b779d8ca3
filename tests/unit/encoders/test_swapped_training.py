"""A swapped encoder in training: dropout, and gradients."""

import pytest
import torch
from unit.encoders.tiny_encoders import (
    ALL,
    HEADS,
    HIDDEN,
    LAYERS,
    LENGTH,
    MODEL_TYPES,
    PARTIAL,
    build,
    hidden,
    make_constants,
    make_inputs,
    projections,
    run,
    self_attentions,
    written_out,
)

from papa_lightning import restore_attention, swap_attention
from papa_lightning.encoders import learn_constants
from papa_lightning.errors import PapaError

assert_close = torch.testing.assert_close
EXACT = {"atol": 1e-10, "rtol": 1e-10}
SELECTIONS = {"all": ALL, "partial": PARTIAL, "one": [(1, 2)], "last_layer": [(2, 0), (2, 1), (2, 2), (2, 3)]}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_dropout_in_training_draws_like_the_written_out_form(model_type):
    """All heads constant: the same seed must drop the same entries of the normalised matrices."""
    model, inputs = build(model_type, attention_dropout=0.4, implementation="eager"), make_inputs()
    constants = make_constants()
    model.train()
    with written_out(model, constants, ALL, inputs["attention_mask"]):
        torch.manual_seed(11)
        expected = hidden(model, inputs)
    swap_attention(model, "constant", constants=constants)
    torch.manual_seed(11)
    assert_close(hidden(model, inputs), expected, **EXACT)
    model.eval()
    still = hidden(model, inputs)
    assert torch.equal(still, hidden(model, inputs)), "no dropout in eval mode"
    assert not torch.allclose(still[-1], expected[-1], atol=1e-3)


@pytest.mark.parametrize("kind", ["all", "partial", "gated"])
def test_dropout_beside_attention_matrices_on_request(kind):
    """All matrices are explicit then, so that mixed layers draw like the written-out form as well."""
    model, inputs = build(attention_dropout=0.4, implementation="eager"), make_inputs()
    constants, heads = make_constants(), PARTIAL if kind == "partial" else ALL
    gates = torch.zeros(LAYERS, HEADS) if kind == "gated" else None
    model.train()
    with written_out(model, constants, heads, inputs["attention_mask"], gates):
        torch.manual_seed(11)
        expected = run(model, inputs, output_attentions=True).last_hidden_state
    swap_attention(model, "gated" if kind == "gated" else "constant", constants=constants, heads=heads)
    torch.manual_seed(11)
    assert_close(run(model, inputs, output_attentions=True).last_hidden_state, expected, **EXACT)


@pytest.mark.parametrize("kind", ["constant", "gated"])
@pytest.mark.parametrize("with_mask", [True, False])
def test_dropout_in_training_keeps_the_mean(kind, with_mask):
    """One layer, whose attention output is linear in the dropped matrices, so the mean is that of eval mode."""
    model = build(layers=1, attention_dropout=0.3)
    constants = make_constants(layers=1)
    heads = [(0, 1), (0, 2)] if kind == "constant" else "all"
    swap_attention(model, kind, constants=constants, heads=heads)
    inputs = make_inputs()
    if not with_mask:
        del inputs["attention_mask"]
    taken = []
    self_attentions(model)[0].register_forward_hook(lambda module, args, output: taken.append(output[0]))
    run(model, inputs)
    repeated = {name: tensor.repeat(800, 1) for name, tensor in inputs.items()}
    torch.manual_seed(0)
    run(model.train(), repeated)
    drawn = taken[1].unflatten(0, (800, -1))
    assert drawn.std(0).amax() > 0.1, "something was dropped"
    assert ((drawn.mean(0) - taken[0]).abs() <= 6 * drawn.std(0) / 800**0.5 + 1e-9).all()


def test_dropout_of_partial_layers_reaches_dynamic_and_constant_heads():
    model = swap_attention(
        build(layers=1, attention_dropout=0.5), "constant", constants=make_constants(layers=1), heads=[(0, 1)]
    ).train()
    taken = []
    self_attentions(model)[0].register_forward_hook(lambda module, args, output: taken.append(output[0]))
    torch.manual_seed(0)
    run(model, make_inputs())
    run(model, make_inputs())
    by_head = [output.unflatten(-1, (HEADS, -1)) for output in taken]
    for head in range(HEADS):
        assert not torch.allclose(by_head[0][:, :, head], by_head[1][:, :, head])


@pytest.mark.parametrize("kind", ["all", "partial", "gated"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_trainable_parameter_gets_a_gradient(model_type, kind):
    """DDP counts on it. Poolers are beside the point: the loss is on the last hidden state."""
    model = build(model_type, attention_dropout=0.1)
    heads = PARTIAL if kind == "partial" else "all"
    swap_attention(model, "gated" if kind == "gated" else "constant", constants=make_constants(), heads=heads)
    weights = torch.randn(4, LENGTH, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for mode in (True, False):
        model.train(mode).zero_grad()
        (model(**make_inputs()).last_hidden_state * weights).sum().backward()
        for name, parameter in model.named_parameters():
            if "pooler" in name:
                continue
            assert (parameter.grad is not None) == parameter.requires_grad, name
            if parameter.requires_grad:
                assert parameter.grad.isfinite().all(), name
    for module in self_attentions(model):
        assert projections(module)[2].weight.grad.abs().max() > 0
        if kind == "gated":
            assert module.papa.gate_logits.grad.abs().min() > 0


@pytest.mark.parametrize("selection", ["all", "partial"])
def test_gradients_are_those_of_the_written_out_form(selection):
    heads, constants, inputs = SELECTIONS[selection], make_constants(), make_inputs()
    model, swapped = build(), swap_attention(build(), "constant", constants=constants, heads=SELECTIONS[selection])
    with written_out(model, constants, heads, inputs["attention_mask"]):
        model(**inputs).last_hidden_state.square().sum().backward()
    swapped(**inputs).last_hidden_state.square().sum().backward()
    expected = dict(model.named_parameters())
    for name, parameter in swapped.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            assert_close(parameter.grad, expected[name].grad, atol=1e-9, rtol=1e-9)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = swap_attention(build(), "constant", constants=make_constants(), heads=PARTIAL).train()
        if checkpointing:
            model.gradient_checkpointing_enable()  # the name before transformers 6
        model(**make_inputs()).last_hidden_state.square().sum().backward()
        gradients.append([p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, **EXACT)


def test_constants_may_be_trained():
    model = swap_attention(build(), "constant", constants=make_constants(), heads=PARTIAL)
    learn_constants(model)
    trained = [p for name, p in model.named_parameters() if name.endswith("papa.constants") and p.numel()]
    model(**make_inputs()).last_hidden_state.square().sum().backward()
    assert len(trained) == 2
    assert all(parameter.grad.abs().max() > 0 for parameter in trained)


def test_unfreezing_all_makes_no_constants_learn():
    """In a loop without Lightning, whenever it happens; and what is idle stays as it is."""
    model = swap_attention(build(), "constant", constants=make_constants(), heads="all")
    before = {name: one.clone() for name, one in model.state_dict().items()}
    stock = [name for name, _ in build().named_parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.requires_grad = True
        model(**make_inputs()).last_hidden_state.square().sum().backward()
        optimizer.step()
    assert [name for name, _ in model.named_parameters()] == stock  # others count phases of fine-tuning by them
    changed = {name for name, one in model.state_dict().items() if not torch.equal(one, before[name])}
    assert changed
    assert not [name for name in changed if ".papa." in name or ".query." in name or ".key." in name]
    with pytest.raises(PapaError, match="no constants to learn"):
        learn_constants(restore_attention(model))
