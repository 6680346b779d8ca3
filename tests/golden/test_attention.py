"""Calibration, constant heads and gates against the numbers of the published implementation."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from golden.cases import LAYOUTS, MODELS, TOLERANCE, load_classifier, load_facts, load_tensors, pack, select_inputs
from golden.test_probe import load_probe
from torch import Tensor

from papa_lightning import AttentionAverages, AttentionConstants, HeadRanking, calibrate, gate_logits, swap_attention
from papa_lightning.attention import ZeroMassWarning
from papa_lightning.calibration import gather
from papa_lightning.callbacks import ranking_of_gates
from papa_lightning.encoders import learn_constants

assert_close = torch.testing.assert_close


def golden_constants(case: dict[str, Tensor]) -> AttentionConstants:
    return AttentionConstants(case["avgs"], case["attention_patterns_sums"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_calibration(model: str, layout: str) -> None:
    case = load_tensors(f"{model}-{layout}-calibration")
    classifier, length = load_classifier(model), case["input_ids"].shape[1]
    batches = [select_inputs(case, slice(start, start + 4)) for start in range(0, len(case["input_ids"]), 4)]

    averages: AttentionAverages = gather(classifier.base_model, batches, length)
    assert_close(averages.sums, case["attention_sums"].double(), **TOLERANCE)
    assert_close(averages.pair_counts, case["attention_patterns_sums"].double(), atol=0, rtol=0)

    constants = calibrate(classifier, batches, max_length=length)
    assert_close(constants.values, case["avgs"], **TOLERANCE)
    assert_close(constants.pair_counts, case["attention_patterns_sums"].double(), atol=0, rtol=0)


@pytest.mark.parametrize("subset", ["half", "one_layer", "all"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_constant_heads(model: str, layout: str, subset: str) -> None:
    calibration, expected = load_tensors(f"{model}-{layout}-calibration"), load_tensors(f"{model}-{layout}-forward")
    facts = load_facts(f"{model}-{layout}-forward")
    heads = {int(layer): own for layer, own in facts["subsets"][subset].items()}
    classifier = load_classifier(model)
    swap_attention(classifier, "constant", constants=golden_constants(calibration), heads=heads)
    inputs = select_inputs(calibration, facts["rows"])
    with torch.no_grad():
        output = classifier(**inputs, output_hidden_states=True)
    assert_close(pack(output.hidden_states, inputs["attention_mask"]), expected[f"{subset}.hidden_states"], **TOLERANCE)
    assert_close(output.logits, expected[f"{subset}.logits"], **TOLERANCE)


@pytest.mark.parametrize("subset", ["half", "all"])
@pytest.mark.parametrize("model", MODELS)
def test_attention_matrices_of_constant_heads(model: str, subset: str) -> None:
    calibration, expected = load_tensors(f"{model}-segment-calibration"), load_tensors(f"{model}-segment-forward")
    facts = load_facts(f"{model}-segment-forward")
    heads = {int(layer): own for layer, own in facts["subsets"][subset].items()}
    classifier = load_classifier(model)
    classifier.set_attn_implementation("eager")
    swap_attention(classifier, "constant", constants=golden_constants(calibration), heads=heads)
    inputs = select_inputs(calibration, facts["rows"][:2])
    with torch.no_grad():
        attentions = torch.stack(classifier(**inputs, output_attentions=True).attentions)
    # Padding queries of dynamic heads are zeroed by the published code only, and nothing reads them.
    real = inputs["attention_mask"][None, :, None, :, None]
    assert_close(attentions * real, expected[f"{subset}.attentions"] * real, **TOLERANCE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_gates(model: str, layout: str) -> None:
    calibration, expected = load_tensors(f"{model}-{layout}-calibration"), load_tensors(f"{model}-{layout}-gates")
    rows = load_facts(f"{model}-{layout}-forward")["rows"]
    classifier = load_classifier(model)
    swap_attention(classifier, "gated", constants=golden_constants(calibration))
    inputs = select_inputs(calibration)

    loss, _, gradient = _gate_gradient(classifier, inputs, expected["labels"])
    assert_close(loss, expected["standard.initial_loss"], **TOLERANCE)
    assert_close(gradient, expected["standard.initial_gate_grad"], **TOLERANCE)

    with torch.no_grad():
        for parameter, values in zip(gate_logits(classifier), expected["gate_logits"], strict=True):
            parameter.copy_(values)
        inputs_of_rows = select_inputs(calibration, rows)
        hidden_states = classifier(**inputs_of_rows, output_hidden_states=True).hidden_states
    assert_close(pack(hidden_states, inputs_of_rows["attention_mask"]), expected["hidden_states"], **TOLERANCE)
    loss, logits, gradient = _gate_gradient(classifier, inputs, expected["labels"])
    assert_close(loss, expected["standard.loss"], **TOLERANCE)
    assert_close(logits, expected["standard.logits"], **TOLERANCE)
    assert_close(gradient, expected["standard.gate_grad"], **TOLERANCE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_gates_under_the_probe(model: str, layout: str) -> None:
    calibration, expected = load_tensors(f"{model}-{layout}-calibration"), load_tensors(f"{model}-{layout}-gates")
    encoder, probe, inputs = load_classifier(model).base_model, load_probe(model), select_inputs(calibration)
    swap_attention(encoder, "gated", constants=golden_constants(calibration))
    with torch.no_grad():
        for parameter, values in zip(gate_logits(encoder), expected["gate_logits"], strict=True):
            parameter.copy_(values)
    hidden_states = encoder(**inputs, output_hidden_states=True).hidden_states
    logits = probe(hidden_states, inputs["attention_mask"])
    loss = F.cross_entropy(logits, expected["labels"])
    *gates, weights = torch.autograd.grad(loss, [*gate_logits(encoder), probe.position_weights])
    assert_close(loss.detach(), expected["pooled.loss"], **TOLERANCE)
    assert_close(logits.detach(), expected["pooled.logits"], **TOLERANCE)
    assert_close(torch.stack(gates), expected["pooled.gate_grad"], **TOLERANCE)
    assert_close(weights, expected["pooled.position_weights_grad"], **TOLERANCE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_ranking_by_gates_after_one_step(model: str, layout: str) -> None:
    """A first step of SGD goes against the published gradient: heads whose gates the loss wants lower come first."""
    calibration, expected = load_tensors(f"{model}-{layout}-calibration"), load_tensors(f"{model}-{layout}-gates")
    classifier = load_classifier(model)
    swap_attention(classifier, "gated", constants=golden_constants(calibration))
    with torch.no_grad():
        for parameter, values in zip(gate_logits(classifier), expected["gate_logits"], strict=True):
            parameter.copy_(values)
    gates = gate_logits(classifier)
    optimizer = torch.optim.SGD(gates, lr=100.0)
    loss = F.cross_entropy(classifier(**select_inputs(calibration)).logits, expected["labels"])
    loss.backward()
    optimizer.step()
    stepped = expected["gate_logits"].double() - 100.0 * expected["standard.gate_grad"].double()
    ranking = ranking_of_gates(classifier.base_model)
    assert ranking.criterion == "gate"
    assert ranking.heads == HeadRanking.from_scores(stepped.tolist(), "gate").heads
    assert ranking.heads != HeadRanking.from_scores(expected["gate_logits"].tolist(), "gate").heads


def _gate_gradient(
    classifier: torch.nn.Module, inputs: dict[str, Tensor], labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    logits = classifier(**inputs).logits
    loss = F.cross_entropy(logits, labels)
    gradients = torch.autograd.grad(loss, gate_logits(classifier))
    return loss.detach(), logits.detach(), torch.stack(gradients)


@pytest.mark.parametrize("model", MODELS)
def test_gated_attention_matrices(model: str) -> None:
    calibration, expected = load_tensors(f"{model}-segment-calibration"), load_tensors(f"{model}-segment-gates")
    rows = load_facts(f"{model}-segment-forward")["rows"][:2]
    classifier = load_classifier(model)
    classifier.set_attn_implementation("eager")
    swap_attention(classifier, "gated", constants=golden_constants(calibration))
    with torch.no_grad():
        for parameter, values in zip(gate_logits(classifier), expected["gate_logits"], strict=True):
            parameter.copy_(values)
        attentions = torch.stack(
            classifier(**(inputs := select_inputs(calibration, rows)), output_attentions=True).attentions
        )
    # DeBERTa's padding queries attend to nothing in the published code and to everything here; nothing reads them.
    real = inputs["attention_mask"][None, :, None, :, None] if model == "deberta_a" else 1.0
    assert_close(attentions * real, expected["attentions"] * real, **TOLERANCE)


@pytest.mark.parametrize("model", ["bert_a", "deberta_a"])
def test_rows_that_calibration_did_not_cover(model: str) -> None:
    calibration, expected = load_tensors(f"{model}-right-calibration"), load_tensors(f"{model}-uncovered")
    facts = load_facts(f"{model}-uncovered")
    short, length = select_inputs(calibration, slice(0, 8)), calibration["input_ids"].shape[1]
    classifier = load_classifier(model)
    constants = calibrate(classifier, [short], max_length=length)
    assert_close(constants.values, expected["avgs"], **TOLERANCE)
    swap_attention(classifier, "constant", constants=golden_constants(expected))
    inputs = select_inputs(calibration, facts["rows"])
    with torch.no_grad():
        with pytest.warns(ZeroMassWarning, match=r"layer 0, heads \[0, 1, 2, 3\]"):
            output = classifier(**inputs, output_hidden_states=True)
        with warnings.catch_warnings():  # once is enough
            warnings.simplefilter("error", ZeroMassWarning)
            classifier(**inputs)
    assert_close(pack(output.hidden_states, inputs["attention_mask"]), expected["hidden_states"], **TOLERANCE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_gradient_of_the_constants(model: str, layout: str) -> None:
    """The published gradients were taken through the sequence probe; see test_probe.py for its forward."""
    calibration, expected = load_tensors(f"{model}-{layout}-calibration"), load_tensors(f"{model}-{layout}-heads")
    subsets = load_facts(f"{model}-{layout}-heads")["subsets"]
    heads = {int(layer): own for layer, own in subsets["half"].items()}
    classifier = load_classifier(model)
    swap_attention(classifier, "constant", constants=golden_constants(calibration), heads=heads)
    learn_constants(classifier)
    parameters = {
        name: parameter
        for name, parameter in classifier.base_model.named_parameters()
        if name.endswith("papa.constants") and parameter.numel()
    }
    inputs = select_inputs(calibration)
    hidden_states = classifier.base_model(**inputs, output_hidden_states=True).hidden_states
    logits = load_probe(model)(hidden_states, inputs["attention_mask"])
    assert_close(logits.detach(), expected["half.logits"], **TOLERANCE)
    loss = F.cross_entropy(logits, expected["labels"])
    loss.backward()
    assert {int(name.split("layer.")[1].split(".")[0]) for name in parameters} == set(heads)
    for name, parameter in parameters.items():
        layer = int(name.split("layer.")[1].split(".")[0])
        assert_close(parameter.grad, expected[f"half.static_grad.layer{layer}"], **TOLERANCE)
