"""The sequence probe against the numbers of the published implementation."""

import pytest
import torch
from golden.cases import LAYOUTS, MODELS, TOLERANCE, load_classifier, load_facts, load_tensors, select_inputs
from torch.nn import functional as F

from papa_lightning import AttentionConstants, swap_attention
from papa_lightning.tasks import LayerwiseProbe


def load_probe(model: str) -> LayerwiseProbe:
    tensors = load_tensors(f"{model}-heads")
    weights = {name.removeprefix("pool."): value for name, value in tensors.items() if name.startswith("pool.")}
    levels, max_length = weights["position_weights"].shape
    num_labels, hidden_size = weights["classifier.weight"].shape
    probe = LayerwiseProbe(levels, max_length, hidden_size, num_labels)
    probe.load_state_dict(weights, strict=True)
    return probe.eval()


@pytest.mark.parametrize("subset", ["plain", "half", "all"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_probe(model: str, layout: str, subset: str) -> None:
    calibration, expected = load_tensors(f"{model}-{layout}-calibration"), load_tensors(f"{model}-{layout}-heads")
    encoder, probe = load_classifier(model).base_model, load_probe(model)
    if subset != "plain":
        subsets = load_facts(f"{model}-{layout}-heads")["subsets"]
        heads = {int(layer): own for layer, own in subsets[subset].items()}
        constants = AttentionConstants(calibration["avgs"], calibration["attention_patterns_sums"])
        swap_attention(encoder, "constant", constants=constants, heads=heads)
    inputs = select_inputs(calibration)
    with torch.no_grad():
        hidden_states = encoder(**inputs, output_hidden_states=True).hidden_states
        pooled = probe.pool(hidden_states, inputs["attention_mask"])
        logits = probe(hidden_states, inputs["attention_mask"])
    torch.testing.assert_close(pooled, expected[f"{subset}.pooled"], **TOLERANCE)
    torch.testing.assert_close(logits, expected[f"{subset}.logits"], **TOLERANCE)
    loss = F.cross_entropy(logits, expected["labels"])
    torch.testing.assert_close(loss, expected[f"{subset}.loss"], **TOLERANCE)
