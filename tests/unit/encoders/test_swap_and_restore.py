"""Swapping adds modules and parameters to an encoder, and restoring removes all of them."""

import copy
import gc
import io
import json
import warnings
import weakref

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification
from unit.encoders.tiny_encoders import (
    HEADS,
    LAYERS,
    LENGTH,
    MODEL_TYPES,
    PARTIAL,
    build,
    make_config,
    make_constants,
    make_inputs,
    projections,
    randomize,
    self_attentions,
    snapshot,
)

from papa_lightning import gate_logits, restore_attention, swap_attention
from papa_lightning.calibration import ConstantsMismatchWarning
from papa_lightning.encoders import (
    is_calibrated,
    load_constants,
    observe_attention,
    swap_as_saved,
    swapped_layers,
    weights_fingerprint,
)
from papa_lightning.errors import ConstantsFileError, PapaError

SWAPS = {
    "all": ("constant", "all"),
    "partial": ("constant", PARTIAL),
    "none": ("constant", []),
    "gated": ("gated", "all"),
}


def outputs(model, inputs=None):
    with torch.no_grad():
        return model(**(inputs or make_inputs()))[0]


def swap(model, name, **options):
    kind, heads = SWAPS[name]
    return swap_attention(model, kind, **({"constants": make_constants()} | options), heads=heads)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", SWAPS)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_restored_encoder_is_the_encoder_of_before(model_type, name, implementation):
    model = build(model_type, implementation=implementation)
    expected, before = outputs(model), snapshot(model)
    assert swap(model, name) is model
    assert is_calibrated(model)
    outputs(model)
    assert restore_attention(model) is model
    assert snapshot(model) == before
    assert torch.equal(outputs(model), expected)
    assert not is_calibrated(model)
    assert swapped_layers(model) == []


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_restoration_of_training_mode_and_frozen_parameters(model_type):
    """Parameters that were frozen before the swap stay frozen, the others do not; modes stay too."""
    model = build(model_type, attention_dropout=0.1).train()
    query, key, _ = projections(self_attentions(model)[0])
    query.requires_grad_(False)
    key.eval()
    before = snapshot(model)
    for name in SWAPS:
        swap(model, name)
        restore_attention(model)
        assert snapshot(model) == before


@pytest.mark.parametrize("name", SWAPS)
def test_restoring_twice_or_never_swapped(name):
    model = build()
    before = snapshot(model)
    restore_attention(model)
    assert snapshot(model) == before
    restore_attention(restore_attention(swap(model, name)))
    assert snapshot(model) == before


def test_second_swap_replaces_the_first():
    model, fresh = build(), build()
    before = snapshot(model)
    for name in ("partial", "gated", "gated", "all", "none", "partial", "partial"):
        swap(model, name)
        expected = swap(fresh, name)
        assert torch.equal(outputs(model), outputs(expected))
        assert list(model.state_dict()) == list(expected.state_dict())
        assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in expected.parameters()]
        fresh = restore_attention(fresh)
    restore_attention(model)
    assert snapshot(model) == before


@pytest.mark.parametrize("name", SWAPS)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_keys(model_type, name):
    model = build(model_type, auto=AutoModelForSequenceClassification)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    after = swap(model, name).state_dict()
    added = set(after) - set(before)
    assert [key for key in after if key not in added] == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(".papa." in key for key in added)
    assert len(added) == LAYERS * (3 if name == "gated" else 2)
    restore_attention(model).load_state_dict(before, strict=True)


@pytest.mark.parametrize("name", SWAPS)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_swapped_state_dict_calibrates_a_waiting_encoder(model_type, name):
    model = swap(build(model_type), name)
    with torch.no_grad():
        for number, parameter in enumerate(gate_logits(model) if name == "gated" else []):
            parameter.fill_(number - 1.0)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    kind, heads = SWAPS[name]
    other = swap_attention(build(model_type, seed=9), kind, max_length=LENGTH, heads=heads)
    assert not is_calibrated(other)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert is_calibrated(other)
    assert torch.equal(outputs(other), outputs(model))
    assert torch.equal(outputs(restore_attention(other)), outputs(restore_attention(model)))


@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_may_be_assigned(assign):
    model, other = swap(build(), "partial"), swap(build(seed=9), "partial", constants=None, max_length=LENGTH)
    other.load_state_dict(model.state_dict(), assign=assign)
    assert torch.equal(outputs(other), outputs(model))
    restore_attention(other)
    assert torch.equal(outputs(other), outputs(build()))


@pytest.mark.parametrize("heads", ["all", [(0, 0)], [(0, 1), (0, 2), (0, 3), *PARTIAL[3:]]])
def test_state_dict_of_other_heads_is_refused(heads):
    state = swap(build(), "partial").state_dict()
    other = swap_attention(build(seed=9), "constant", max_length=LENGTH, heads=heads)
    with pytest.raises(PapaError, match=r"the checkpoint has constant heads \[0, 2, 3\] in layer 0"):
        other.load_state_dict(state)
    assert not is_calibrated(other)


def test_state_dict_of_another_length_is_refused():
    state = swap(build(), "partial").state_dict()
    other = swap_attention(build(), "constant", max_length=LENGTH - 1, heads=PARTIAL)
    with pytest.raises(PapaError, match=r"max_length 10 in layer 0.* max_length 9"):
        other.load_state_dict(state)
    assert not is_calibrated(other)


@pytest.mark.parametrize("name", SWAPS)
@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
@pytest.mark.parametrize("copied_by", ["deepcopy", "torch.save"])
def test_copies_are_independent(copied_by, model_type, name):
    model = swap(build(model_type), name)
    if copied_by == "deepcopy":
        other = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    expected = outputs(model)
    assert torch.equal(outputs(other), expected)
    assert {p.data_ptr() for p in other.parameters() if p.numel()}.isdisjoint(
        p.data_ptr() for p in model.parameters() if p.numel()
    )
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(outputs(model), expected)
    restore_attention(other)
    assert torch.equal(outputs(model), expected)
    restore_attention(model)
    assert list(other.state_dict()) == list(model.state_dict())
    assert all(module.config is other.config for module in self_attentions(other))
    other.load_state_dict(model.state_dict())
    assert torch.equal(outputs(other), outputs(model))
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("name", SWAPS)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_encoders_that_share_a_configuration_object(model_type, name):
    config = make_config(model_type)
    kind = type(AutoModel.from_config(config))
    swapped, other = (randomize(kind(config), seed).double() for seed in range(2))
    assert swapped.config is other.config
    expected, before = outputs(other), json.dumps(config.to_dict(), default=str)
    implementation = config._attn_implementation
    swap(swapped, name)
    assert torch.equal(outputs(other), expected)
    assert json.dumps(config.to_dict(), default=str) == before
    assert config._attn_implementation == implementation
    late = randomize(kind(config), 1).double()  # built from the configuration while the other is swapped
    assert torch.equal(outputs(late), expected)
    swap(other, "all")
    restore_attention(swapped)
    assert torch.equal(outputs(other), outputs(swap(late, "all")))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_unused_queries_and_keys_are_frozen(model_type):
    model = swap(build(model_type), "partial")
    for layer, module in enumerate(self_attentions(model)):
        query, key, value = projections(module)
        expected = layer != 1  # all heads of layer 1 are constant
        assert [p.requires_grad for p in query.parameters()] == [expected, expected]
        assert [p.requires_grad for p in key.parameters()] == [expected, expected]
        assert all(p.requires_grad for p in value.parameters())
    restore_attention(model)
    assert all(p.requires_grad for p in model.parameters())


def test_waiting_encoder_freezes_them_already():
    """DDP counts the trainable parameters before calibration runs."""
    model = swap_attention(build(), "constant", max_length=LENGTH)
    assert not any(p.requires_grad for module in self_attentions(model) for p in projections(module)[0].parameters())
    swap_attention(model, "gated", max_length=LENGTH)
    assert all(p.requires_grad for module in self_attentions(model) for p in projections(module)[0].parameters())


def test_optimizer_made_before_the_swap_still_trains_the_encoder():
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    swap(model, "partial")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(**make_inputs()).last_hidden_state.square().mean().backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    trained = outputs(model)
    restore_attention(model)
    assert torch.equal(outputs(swap(model, "partial")), trained)
    layers = [name.split("layer.")[1] for name in moved if "layer." in name]
    assert "0.attention.self.query.weight" in layers
    assert "1.attention.self.query.weight" not in layers
    assert "1.attention.self.value.weight" in layers


def test_moving_and_casting_a_swapped_encoder():
    model = swap(build(), "partial").float()
    restore_attention(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(outputs(model), outputs(build(dtype=torch.float32)))
    swap(model, "gated").to("meta")
    assert {p.device.type for p in restore_attention(model).parameters()} == {"meta"}


def test_train_and_eval_reach_what_was_added():
    model = swap(build().eval(), "partial")
    assert {module.training for module in model.modules()} == {False}
    for mode in (True, False):
        model.train(mode)
        assert {module.training for module in model.modules()} == {mode}
    model.train()
    restore_attention(model)
    assert {module.training for module in model.modules()} == {True}
    swap(model, "all")
    assert {module.training for module in model.modules()} == {True}


def test_constants_that_arrive_later():
    model = swap_attention(build(), "gated", max_length=LENGTH)
    load_constants(model, make_constants())
    load_constants(model, make_constants(seed=1))
    assert torch.equal(outputs(model), outputs(swap(build(), "gated", constants=make_constants(seed=1))))
    with pytest.raises(ConstantsFileError, match=r"max_length 9, but max_length is 10"):
        load_constants(model, make_constants(length=9))
    with pytest.raises(PapaError, match=r"not swapped"):
        load_constants(build(), make_constants())


def test_gate_logits():
    model = swap(build(auto=AutoModelForSequenceClassification), "gated")
    gates = gate_logits(model)
    assert [tuple(gate.shape) for gate in gates] == [(HEADS,)] * LAYERS
    assert all(isinstance(gate, nn.Parameter) and gate.requires_grad for gate in gates)
    assert all(gate is module.papa.gate_logits for gate, module in zip(gates, self_attentions(model), strict=True))
    for encoder in (build(), swap(build(), "all")):
        with pytest.raises(PapaError, match=r"no gates"):
            gate_logits(encoder)


def test_fingerprint_sees_weights_and_nothing_else():
    model = build(auto=AutoModelForSequenceClassification).bert
    expected = weights_fingerprint(model)
    assert weights_fingerprint(build()) == expected
    without_pooler = build(auto=AutoModelForTokenClassification).bert
    assert weights_fingerprint(without_pooler) == expected
    assert len(expected) == 64
    for name in SWAPS:
        assert weights_fingerprint(swap(model, name)) == expected
    assert weights_fingerprint(restore_attention(model)) == expected
    assert weights_fingerprint(build(seed=1)) != expected
    with torch.no_grad():
        model.encoder.layer[2].output.dense.bias[0] += 1e-6
    assert weights_fingerprint(model) != expected
    assert len(weights_fingerprint(build(dtype=torch.bfloat16))) == 64


def test_weights_that_are_not_here_have_no_fingerprint(recwarn):
    """As those of a model that is made on the meta device, and shards: nobody can say that they are others."""
    model = build().to("meta")
    assert weights_fingerprint(model) is None
    own = {"model": {"name": "tiny", "type": "bert", "weights": weights_fingerprint(build())}}
    make_constants(metadata=own).check(model)
    assert not recwarn.list


def test_constants_of_other_weights_warn_once():
    model = build()
    own = {"model": {"name": "tiny", "type": "bert", "weights": weights_fingerprint(model)}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        swap_attention(model, "constant", constants=make_constants(metadata=own))
    other = {"model": own["model"] | {"weights": "0" * 64}}
    with pytest.warns(ConstantsMismatchWarning, match=r"other weights \(model 'tiny'\)") as caught:
        swap_attention(model, "constant", constants=make_constants(metadata=other))
    assert len(caught) == 1


@pytest.mark.parametrize("swapped", [False, True])
def test_observation_ends_after_an_exception(swapped):
    model = swap(build(), "partial") if swapped else build()
    before, expected = snapshot(model), outputs(model)
    seen = []

    def observer(attention, mask):
        seen.append(attention.shape)
        if len(seen) == 2:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), observe_attention(model, [observer] * LAYERS):
        outputs(model)
    assert seen == [(4, HEADS, LENGTH, LENGTH)] * 2
    assert snapshot(model) == before
    assert torch.equal(outputs(model), expected)


def test_a_restored_encoder_is_saved_as_a_plain_one(tmp_path):
    model = swap(build(dtype=torch.float32), "partial", constants=make_constants(dtype=torch.float32))
    restore_attention(model).save_pretrained(tmp_path)
    assert "papa" not in (tmp_path / "config.json").read_text()
    assert torch.equal(outputs(AutoModel.from_pretrained(tmp_path)), outputs(model))


def test_restored_encoder_keeps_nothing_alive():
    model = swap(build(), "all")
    mixer = weakref.ref(swapped_layers(model)[0])
    restore_attention(model)
    gc.collect()
    assert mixer() is None


@pytest.mark.parametrize("kind", ["constant", "gated"])
def test_swap_as_saved_makes_a_plain_encoder_load_strictly(kind):
    saved, plain = build("bert").eval(), build("bert", seed=1).eval()
    heads = {"heads": PARTIAL} if kind == "constant" else {}
    swap_attention(saved, kind, constants=make_constants(), **heads)
    assert not swap_as_saved(plain, {f"encoder.{key}": value for key, value in saved.state_dict().items()})
    assert swap_as_saved(plain, saved.state_dict())
    plain.load_state_dict(saved.state_dict(), strict=True)
    inputs = make_inputs()
    with torch.no_grad():
        assert torch.equal(plain(**inputs).last_hidden_state, saved(**inputs).last_hidden_state)
