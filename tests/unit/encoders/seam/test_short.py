"""The short forward: taken where nothing but the output is wanted, and the same as transformers' own bit for bit."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from unit.encoders.tiny_encoders import (
    LENGTH,
    MODEL_TYPES,
    PARTIAL,
    build,
    make_constants,
    make_inputs,
    projections,
    run,
    self_attentions,
    snapshot,
)

from papa_lightning import calibrate, export_encoder, load_exported_encoder, restore_attention, swap_attention
from papa_lightning.encoders.projections import joint
from papa_lightning.encoders.seam.short import ShortForward

TYPES = [*MODEL_TYPES, "ernie", "bert-generation"]


def swapped(model_type="bert", heads=PARTIAL, kind="constant", dtype=torch.float64, **options):
    model = build(model_type, dtype=dtype, **options)
    return swap_attention(model, kind, constants=make_constants(dtype=dtype), heads=heads)


@pytest.fixture
def long_way(monkeypatch):
    """Counts the layers that go through transformers' own forward and its interface."""
    calls, function = [], ALL_ATTENTION_FUNCTIONS["papa"]

    def counted(module, *args, **kwargs):
        calls.append(module)
        return function(module, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "papa", counted)
    return calls


@pytest.fixture
def graphs():
    """Graphs of the test alone: what torch.compile learns of shapes outlives a model."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batches(model_type):
    inputs = make_inputs()
    tokens = inputs["input_ids"]
    found = [inputs, {"input_ids": tokens}, {"input_ids": tokens[:, :4]}]
    if model_type != "distilbert":
        first = 2 if model_type in ("roberta", "xlm-roberta", "camembert") else 0
        found.append({"input_ids": tokens, "position_ids": torch.arange(LENGTH).flip(0)[None] + first})
    return found


@pytest.mark.parametrize("one_product", [False, True])
@pytest.mark.parametrize("model_type", TYPES)
def test_the_same_bit_for_bit(model_type, one_product, monkeypatch, long_way):
    monkeypatch.setattr(joint, "_pays", lambda device: one_product)
    model = swapped(model_type)  # a layer with one dynamic head, one without any, and a stock one
    found = [run(model, inputs)[0] for inputs in batches(model_type)]
    assert long_way == []
    monkeypatch.setattr(ShortForward, "_mixed", lambda *args: None)
    for inputs, short in zip(batches(model_type), found, strict=True):
        assert torch.equal(short, run(model, inputs)[0])
    assert len(long_way) == 3 * len(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [[(0, 0), (0, 2)], [(0, 1), (0, 3)], [(0, 2), (0, 3)]])
def test_the_same_for_any_heads(heads, dtype, monkeypatch):
    model, inputs = swapped(heads=heads, dtype=dtype), make_inputs()
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode(), monkeypatch.context() as patch:
            short = model(**inputs)[0]
            patch.setattr(ShortForward, "_mixed", lambda *args: None)
            assert torch.equal(short, model(**inputs)[0])


def gradients(model):
    model.zero_grad()
    model(**make_inputs())[0].square().sum().backward()
    return [own.grad for own in model.parameters() if own.grad is not None]


@pytest.mark.parametrize("one_product", [False, True])
def test_gradients_in_evaluation(one_product, monkeypatch, long_way):
    products, own = [], joint.joined_linear
    monkeypatch.setattr(joint, "_pays", lambda device: one_product)
    monkeypatch.setattr(joint, "joined_linear", lambda *given: products.append(given) or own(*given))
    model = swapped()
    found = gradients(model)
    assert long_way == []
    assert len(products) == one_product  # the one layer with dynamic and constant heads
    monkeypatch.setattr(ShortForward, "_mixed", lambda *args: None)
    monkeypatch.setattr(joint, "_pays", lambda device: False)
    for one, other in zip(found, gradients(model), strict=True):
        torch.testing.assert_close(
            one, other, rtol=0 if not one_product else 1e-9, atol=0 if not one_product else 1e-12
        )


def looked_at(name):
    def look(model):
        module = self_attentions(model)[0].get_submodule(name)
        module.register_forward_hook(lambda module, args, output: None)

    return look


def wrap_the_key(model):
    module = self_attentions(model)[0]
    module.key = nn.Sequential(module.key)  # as an adapter does


def give_a_forward(model):
    module = self_attentions(model)[0].value
    module.forward = module.forward  # as accelerate does


def parametrise(model):
    torch.nn.utils.parametrizations.weight_norm(self_attentions(model)[0].query)


WATCHED = {name: looked_at(name) for name in ("query", "key", "value", "papa")}


@pytest.mark.parametrize("change", [*WATCHED.values(), wrap_the_key, give_a_forward, parametrise])
def test_layers_that_somebody_looks_into_go_the_long_way(change, monkeypatch, long_way):
    monkeypatch.setattr(joint, "_pays", lambda device: True)
    model, inputs = swapped(), make_inputs()
    expected = run(model, inputs)[0]
    long_way.clear()
    change(model)
    changed = run(model, inputs)[0]
    torch.testing.assert_close(changed, expected)
    assert long_way == [self_attentions(model)[0]]
    monkeypatch.setattr(ShortForward, "_mixed", lambda *args: None)
    assert torch.equal(changed, run(model, inputs)[0])


def test_a_hook_for_all_modules_sees_the_projections():
    model, seen = swapped(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module))
    run(model, make_inputs())
    handle.remove()
    assert set(projections(self_attentions(model)[0])) <= set(seen)


def test_stock_layers_by_an_attention_function_of_their_family(long_way):
    model, inputs = swapped(implementation="eager"), make_inputs()
    found = run(model, inputs)[0]
    assert long_way == [self_attentions(model)[2]]
    assert torch.equal(found, run(model, inputs, output_hidden_states=True)[0])
    torch.testing.assert_close(found, run(swapped(), inputs)[0])


def test_a_layer_that_waits_is_stock(long_way):
    model = swap_attention(build(), "constant", max_length=LENGTH)
    assert torch.equal(run(model, make_inputs())[0], run(build(), make_inputs())[0])
    assert long_way == []


@pytest.mark.parametrize("by_configuration", [False, True])
def test_matrices_come_by_the_long_way(by_configuration, long_way):
    model = swapped(implementation="eager")
    if by_configuration:
        model.config.output_attentions = True
    asked = {} if by_configuration else {"output_attentions": True}
    found = run(model, make_inputs(), **asked).attentions
    assert [one.shape for one in found] == [(4, 4, LENGTH, LENGTH)] * 3
    assert len(long_way) == 3


def test_hidden_states_are_recorded(long_way):
    model = swapped()
    found = run(model, make_inputs(), output_hidden_states=True)
    assert len(found.hidden_states) == 4
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    assert long_way == []


def test_training_and_other_kinds_go_the_long_way(long_way):
    run(swapped().train(), make_inputs())
    run(swapped(kind="gated", heads="all"), make_inputs())
    assert len(long_way) == 6


@pytest.mark.parametrize("model_type", TYPES)
def test_originals_are_put_back(model_type):
    model = build(model_type)
    before, states = snapshot(model), list(model.state_dict())
    originals = self_attentions(model)
    for _ in range(2):
        swap_attention(model, "constant", constants=make_constants(), heads=PARTIAL)
        assert all(isinstance(module, ShortForward) for module in self_attentions(model))
        assert [key for key in model.state_dict() if ".papa." not in key] == states
    assert snapshot(restore_attention(model)) == before
    calibrate(model, [make_inputs()], LENGTH)
    assert snapshot(model) == before
    assert self_attentions(model) == originals


@pytest.mark.usefixtures("graphs")
def test_modules_with_a_forward_of_their_own_are_left_alone():
    model, inputs = build(), make_inputs()
    first, second, third = self_attentions(model)
    first.forward = first.forward
    second.compile(backend="eager")
    swap_attention(model, "constant", constants=make_constants(), heads=PARTIAL)
    assert self_attentions(model)[:2] == [first, second]
    assert isinstance(self_attentions(model)[2], ShortForward)
    torch.testing.assert_close(run(model, inputs)[0], run(swapped(), inputs)[0])
    assert self_attentions(restore_attention(model)) == [first, second, third]


def test_a_forward_that_came_after_the_swap_survives_the_restoration():
    """Accelerate keeps the forward that a module had, which is bound to the module in the original's place."""
    model, inputs = swapped(), make_inputs()
    module = self_attentions(model)[0]
    module.forward = module.forward
    restored = restore_attention(model)
    assert torch.equal(run(restored, inputs)[0], run(build(), inputs)[0])
    assert restored.eval().train().encoder.layer[0].attention.self.training
    again = swap_attention(restored.eval(), "constant", constants=make_constants(), heads=PARTIAL)
    torch.testing.assert_close(run(again, inputs)[0], run(swapped(), inputs)[0])


@pytest.mark.parametrize("one_product", [False, True])
def test_encoders_without_the_rows_of_constant_heads(one_product, tmp_path, monkeypatch, long_way):
    monkeypatch.setattr(joint, "_pays", lambda device: one_product)
    model, inputs = swapped(), make_inputs()
    loaded = load_exported_encoder(export_encoder(model, tmp_path / "exported"))
    assert torch.equal(run(loaded, inputs)[0], run(model, inputs)[0])
    assert long_way == []
    monkeypatch.setattr(ShortForward, "_mixed", lambda *args: None)
    assert torch.equal(run(loaded, inputs)[0], run(model, inputs)[0])


@pytest.mark.no_cover  # which doubles the time of torch's compiler; it runs no line of ours
@pytest.mark.usefixtures("graphs")
def test_no_graph_break():
    model, inputs = swapped(), make_inputs()
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    torch.testing.assert_close(run(compiled, inputs)[0], run(model, inputs)[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_use_their_own_weights(copied, long_way):
    model, inputs = swapped(), make_inputs()
    other = copied(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    found = run(other, inputs)[0]
    assert long_way == []
    assert not torch.equal(found, run(model, inputs)[0])
    fresh = swapped()
    fresh.load_state_dict(other.state_dict())
    assert torch.equal(found, run(fresh, inputs)[0])


def test_replicas_use_their_own_weights(long_way):
    """DataParallel runs shallow copies, whose parts are not those that the swap joined."""
    model, inputs = swapped(), make_inputs()
    module = self_attentions(model)[0]
    replica = module._replicate_for_data_parallel()
    replica._modules = {name: held._replicate_for_data_parallel() for name, held in module._modules.items()}
    for name, part in replica._modules.items():
        for leaf, held in module._modules[name]._parameters.items():
            setattr(part, leaf, None if held is None else held.detach() * 2)
        part.__dict__.update({leaf: part._buffers.pop(leaf) for leaf in list(part._buffers)})
    hidden = torch.randn(2, LENGTH, 32, dtype=torch.float64)
    with torch.no_grad():
        found = replica(hidden)[0]
        assert long_way == [replica]
        for part in projections(module):
            part.weight.mul_(2)
            part.bias.mul_(2)
        torch.testing.assert_close(found, module(hidden)[0])
    run(model, inputs)


def test_changed_weights_and_constants_are_seen(monkeypatch):
    monkeypatch.setattr(joint, "_pays", lambda device: True)
    model, inputs = swapped(), make_inputs()
    run(model, inputs)
    module = self_attentions(model)[0]
    changes = [
        lambda: module.key.weight.mul_(2),
        lambda: module.value.bias.add_(1),
        lambda: setattr(module.query, "weight", nn.Parameter(module.query.weight * 3)),
        lambda: module.papa.constants.copy_(module.papa.constants.flip(2)),
    ]
    for change in changes:
        before = run(model, inputs)[0]
        with torch.no_grad():
            change()
        found = run(model, inputs)[0]
        assert not torch.equal(found, before)
        assert torch.equal(found, run(copy.deepcopy(model), inputs)[0])


def test_threads_with_batches_of_their_own():
    model = swapped("roberta")
    inputs = [make_inputs(length=length, seed=length) for length in (4, 7, LENGTH)]
    expected, wrong = [run(model, one)[0] for one in inputs], []

    def serve(number):
        wrong.extend(not torch.equal(run(model, inputs[number])[0], expected[number]) for _ in range(15))

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [False] * 45
