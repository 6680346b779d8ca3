"""Kinds without matrices of their own, and shared ones, in encoders of every family."""

import copy
import warnings

import pytest
import torch
from conformance.explicit import assert_close, real, run
from conformance.tiny_models import (
    CASES,
    HEADS,
    NAMES,
    build,
    calibrated,
    cases,
    encoder_of,
    implementations,
    make_constants,
    make_inputs,
    plain,
    saved,
    snapshot,
)
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from papa_lightning import AttentionConstants, CompactConstants, PapaError, restore_attention, swap_attention
from papa_lightning.attention import KINDS as REGISTERED
from papa_lightning.encoders import is_calibrated, load_constants, observe_attention, swap_as_saved, swapped_layers
from papa_lightning.errors import HeadSelectionError

OPTIONS = {"window": 3}
#: Every kind of whole layers that can do without constants.
KINDS = [
    name
    for name, mixer in REGISTERED.items()
    if mixer.whole_layer and not mixer.needs_constants(mixer.complete_options({}, constants_given=False))
]
#: One family for every way in which an encoder is opened, each with two kinds; every kind in two families.
SEAMS = ["bert", "gpt2", "llama", "albert", "deberta-v2-own", "t5"]
PAIRS = [(name, KINDS[(place + step) % len(KINDS)]) for place, name in enumerate(SEAMS) for step in (0, 3)]
FACTORS = [("bert", "aft_full", {"inner": 4}), ("gpt2", "aft_local", {"window": 3, "inner": 4, "per_head": False})]


def swap(name, model, kind, **options):
    kinds = [kind] if isinstance(kind, str) else kind
    known = {option for one in kinds for option in REGISTERED[one].option_names()}
    own = {option: value for option, value in OPTIONS.items() if option in known}
    return swap_attention(model, kind, **{"max_length": CASES[name].length, "options": own} | options)


def mixed_kinds(name):
    """Other kinds in each layer of a family, and other ones in each family."""
    start = NAMES.index(name)
    return [KINDS[(start + layer) % len(KINDS)] for layer in range(CASES[name].layers)]


@cases()
def test_every_family(name):
    model, inputs = build(name), make_inputs(name)
    before, expected = snapshot(model), run(model, inputs)
    output = encoder_of(build(name))(**inputs).last_hidden_state
    unused = _without_gradient(encoder_of(model), inputs)
    swap(name, model, mixed_kinds(name))
    assert is_calibrated(model)
    mixed = run(model, inputs)
    assert mixed.isfinite().all()
    assert not torch.allclose(real(name, inputs, mixed), real(name, inputs, output), atol=1e-3)
    assert _without_gradient(encoder_of(model), inputs) <= unused, "DDP waits for parameters that no loss reaches"
    assert [key for key in model.state_dict() if "papa." not in key] == list(plain(name).state_dict())
    restore_attention(model).zero_grad()
    assert snapshot(model) == before
    assert torch.equal(run(model, inputs), expected)


def constants_for(mixer):
    """Constants in the form that a kind takes; None for one that needs none."""
    if not mixer.needs_constants(mixer.complete_options({}, constants_given=True)):
        return None
    constants = make_constants("bert")
    if mixer.constants_form == "compact":
        return CompactConstants.fit(constants, width=4)
    if mixer.constants_form == "equal_matrices":
        return AttentionConstants(constants.values[:, :1].expand_as(constants.values).clone(), constants.pair_counts)
    return constants


@pytest.mark.parametrize("kind", list(REGISTERED))
def test_every_registered_kind_ignores_padding_and_is_undone(kind):
    model, inputs, mixer = build("bert"), make_inputs("bert"), REGISTERED[kind]
    before, expected = snapshot(model), run(model, inputs)
    swap("bert", model, kind, constants=constants_for(mixer))
    found, noise = run(model, inputs), torch.randint(3, 30, inputs["input_ids"].shape)
    tokens = inputs["input_ids"].where(inputs["attention_mask"].bool(), noise)
    assert found.isfinite().all()
    assert_close(real("bert", inputs, run(model, {**inputs, "input_ids": tokens})), real("bert", inputs, found))
    assert torch.equal(found, expected) == (kind == "dynamic")
    restore_attention(model)
    assert snapshot(model) == before
    assert torch.equal(run(model, inputs), expected)


def _without_gradient(encoder, inputs):
    encoder.zero_grad()
    encoder(**inputs).last_hidden_state.square().sum().backward()
    return {name for name, one in encoder.named_parameters() if one.requires_grad and one.grad is None}


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "roformer", "albert"])
def test_queries_and_keys_are_the_encoders_own(name):
    """The first layer gets those whose scaled products make the attention of the original."""
    model, inputs, scaling = swap(name, build(name), "additive"), make_inputs(name), (32 // HEADS) ** -0.5
    inputs["attention_mask"][:, 0] = 1  # in the order of the batch
    mixer, seen = swapped_layers(model)[0], {}
    mixer.register_forward_pre_hook(lambda _, args: seen.update(given=args[0]))
    run(model, inputs)
    with observe_attention(model, [lambda attention, _: seen.setdefault("attention", attention)] * CASES[name].layers):
        run(model, inputs)
    scores = seen["given"].query @ seen["given"].key.transpose(-1, -2) * scaling
    allowed = mixer.reach.allowed(10) & inputs["attention_mask"].bool()[:, None, None]
    expected = scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1)
    rows = inputs["attention_mask"].bool()
    assert_close(seen["attention"].transpose(1, 2)[rows], expected.transpose(1, 2)[rows])


@pytest.mark.parametrize("name", ["bert", "modernbert", "mistral", "albert-groups", "t5", "vit"])
def test_a_start_from_constants_is_the_constant_encoder(name):
    inputs, constants = make_inputs(name), calibrated(name, plain(name))
    constant, full, local = (
        real(name, inputs, run(swap(name, build(name), kind, constants=constants, options=options), inputs))
        for kind, options in (("constant", None), ("aft_full", None), ("aft_local", {"window": CASES[name].length}))
    )
    assert_close(full, constant, {"atol": 1e-5, "rtol": 0})
    assert_close(local, constant, {"atol": 1e-5, "rtol": 0})


@pytest.mark.parametrize(
    ("name", "kind", "options"), [*((*pair, {}) for pair in PAIRS), *FACTORS], ids=lambda part: str(part)
)
def test_states_and_copies(name, kind, options):
    model, inputs = swap(name, build(name), kind, **({"options": options} if options else {})), make_inputs(name)
    expected, other = run(model, inputs), build(name, seed=1)
    state = torch.load(saved(encoder_of(model).state_dict()), weights_only=True)
    assert swap_as_saved(encoder_of(other), state)
    assert swapped_layers(other)[0].options() == swapped_layers(model)[0].options()
    encoder_of(other).load_state_dict(state, strict=True)
    assert torch.equal(run(other, inputs), expected)
    for copied in (copy.deepcopy(model), torch.load(saved(model), weights_only=False)):
        assert torch.equal(run(copied, inputs), expected)
        assert torch.equal(run(restore_attention(copied), inputs), run(plain(name), inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.load_state_dict(plain(name).state_dict(), strict=True)
    assert torch.equal(run(model, inputs), expected)


@pytest.mark.parametrize(
    ("name", "kind", "dtype"),
    [(*pair, (torch.bfloat16, torch.float16)[number % 2]) for number, pair in enumerate(PAIRS)],
)
def test_half_precision(name, kind, dtype):
    exact = swap(name, build(name), kind)
    rough = copy.deepcopy(exact).to(dtype)
    inputs = make_inputs(name)
    difference = real(name, inputs, run(rough, inputs).double() - run(exact, inputs))
    plain_difference = real(name, inputs, run(build(name, dtype=dtype), inputs).double() - run(plain(name), inputs))
    assert difference.abs().mean() <= 3 * plain_difference.abs().mean() + 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing(kind):
    model, inputs = swap("bert", build("bert"), kind).train(), make_inputs("bert")
    gradients = []
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**inputs).last_hidden_state.square().sum().backward()
        gradients.append([one.grad.clone() for one in model.parameters() if one.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other)


@pytest.mark.no_cover  # which doubles the time of torch's compiler; it runs no line of ours
def test_a_compiled_encoder():
    model, inputs = swap("bert", build("bert"), ["aft_full", "aft_local", "shared"]), make_inputs("bert")
    compiled = torch.compile(model, backend="eager")
    assert_close(run(compiled, inputs), run(model, inputs))


def test_kinds_by_layer():
    """A dynamic layer is the original one, and each kind takes the options that it has."""
    model, inputs, constants = build("bert"), make_inputs("bert"), make_constants("bert")
    swap_attention(model, ["dynamic", "constant", "aft_local"], constants=constants, options={"window": 4})
    found = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert torch.equal(found.hidden_states[1], plain("bert")(**inputs, output_hidden_states=True).hidden_states[1])
    constant = swap_attention(build("bert"), "constant", constants=constants, heads={1: range(HEADS)})
    expected = constant(**inputs, output_hidden_states=True).hidden_states[2]
    assert_close(found.hidden_states[2], expected)
    layers = swapped_layers(model)
    assert [layer.constant_heads for layer in layers] == [(), (0, 1, 2, 3), (0, 1, 2, 3)]
    assert [layer.options() for layer in layers[:2]] == [{}, {}]
    assert layers[2].options() == {"window": 4, "per_head": True, "inner": None, "init": "from_constants"}


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "albert-groups", "deberta-v2-own", "mpnet"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_matrices(name, implementation):
    """One entry a layer: None, and one warning that says why, where a kind has none; a shared matrix for all heads."""
    if implementation not in implementations(name):
        pytest.skip("the family has one implementation")
    layers = CASES[name].layers
    kinds = [("aft_simple", "dynamic", "shared", "additive")[layer % 4] for layer in range(layers)]
    encoder, inputs = encoder_of(swap(name, build(name, implementation), kinds)), make_inputs(name)
    with pytest.warns(UserWarning, match=r"None for layers \[0.* makes no attention matrices") as caught:
        output, _ = [encoder(**inputs, output_attentions=True, output_hidden_states=True) for _ in range(2)]
    assert len(caught) == 1
    assert [one is None for one in output.attentions] == [kind in ("aft_simple", "additive") for kind in kinds]
    first = encoder_of(swap(name, build(name, "eager"), ["aft_simple"] + ["dynamic"] * (layers - 1)))
    expected = first(**inputs, output_attentions=True).attentions

    assert_close(*(real(name, inputs, one[1].transpose(1, 2)) for one in (output.attentions, expected)))
    assert torch.equal(output.attentions[2], output.attentions[2][:, :1].expand(-1, HEADS, -1, -1))
    assert len(output.hidden_states) == layers + 1
    pairs = encoder(**inputs, output_attentions=True, return_dict=False)
    found = [one for one in pairs if type(one) is tuple and len(one) == layers]
    assert len(found) == 1
    assert [one is None for one in found[0]] == [one is None for one in output.attentions]


def test_relative_positions_are_left_out_and_frozen(monkeypatch):
    """DeBERTa: no terms of positions for attention-free layers, and none of their parameters for DDP to wait for."""
    model, inputs = build("deberta-v2-own"), make_inputs("deberta-v2-own")
    swap("deberta-v2-own", model, "aft_simple")
    frozen = {name for name, one in model.named_parameters() if not one.requires_grad}
    assert {name.split(".")[-2] for name in frozen if "attention" in name} == {"pos_key_proj", "pos_query_proj"}
    assert "encoder.rel_embeddings.weight" in frozen
    expected = run(model, inputs)
    with torch.no_grad():
        for name, one in model.named_parameters():
            if name in frozen:
                one.fill_(torch.nan)
    with monkeypatch.context() as never_called:
        never_called.setattr(DisentangledSelfAttention, "disentangled_attention_bias", None)
        assert torch.equal(run(model, inputs), expected)
    assert all(one.requires_grad for one in restore_attention(model).parameters())


def test_one_dynamic_layer_keeps_the_table_of_positions():
    model = swap("deberta-v2-own", build("deberta-v2-own"), ["aft_simple", "dynamic", "aft_simple"])
    assert model.encoder.rel_embeddings.weight.requires_grad


def test_a_start_from_constants_waits_for_them():
    model, inputs = build("bert"), make_inputs("bert")
    swap("bert", model, "aft_full", options={"init": "from_constants"})
    assert not is_calibrated(model)
    assert torch.equal(run(model, inputs), run(plain("bert"), inputs))
    load_constants(model, make_constants("bert"))
    expected = run(swap("bert", build("bert"), "aft_full", constants=make_constants("bert")), inputs)
    assert torch.equal(run(model, inputs), expected)


def test_without_max_length_all_positions_count():
    model = swap_attention(build("bert"), "aft_full")
    assert swapped_layers(model)[0].position_bias.table.shape == (HEADS, 24, 24)


NO_ERROR = {"max_length": 10, "options": None}
REFUSED = {
    "unknown option": (
        {"kind": "aft_full", "options": {"window": 3}},
        r"options has 'window'.*'aft_full' has per_head",
    ),
    "option of no layer": (
        {"kind": ["dynamic", "constant", "gated"], "options": {"window": 3}},
        "options has 'window'",
    ),
    "wrong option of a layer": (
        {"kind": ["aft_local", "aft_simple", "dynamic"], "options": [{}, {"window": 3}, {}]},
        "options has 'window'.*'aft_simple' has causal",
    ),
    "too few kinds": ({"kind": ["aft_full"]}, "kind names 1 layers, but the encoder has 3"),
    "no kind": ({"kind": 3}, "kind is 3, but must be the name of a kind, or a list"),
    "too few options": ({"kind": "aft_full", "options": [{}]}, "options has 1 maps, but the encoder has 3"),
    "no options": ({"kind": "aft_full", "options": 3}, "options is 3, but must be a map"),
    "window": ({"kind": "aft_local", "options": {"window": 11}}, "window is 11, but max_length is only 10"),
    "no constants": (
        {"kind": "aft_local", "options": {"init": "from_constants", "window": 3}, "max_length": None},
        "constants is None: pass the AttentionConstants",
    ),
    "idle constants": ({"kind": "additive", "constants": True}, "constants are given, but layers of kind additive"),
    "paper": ({"kind": "aft_full", "options": {"init": "paper"}, "constants": True}, "constants are given"),
    "causal": ({"kind": "aft_full", "options": {"causal": True}}, "causal is True, but layer 0 .* bidirectional"),
    "too long": ({"kind": "aft_full", "max_length": 25}, "max_length is 25, .* from 1 to 24"),
    "some heads": ({"kind": "aft_full", "heads": [(0, 1)]}, "heads has 1 of 4 heads in layer 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_change_nothing(case):
    arguments, message = REFUSED[case]
    arguments = NO_ERROR | arguments | ({"constants": make_constants("bert")} if "constants" in arguments else {})
    model, inputs = swap("bert", build("bert"), "shared"), make_inputs("bert")
    expected = run(model, inputs)
    with pytest.raises(HeadSelectionError if case == "some heads" else PapaError, match=message):
        swap_attention(model, **arguments)
    assert torch.equal(run(model, inputs), expected)
    assert [layer.kind for layer in swapped_layers(model)] == ["shared"] * 3


def test_a_state_of_other_options_is_refused():
    one, other = (swap("bert", build("bert"), "aft_local", options={"window": window}) for window in (2, 3))
    with pytest.raises(PapaError, match=r"kind 'aft_local' with options .*'window': 2.*with .*'window': 3"):
        other.load_state_dict(one.state_dict())


def test_encoders_without_a_limit_want_a_length():
    with pytest.raises(PapaError, match="max_length is None, and the encoder names no limit"):
        swap_attention(build("t5"), "aft_simple")
