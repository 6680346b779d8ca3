"""One suite for all families of encoders: what calibration and a swap promise, against attention written out.

Every test runs for every case of tiny_models.py whose family the package has, so that a failure names both: its
parameter is the family, its name is the broken promise. When a new release of transformers breaks something, look here
first: test_the_explicit_form_is_attention and test_structure fail where transformers computes attention in another
way than explicit.py thinks, the others where the package no longer fits it.
"""

import copy

import pytest
import torch
from conformance.explicit import (
    allowed_pairs,
    assert_close,
    averages,
    constant_heads,
    exact_softmax,
    explicit_attention,
    explicit_outputs,
    gradients,
    loss_of,
    real,
    run,
    written_out,
)
from conformance.tiny_models import (
    CASES,
    HEADS,
    IMPLEMENTATIONS,
    IN_ALL_MODES,
    MODES,
    NAMES,
    build,
    calibrated,
    cases,
    cases_in_modes,
    encoder_of,
    heads_of,
    implementations,
    make_config,
    make_constants,
    make_gates,
    make_inputs,
    plain,
    saved,
    snapshot,
    swap,
    swapped,
    two_batches,
)
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from papa_lightning import AttentionConstants, PapaError, calibrate, gate_logits, restore_attention, swap_attention
from papa_lightning.encoders import (
    FAMILIES,
    PlainStateWarning,
    encoder_shape,
    find_encoder,
    learn_constants,
    swap_as_saved,
    swapped_layers,
)

AVERAGES = {"atol": 1e-10, "rtol": 1e-10}


@pytest.fixture(autouse=True)
def float64_throughout():
    with exact_softmax():
        yield


def test_every_family_has_a_case():
    assert sorted(set(FAMILIES) - {case.model_type for case in CASES.values()}) == []


@cases()
def test_the_explicit_form_is_attention(name):
    """Observed matrices are those that transformers reports, and outputs are unchanged."""
    model, inputs = plain(name, "eager"), make_inputs(name)
    with explicit_attention(model, CASES[name].layers) as record:
        recorded = run(model, inputs)
    with torch.no_grad():
        output = encoder_of(model)(**inputs, output_attentions=True)
    rounding = {"atol": 1e-5, "rtol": 1e-5}  # some families take the softmax in float32
    assert_close(real(name, inputs, recorded), real(name, inputs, output.last_hidden_state), rounding)
    for reported, matrices in zip(output.attentions or record.matrices, record.matrices, strict=True):
        rows = [real(name, inputs, attention.transpose(1, 2)) for attention in (reported, matrices)]
        assert_close(*rows, rounding)


@cases()
def test_structure(name):
    """Averages are 0 exactly at the pairs that transformers masks in the family."""
    allowed = allowed_pairs(name)
    assert torch.equal(allowed, CASES[name].may_attend())
    values = calibrate(build(name), [make_inputs(name, padded=False)], max_length=CASES[name].length).values
    assert torch.equal(values > 0, allowed[:, None].expand_as(values))


@cases()
def test_shape_and_encoder(name):
    model = build(name)
    assert find_encoder(model) is find_encoder(encoder_of(model)) is encoder_of(model)
    assert encoder_shape(find_encoder(model)) == (CASES[name].layers, HEADS)


@pytest.mark.parametrize(("name", "implementation"), IMPLEMENTATIONS)
def test_averages(name, implementation):
    expected, counts = averages(name, two_batches(name))
    model, inputs = build(name, implementation), make_inputs(name)
    before, outputs = snapshot(model), run(model, inputs)
    constants = calibrated(name, model)
    assert_close(constants.values, expected, AVERAGES)
    assert torch.equal(constants.pair_counts.double(), counts)
    assert snapshot(model) == before, "calibration left something behind"
    assert torch.equal(run(model, inputs), outputs)


@cases_in_modes()
def test_averages_of_a_swapped_encoder(name, mode):
    """They are of the attention that the encoder was pretrained with, and the swap stays."""
    model, inputs = swapped(name, mode), make_inputs(name)
    before, outputs = snapshot(model), run(model, inputs)
    assert_close(calibrated(name, model).values, averages(name, two_batches(name))[0], AVERAGES)
    assert snapshot(model) == before
    assert torch.equal(run(model, inputs), outputs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "implementation"), IMPLEMENTATIONS)
def test_constant_heads(name, implementation, mode):
    """Dense constants, also where the family does not attend: the swapped layer must not look there either."""
    inputs, model = make_inputs(name), swapped(name, mode, implementation)
    result = real(name, inputs, run(model, inputs))
    assert_close(result, explicit_outputs(name, mode, inputs))
    assert not torch.allclose(result, real(name, inputs, run(plain(name), inputs)), atol=1e-3)


@cases()
def test_other_heads(name):
    """One head, two that are no neighbours, and in the last layer all: queries and keys of others are left out."""
    heads = {0: [1], 1: [0, 3], CASES[name].layers - 1: list(range(HEADS))}
    pairs = [(layer, head) for layer, own in heads.items() for head in own]
    model, inputs, constants = build(name), make_inputs(name), make_constants(name)
    swap_attention(model, "constant", constants=constants, heads=heads)
    replace = constant_heads(name, inputs, constants.values, pairs)
    with explicit_attention(plain(name, "eager"), CASES[name].layers, replace):
        expected = run(plain(name, "eager"), inputs)
    assert_close(real(name, inputs, run(model, inputs)), real(name, inputs, expected))


@cases_in_modes("text", "causal", "text to text")
def test_padding_does_not_reach_real_tokens(name, mode):
    short, model = make_inputs(name, length=6, padded=False), swapped(name, mode)
    pads = torch.full((4, 4), model.config.pad_token_id or 0)
    tokens, mask = short["input_ids"], short["attention_mask"]
    padded = {"input_ids": torch.cat([tokens, pads], 1), "attention_mask": torch.cat([mask, torch.zeros_like(pads)], 1)}
    assert_close(run(model, padded)[:, :6], run(model, short))
    assert_close(run(model, {"input_ids": tokens}), run(model, short))


@cases_in_modes("text", "causal", "text to text")
def test_a_sequence_of_padding(name, mode):
    """It reaches neither the outputs of the others, nor the gradients."""
    model, inputs = swapped(name, mode), make_inputs(name)
    inputs["attention_mask"][1] = 0
    others = {key: tensor[[0, 2, 3]] for key, tensor in inputs.items()}
    assert_close(real(name, inputs, run(model, inputs)), real(name, others, run(model, others)))
    found, expected = (gradients(name, model, one) for one in (inputs, others))
    for key, gradient in expected.items():
        assert_close(found[key], gradient)


@cases_in_modes()
def test_a_batch_of_one(name, mode):
    inputs, model = make_inputs(name), swapped(name, mode)
    expected = run(model, inputs)
    for row in range(4):
        one = {key: tensor[row : row + 1] for key, tensor in inputs.items()}
        assert_close(real(name, one, run(model, one)), real(name, one, expected[row : row + 1]))


@cases_in_modes("text", "causal", "text to text", length=[1, 6])
def test_a_shorter_batch(name, mode, length):
    inputs = make_inputs(name, length=length, padded=length > 1)
    assert_close(real(name, inputs, run(swapped(name, mode), inputs)), explicit_outputs(name, mode, inputs))


@cases_in_modes("text", "causal", "text to text")
def test_a_longer_batch_is_refused(name, mode):
    model = swapped(name, mode)
    with pytest.raises(PapaError, match="max_length 10"):
        run(model, make_inputs(name, length=12))
    assert run(model, make_inputs(name)).isfinite().all()


@pytest.mark.parametrize("mode", ["none", "waiting", "waiting gated"])
@pytest.mark.parametrize(("name", "implementation"), IMPLEMENTATIONS)
def test_the_plain_encoder(name, implementation, mode):
    """Bit for bit, where no head is constant, and until the constants come."""
    model, inputs = build(name, implementation), make_inputs(name)
    expected = run(model, inputs)
    constants = {"constants": make_constants(name), "heads": []} if mode == "none" else {}
    swap_attention(model, "gated" if "gated" in mode else "constant", max_length=CASES[name].length, **constants)
    assert torch.equal(run(model, inputs), expected)


@cases(mode=MODES)
def test_attention_matrices(name, mode):
    """On request, one entry a layer, whatever implementation the encoder has; constants where heads are constant."""
    inputs = make_inputs(name)
    with torch.no_grad():
        if encoder_of(plain(name, "eager"))(**inputs, output_attentions=True).attentions is None:
            pytest.skip("the family reports no attention")
    with written_out(name, mode, inputs) as record:
        expected = run(plain(name, "eager"), inputs)
    for implementation in implementations(name):
        encoder = encoder_of(swapped(name, mode, implementation))
        with torch.no_grad():
            output = encoder(**inputs, output_attentions=True, output_hidden_states=True)
            unasked = encoder(**inputs).last_hidden_state
        assert_close(real(name, inputs, output.last_hidden_state), real(name, inputs, unasked))
        assert_close(real(name, inputs, output.last_hidden_state), real(name, inputs, expected))
        assert len(output.attentions) == CASES[name].layers
        assert len(output.hidden_states) == CASES[name].layers + 1
        for attention, matrices in zip(output.attentions, record.matrices, strict=True):
            assert attention.shape == matrices.shape
            assert_close(*(real(name, inputs, one.transpose(1, 2)) for one in (attention, matrices)))


@cases_in_modes()
def test_bfloat16(name, mode):
    """Not much less exact than the plain encoder is in bfloat16."""
    errors, rough = [], torch.bfloat16
    swapped_rough = swap(name, build(name, dtype=rough), mode)
    for exact, model in ((plain(name), plain(name, dtype=rough)), (swapped(name, mode), swapped_rough)):
        difference = run(model, make_inputs(name, dtype=rough)).double() - run(exact, make_inputs(name))
        errors.append(real(name, make_inputs(name), difference).abs().mean())
    assert errors[1] <= 3 * errors[0] + 0.01


@pytest.mark.parametrize(
    ("name", "implementation", "mode"),
    [
        *((*pair, "partial") for pair in IMPLEMENTATIONS),
        *((name, None, mode) for name in IN_ALL_MODES for mode in ("all", "gated", "none")),
    ],
)
def test_restoration(name, implementation, mode):
    model, inputs = build(name, implementation), make_inputs(name)
    before, expected = snapshot(model), run(model, inputs)
    assert swap(name, model, mode) is model
    assert len(swapped_layers(model)) == CASES[name].layers
    run(model, inputs)
    assert restore_attention(model) is model
    assert snapshot(model) == before
    assert torch.equal(run(model, inputs), expected)
    assert swapped_layers(model) == []


@cases_in_modes()
def test_restoration_keeps_what_was_trained(name, mode):
    model, other, inputs = swapped(name, mode), build(name, seed=1), make_inputs(name)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    loss_of(name, model, inputs).backward()
    optimizer.step()
    trained = {key: value.clone() for key, value in model.state_dict().items() if "papa." not in key}
    other.load_state_dict(restore_attention(model).state_dict(), strict=True)
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())
    assert torch.equal(run(model, inputs), run(other, inputs))
    assert not torch.equal(run(model, inputs), run(plain(name), inputs))


@cases_in_modes()
def test_keys_of_the_state_dict(name, mode):
    before, model = plain(name).state_dict(), swapped(name, mode)
    after = model.state_dict()
    assert [key for key in after if "papa." not in key] == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert set(after) > set(before)
    other = swap(name, build(name, seed=1), mode)
    with pytest.warns(PlainStateWarning):
        other.load_state_dict(before, strict=True)
    assert torch.equal(run(other, make_inputs(name)), run(model, make_inputs(name)))


@cases_in_modes()
def test_a_saved_state_dict_loads_strictly(name, mode):
    model, other, inputs = swapped(name, mode), build(name, seed=1), make_inputs(name)
    state = torch.load(saved(encoder_of(model).state_dict()), weights_only=True)
    assert swap_as_saved(encoder_of(other), state)
    encoder_of(other).load_state_dict(state, strict=True)
    assert torch.equal(run(other, inputs), run(model, inputs))
    assert not swap_as_saved(build(name), encoder_of(plain(name)).state_dict())


@cases_in_modes()
def test_a_saved_model_comes_back_swapped(name, mode, tmp_path):
    model, inputs = swapped(name, mode), make_inputs(name)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    # transformers reads some biases of DeBERTa in float32, whatever the rest has
    assert_close(run(loaded, inputs), run(model, inputs), tolerance={"atol": 1e-5, "rtol": 1e-5})
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert [one.requires_grad for one in loaded.parameters()] == [one.requires_grad for one in model.parameters()]


def test_saved_constants(tmp_path):
    name = NAMES[0]
    constants = calibrated(name, build(name))
    loaded = AttentionConstants.load(constants.save(tmp_path / "constants.safetensors"), build(name))
    outputs = [run(swap(name, build(name), "partial", one), make_inputs(name)) for one in (constants, loaded)]
    assert torch.equal(*outputs)


@cases_in_modes(copied_by=["deepcopy", "pickle"])
def test_copies(name, mode, copied_by):
    model, inputs = swapped(name, mode), make_inputs(name)
    expected = run(model, inputs)
    other = copy.deepcopy(model) if copied_by == "deepcopy" else torch.load(saved(model), weights_only=False)
    assert torch.equal(run(other, inputs), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(run(model, inputs), expected)
    restore_attention(other).load_state_dict(plain(name).state_dict(), strict=True)
    assert torch.equal(run(model, inputs), expected)
    assert torch.equal(run(other, inputs), run(plain(name), inputs))
    assert torch.equal(run(restore_attention(model), inputs), run(plain(name), inputs))


@cases(mode=MODES)
def test_gradients(name, mode):
    """Those of the explicit form for every parameter; what is trainable has one, because DDP counts on it."""
    inputs, eager, model = make_inputs(name), build(name, "eager"), swapped(name, mode)
    used = set(gradients(name, build(name), inputs))
    with written_out(name, mode, inputs, model=eager):
        expected = gradients(name, eager, inputs)
    found = gradients(name, model, inputs)
    for key, parameter in eager.named_parameters():
        zero = torch.zeros_like(parameter)
        assert_close(found.get(key, zero), expected.get(key, zero), msg=lambda text, key=key: f"{key}: {text}")
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    added = {key for key in trainable if "papa." in key}
    assert sorted((trainable & used | added) - set(found)) == [], "trainable without a gradient"
    assert all("gate_logits" in key for key in added), "constants are frozen"


@cases()
def test_gradients_of_gates_and_constants(name):
    inputs, model, eager = make_inputs(name), swapped(name, "gated"), build(name, "eager")
    values, gates = make_constants(name).values.requires_grad_(), make_gates(name).requires_grad_()
    replace = constant_heads(name, inputs, values, heads_of(name, "gated"), gates)
    with explicit_attention(eager, CASES[name].layers, replace):
        loss_of(name, eager, inputs).backward()
    learn_constants(model)
    loss_of(name, model, inputs).backward()
    assert_close(torch.stack([gate.grad for gate in gate_logits(model)]), gates.grad)
    assert_close(torch.stack([mixer.constants.grad for mixer in swapped_layers(model)]), values.grad)


@cases_in_modes()
def test_dropout_of_attention_in_training(name, mode):
    model, inputs = swap(name, build(name, dropout=0.3), mode), make_inputs(name)
    torch.manual_seed(0)
    drawn, again = (real(name, inputs, run(model.train(), inputs)) for _ in range(2))
    still = real(name, inputs, run(model.eval(), inputs))
    assert drawn.isfinite().all()
    assert not torch.allclose(drawn, still, atol=1e-3)
    assert not torch.allclose(drawn, again, atol=1e-3)
    assert_close(still, explicit_outputs(name, mode, inputs))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # the name before transformers 6
@cases_in_modes()
def test_gradient_checkpointing(name, mode):
    if not plain(name).supports_gradient_checkpointing:
        pytest.skip("the family has no gradient checkpointing")
    inputs, model = make_inputs(name), swapped(name, mode).train()
    expected = gradients(name, model, inputs)
    model.gradient_checkpointing_enable()
    found = gradients(name, model, inputs)
    assert sorted(found) == sorted(expected)
    for key, gradient in found.items():
        assert_close(gradient, expected[key])


@cases_in_modes("causal")
def test_later_tokens_do_not_reach_earlier_ones(name, mode):
    model, inputs = swapped(name, mode), make_inputs(name, padded=False)
    before = run(model, inputs)
    inputs["input_ids"][:, 6:] = (inputs["input_ids"][:, 6:] + 1) % 40
    after = run(model, inputs)
    assert_close(after[:, :6], before[:, :6])
    assert not torch.allclose(after[:, 6:], before[:, 6:], atol=1e-3)


def _skip_without_generation(name):
    if type(make_config(name)) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        pytest.skip("the family has no model that generates")


@cases_in_modes("causal")
def test_generation_without_a_cache(name, mode):
    _skip_without_generation(name)
    model = swap(name, build(name, auto=AutoModelForCausalLM), mode)
    prompt = make_inputs(name, batch=2, length=4, padded=False)
    tokens = prompt["input_ids"]
    for _ in range(5):
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(model.generate(**prompt, max_new_tokens=5, do_sample=False, use_cache=False), tokens)


@cases_in_modes("causal")
def test_generation_with_a_cache_is_refused(name, mode):
    _skip_without_generation(name)
    model, prompt = build(name, auto=AutoModelForCausalLM), make_inputs(name, batch=2, length=4, padded=False)
    options = {**prompt, "max_new_tokens": 5, "do_sample": False, "use_cache": True}
    expected = model.generate(**options)
    assert torch.equal(swap(name, model, "none").generate(**options), expected), "nothing is constant"
    with pytest.raises(PapaError, match="use_cache=False"):
        swap(name, model, mode).generate(**options)
    assert torch.equal(restore_attention(model).generate(**options), expected)


@cases("text to text", mode=MODES)
def test_the_decoder_is_left_alone(name, mode):
    model, eager = (build(name, implementation, auto=AutoModelForSeq2SeqLM) for implementation in (None, "eager"))
    parts = [(module, sorted(module.__dict__), list(module._modules)) for module in model.get_decoder().modules()]
    swap(name, model, mode)
    assert parts == [(part, sorted(part.__dict__), list(part._modules)) for part in model.get_decoder().modules()]
    inputs, tokens = make_inputs(name), make_inputs(name, length=5, seed=2)["input_ids"]
    with torch.no_grad(), written_out(name, mode, inputs, model=eager):
        expected = eager(**inputs, decoder_input_ids=tokens).logits
    assert_close(model(**inputs, decoder_input_ids=tokens).logits.detach(), expected)
    options = {**inputs, "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**options, use_cache=True), model.generate(**options, use_cache=False))
