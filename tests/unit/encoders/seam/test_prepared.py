"""Prepared layers: what a device computes without gradients is what the general forward computes."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from unit.encoders.tiny_encoders import (
    LENGTH,
    PARTIAL,
    build,
    make_constants,
    make_inputs,
    projections,
    run,
    self_attentions,
)

from papa_lightning import AttentionConstants, swap_attention
from papa_lightning.attention import ConstantHeads, MatrixHeads, ZeroMassWarning
from papa_lightning.attention.functional import constant_attention
from papa_lightning.attention.head_slices import merge_heads
from papa_lightning.encoders import Packer
from papa_lightning.encoders.projections import joint
from papa_lightning.encoders.seam import short
from papa_lightning.encoders.seam.prepared import PreparedLayer, takes_prepared

DEVICE_TYPES = ["bert", "roberta", "distilbert", "electra"]


class TorchProduct:
    """The product of the kernel, in plain torch."""

    def __init__(self, mixer):
        self.heads, self.others = mixer.constant_heads, mixer.dynamic_when_calibrated()

    def __call__(self, constants, value, mask, dynamic):
        length = value.shape[2]
        mixed = constant_attention(constants[:, :length, :length], value, mask)
        parts = [(self.heads, mixed)] + ([] if dynamic is None else [(self.others, dynamic)])
        return merge_heads(parts, dim=2)


@pytest.fixture
def prepared(monkeypatch):
    """Layers are prepared as on a device, with the product in plain torch; the layers that were mixed by it."""
    monkeypatch.setattr(joint, "_pays", lambda device: True)
    monkeypatch.setattr(
        short, "takes_prepared", lambda hidden: not torch.is_grad_enabled() and type(hidden) is torch.Tensor
    )
    monkeypatch.setattr(MatrixHeads, "repeated_product", lambda mixer, like: TorchProduct(mixer))
    mixed, own = [], PreparedLayer.mix
    monkeypatch.setattr(PreparedLayer, "mix", lambda layer, *given: mixed.append(layer) or own(layer, *given))
    return mixed


def swapped(model_type="bert", heads=PARTIAL, **options):
    model = build(model_type, **options)
    return swap_attention(model, "constant", constants=make_constants(), heads=heads)


def near(model, inputs):
    """The output by prepared layers, which is that of the general forward."""
    found = run(model, inputs)[0]
    with torch.enable_grad():
        torch.testing.assert_close(found, model(**inputs)[0].detach())
    return found


@pytest.mark.parametrize("model_type", DEVICE_TYPES)
def test_the_same_as_the_general_forward(model_type, prepared):
    model, inputs = swapped(model_type), make_inputs()
    for one in (inputs, {"input_ids": inputs["input_ids"]}, {"input_ids": inputs["input_ids"][:, :4]}):
        near(model, one)
    assert len(prepared) == 3 * 2  # the third layer is stock
    assert len({id(layer) for layer in prepared}) == 2


def test_tokens_with_slots_and_packed_batches(prepared):
    model, tokens = swapped(), make_inputs()["input_ids"]
    given = {"input_ids": tokens, "position_ids": torch.arange(LENGTH).flip(0)[None]}
    near(model, given)
    packed = Packer.of(model).pack(make_inputs())
    with torch.no_grad(), packed.batch(packed.groups(10_000)[0]).prepared(torch.device("cpu")) as arguments:
        found = model(**arguments)[0]
    with torch.enable_grad(), packed.batch(packed.groups(10_000)[0]).prepared(torch.device("cpu")) as arguments:
        torch.testing.assert_close(found, model(**arguments)[0].detach())
    assert len(prepared) == 2 * 2


def test_tokens_that_attend_to_nothing_are_warned_of(prepared):
    values = make_constants().values.clone()
    values[0, :, :, 2:] = 0
    values[0] /= values[0].sum(-1, keepdim=True).clamp_min(1e-12)
    constants = AttentionConstants(values, make_constants().pair_counts)
    model = swap_attention(build(), "constant", constants=constants, heads=PARTIAL)
    inputs = make_inputs()
    inputs["attention_mask"][:] = torch.arange(LENGTH) >= 3  # keys that no constant of layer 0 looks at
    with pytest.warns(ZeroMassWarning):
        run(model, inputs)
    assert prepared


def test_changes_are_seen(prepared):
    model, inputs = swapped(), make_inputs()
    module, last = self_attentions(model)[0], self_attentions(model)[1]
    changes = [
        lambda: module.key.weight.mul_(2),
        lambda: module.value.bias.add_(1),
        lambda: setattr(module.query, "weight", nn.Parameter(module.query.weight * 3)),
        lambda: setattr(module.key.weight, "data", module.key.weight.data * 1.5),
        lambda: last.value.weight.mul_(2),
        lambda: setattr(last.value, "weight", nn.Parameter(last.value.weight * 3)),
        lambda: module.papa.constants.copy_(module.papa.constants.flip(2)),
        lambda: setattr(module.papa, "constants", module.papa.constants * 0.5 + 0.1),
    ]
    before = near(model, inputs)
    for change in changes:
        with torch.no_grad():
            change()
        found = near(model, inputs)
        assert not torch.equal(found, before)
        before = found
    copied = copy.deepcopy(model)
    assert torch.equal(run(copied, inputs)[0], before)
    model.to(torch.float32)
    assert near(model, inputs).dtype == torch.float32


def test_autocast_is_seen(prepared):
    model, inputs = swapped(dtype=torch.float32), make_inputs()
    near(model, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run(model, inputs)[0]
        with torch.enable_grad():
            torch.testing.assert_close(cast, model(**inputs)[0].detach(), atol=3e-2, rtol=3e-2)
    assert {layer.dtype for layer in prepared} == {torch.float32, torch.bfloat16}


def test_weights_that_were_replaced_are_freed(prepared):
    model, inputs = swapped(), make_inputs()
    run(model, inputs)
    own = [part.weight for module in self_attentions(model)[:2] for part in projections(module)]
    held = [weakref.ref(one) for one in [*own, *(module.papa.constants for module in self_attentions(model)[:2])]]
    del own
    for module in self_attentions(model)[:2]:
        module.papa.constants = module.papa.constants.clone()
        for part in projections(module):
            part.weight = nn.Parameter(part.weight.detach().clone())
    gc.collect()
    assert [one() for one in held] == [None] * len(held)


def test_another_class_mixes_in_its_own_way(prepared):
    model, inputs = swapped(), make_inputs()
    before = run(model, inputs)[0]

    class Doubled(ConstantHeads):
        mixes_parts = True

        def mix_parts(self, *given):
            return 2 * super().mix_parts(*given)

    for module in self_attentions(model)[:2]:
        module.papa.__class__ = Doubled
        joint_of = vars(module)["papa_layer"].joint
        joint_of.forget()
    assert not torch.allclose(near(model, inputs), before)


@torch.no_grad()
@pytest.mark.parametrize("through", ["prepared", "general"])
def test_weights_that_are_written_in_training_mode(through, prepared, monkeypatch):
    if through == "general":
        monkeypatch.setattr(short, "takes_prepared", lambda hidden: False)
    model, inputs = swapped(), make_inputs()
    parts = projections(self_attentions(model)[0])
    for part in parts:
        part.train()
    before = near(model, inputs)
    parts[0].weight.data.mul_(3)  # which torch does not count
    after = near(model, inputs)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, near(copy.deepcopy(model), inputs))


@torch.no_grad()
@pytest.mark.parametrize("heads", [PARTIAL, "all"])
def test_an_encoder_without_values(heads):
    model = swapped(heads=heads).to("meta")
    tokens = make_inputs()["input_ids"].to("meta")
    assert model(input_ids=tokens).last_hidden_state.shape == (*tokens.shape, model.config.hidden_size)


def test_where_layers_are_prepared():
    hidden = torch.zeros(1, 2, 4)
    assert not takes_prepared(hidden)
    on_device = hidden.to("meta")
    assert not takes_prepared(on_device)
    with torch.no_grad():
        assert takes_prepared(on_device)
        assert not takes_prepared(nn.Parameter(on_device))
        torch.vmap(lambda one: one if not takes_prepared(one) else 1 / 0)(on_device)
