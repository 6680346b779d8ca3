"""Kind "folded": value and output projections as one matrix where all heads of a layer share one constant."""

import copy

import pytest
import torch
from conformance.tiny_models import CASES, NAMES, build, encode, make_constants, make_inputs, plain, snapshot
from torch import nn

from papa_lightning import AttentionConstants, restore_attention, swap_attention
from papa_lightning.calibration import folded_kinds, merge_constants
from papa_lightning.encoders import FAMILIES, load_constants, observe_attention, swapped_layers
from papa_lightning.encoders.projections.folded import FoldedOutput, FoldedValue
from papa_lightning.encoders.saved_state import swap_as_saved
from papa_lightning.errors import PapaError, UnsupportedEncoderError

FUSED = {"deberta", "gpt2", "gpt2-scaled", "modernbert"}
GROUPED = {"eurobert", "llama", "mistral", "qwen2", "qwen2-sliding", "qwen3"}
REFUSED = {*FUSED, *GROUPED, "roformer-value"}


def merged(name):
    return merge_constants(make_constants(name))


def folded(name, constants=None):
    return swap_attention(copy.deepcopy(plain(name)), "folded", constants=constants or merged(name))


@pytest.mark.parametrize("name", sorted(set(NAMES) - REFUSED))
def test_equals_constant_heads_and_is_restored(name):
    constant = swap_attention(copy.deepcopy(plain(name)), "constant", constants=merged(name))
    model, inputs = copy.deepcopy(plain(name)), make_inputs(name)
    before = snapshot(model)
    swap_attention(model, "folded", constants=merged(name))
    with torch.no_grad():
        assert torch.allclose(encode(model, inputs), encode(constant, inputs), rtol=0, atol=1e-9)
        assert not torch.allclose(encode(model, inputs), encode(plain(name), inputs), rtol=0, atol=1e-3)
    assert {type(part) for part in model.modules()} >= {FoldedOutput, FoldedValue}
    restore_attention(model)
    assert snapshot(model) == before
    with torch.no_grad():
        assert torch.equal(encode(model, inputs), encode(plain(name), inputs))


@pytest.mark.parametrize("name", sorted(REFUSED & set(NAMES)))
def test_projections_that_are_not_one_matrix_are_refused(name):
    model = copy.deepcopy(plain(name))
    before = snapshot(model)
    with pytest.raises(UnsupportedEncoderError, match=r'kind "folded" cannot make one matrix.*Use kind "constant"'):
        swap_attention(model, "folded", constants=merged(name))
    assert snapshot(model) == before


def test_every_family_says_where_its_values_are_or_that_they_are_fused():
    for name in NAMES:
        assert (FAMILIES[CASES[name].model_type].value is None) == (name in FUSED | GROUPED), name


def test_one_product_less():
    """The work that is saved, counted: d^2 of the multiply-accumulates of each token and layer."""
    from torch.utils.flop_counter import FlopCounterMode

    def counted(model):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            encode(model, inputs)
            encode(model, inputs)
        return counter.get_total_flops()

    inputs = make_inputs("bert", batch=16, padded=False)
    constant = swap_attention(copy.deepcopy(plain("bert")), "constant", constants=merged("bert"))
    layers, tokens, hidden = CASES["bert"].layers, inputs["input_ids"].numel(), plain("bert").config.hidden_size
    assert counted(constant) - counted(folded("bert")) >= 2 * 2 * layers * tokens * hidden**2 - 2 * layers * hidden**3


def test_follows_the_weights():
    """No product of older weights is used: after an optimizer's step, a copy in place, and a change of dtype."""
    model, inputs = folded("bert"), make_inputs("bert")
    constant = swap_attention(copy.deepcopy(plain("bert")), "constant", constants=merged("bert"))
    with torch.no_grad():
        encode(model, inputs)
        for one in (model, constant):
            one.encoder.layer[1].attention.self.value.weight.mul_(2.0)
            one.encoder.layer[2].attention.output.dense.weight.mul_(0.5)
        assert torch.allclose(encode(model, inputs), encode(constant, inputs), rtol=0, atol=1e-9)
        for one in (model, constant):
            one.load_state_dict({**one.state_dict(), **build("bert", seed=3).state_dict()})
        assert torch.allclose(encode(model, inputs), encode(constant, inputs), rtol=0, atol=1e-9)
        assert torch.allclose(encode(model.float(), inputs), encode(constant.float(), inputs), rtol=0, atol=1e-4)


def test_gradients_are_those_of_constant_heads():
    model, inputs = folded("bert"), make_inputs("bert")
    constant = swap_attention(copy.deepcopy(plain("bert")), "constant", constants=merged("bert"))
    for one in (model, constant):
        encode(one, inputs).square().sum().backward()
    expected = {name: parameter.grad for name, parameter in constant.named_parameters()}
    for name, parameter in model.named_parameters():
        if ".papa." not in name and parameter.requires_grad and expected[name] is not None:
            assert torch.allclose(parameter.grad, expected[name], rtol=1e-7, atol=1e-9), name
    assert model.encoder.layer[0].attention.self.value.weight.grad.abs().sum() > 0


def test_same_keys_and_copies():
    model, inputs = folded("bert"), make_inputs("bert")
    added = {key for key in model.state_dict() if ".papa." not in key}
    assert added == set(plain("bert").state_dict())
    other = copy.deepcopy(model)
    with torch.no_grad():
        expected = encode(model, inputs)
        restore_attention(model)
        assert torch.equal(encode(other, inputs), expected)
        fresh = build("bert", seed=4)
        state = other.state_dict()
        assert swap_as_saved(fresh, state)
        fresh.load_state_dict(state)
        assert torch.equal(encode(fresh, inputs), expected)


def test_waits_and_is_suspended_with_both_projections():
    model, inputs, seen = build("bert"), make_inputs("bert"), []
    swap_attention(model, "folded", max_length=CASES["bert"].length)
    with torch.no_grad():
        assert torch.equal(encode(model, inputs), encode(plain("bert"), inputs))
        load_constants(model, merged("bert"))
        assert torch.equal(encode(model, inputs), encode(folded("bert"), inputs))
        observers = [lambda attention, mask: seen.append(attention)] * CASES["bert"].layers
        with observe_attention(model, observers):
            observed = encode(model, inputs)
    assert len(seen) == CASES["bert"].layers
    assert torch.allclose(observed, encode(plain("bert"), inputs), rtol=0, atol=1e-9)


def test_attention_matrices_and_dropout():
    model, inputs = folded("bert"), make_inputs("bert")
    constant = swap_attention(build("bert", "eager"), "constant", constants=merged("bert"))
    with torch.no_grad():
        given, expected = (
            one(**inputs, output_attentions=True) for one in (swap_attention(build("bert", "eager"), "folded",
                                                                            constants=merged("bert")), constant)
        )  # fmt: skip
    for own, other in zip(given.attentions, expected.attentions, strict=True):
        assert torch.allclose(own, other, rtol=0, atol=1e-12)
    noisy = swap_attention(build("bert", dropout=0.5), "folded", constants=merged("bert")).train()
    for module in noisy.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    torch.manual_seed(0)
    outputs = torch.stack([encode(noisy, inputs).detach() for _ in range(2)])
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(encode(noisy.eval(), inputs), encode(model, inputs))


def test_kinds_by_layer():
    constants = merge_constants(make_constants("bert"), layers=[1])
    kinds = folded_kinds(constants)
    assert kinds == ["constant", "folded", "constant"]
    model = swap_attention(copy.deepcopy(plain("bert")), kinds, constants=constants)
    constant = swap_attention(copy.deepcopy(plain("bert")), "constant", constants=constants)
    inputs = make_inputs("bert")
    with torch.no_grad():
        assert torch.allclose(encode(model, inputs), encode(constant, inputs), rtol=0, atol=1e-9)
    assert [layer.constants.shape[0] for layer in swapped_layers(model)] == [4, 1, 4]


def test_heads_with_different_constants_are_refused():
    with pytest.raises(PapaError, match=r"heads of layer 0 have different constants.*merge_constants"):
        swap_attention(copy.deepcopy(plain("bert")), "folded", constants=make_constants("bert"))


def test_some_heads_only_are_refused():
    with pytest.raises(PapaError, match=r"kind 'folded' makes one map.*pass heads=.all."):
        swap_attention(copy.deepcopy(plain("bert")), "folded", constants=merged("bert"), heads=[(0, 1)])


def test_layers_that_share_a_module_are_folded_together():
    name = "albert"
    kinds = ["folded", "constant", "folded"]
    with pytest.raises(PapaError, match=r"layers \[0, 1, 2\] share one module.*folded"):
        swap_attention(copy.deepcopy(plain(name)), kinds, constants=merged(name))


def test_an_adapter_on_the_values_gets_what_it_expects():
    """A wrapped projection is called as before, because the wrapper needs its own output."""
    model, inputs = folded("bert"), make_inputs("bert")
    constant = swap_attention(copy.deepcopy(plain("bert")), "constant", constants=merged("bert"))
    with torch.no_grad():
        for one in (model, constant):
            attention = one.encoder.layer[0].attention.self
            attention.value = nn.Sequential(attention.value)
            one.encoder.layer[1].attention.output.dense = nn.Sequential(one.encoder.layer[1].attention.output.dense)
        assert torch.allclose(encode(model, inputs), encode(constant, inputs), rtol=0, atol=1e-9)
        restore_attention(model)
        assert torch.equal(encode(model, inputs), encode(plain("bert"), inputs))
    assert type(model.encoder.layer[1].attention.output.dense[0]) is nn.Linear


def test_constants_of_one_head_need_no_merging():
    values = torch.rand(3, 1, 10, 10, dtype=torch.float64).expand(3, 4, 10, 10)
    shared = AttentionConstants(values.clone(), torch.ones(10, 10))
    assert folded_kinds(shared) == ["folded"] * 3
    with torch.no_grad():
        inputs = make_inputs("bert")
        constant = swap_attention(copy.deepcopy(plain("bert")), "constant", constants=shared)
        assert torch.allclose(encode(folded("bert", shared), inputs), encode(constant, inputs), rtol=0, atol=1e-9)
