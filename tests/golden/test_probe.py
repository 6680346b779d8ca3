"""The probes against the numbers of the published implementation."""

import pytest
import torch
from golden.cases import LAYOUTS, MODELS, TOLERANCE, load_classifier, load_facts, load_tensors, select_inputs
from torch import Tensor, nn

from papa_lightning import AttentionConstants, swap_attention
from papa_lightning.tasks import LayerwiseProbe, TokenProbe
from papa_lightning.tasks.scores import LabelledCrossEntropy

SUBSETS = ["plain", "half", "all"]


def load_weights(model: str, kind: str) -> dict[str, Tensor]:
    tensors = load_tensors(f"{model}-heads")
    return {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}


def load_probe(model: str) -> LayerwiseProbe:
    weights = load_weights(model, "pool.")
    levels, max_length = weights["position_weights"].shape
    num_labels, hidden_size = weights["classifier.weight"].shape
    probe = LayerwiseProbe(levels, max_length, hidden_size, num_labels)
    probe.load_state_dict(weights, strict=True)
    return probe.eval()


def load_token_probe(model: str) -> TokenProbe:
    weights = {name.replace("out.", "classifier."): value for name, value in load_weights(model, "token.").items()}
    num_labels, hidden_size = weights["classifier.weight"].shape
    probe = TokenProbe(weights["dense.weight"].shape[1] // hidden_size, hidden_size, num_labels)
    probe.load_state_dict(weights, strict=True)
    return probe.eval()


def load_encoder(model: str, layout: str, subset: str) -> nn.Module:
    calibration, encoder = load_tensors(f"{model}-{layout}-calibration"), load_classifier(model).base_model
    if subset != "plain":
        subsets = load_facts(f"{model}-{layout}-heads")["subsets"]
        heads = {int(layer): own for layer, own in subsets[subset].items()}
        constants = AttentionConstants(calibration["avgs"], calibration["attention_patterns_sums"])
        swap_attention(encoder, "constant", constants=constants, heads=heads)
    return encoder


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    criterion: nn.Module = LabelledCrossEntropy()
    return criterion(logits, labels)


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_probes(model: str, layout: str, subset: str) -> None:
    expected = load_tensors(f"{model}-{layout}-heads")
    inputs = select_inputs(load_tensors(f"{model}-{layout}-calibration"))
    mask, probe = inputs["attention_mask"], load_probe(model)
    with torch.no_grad():
        hidden_states = load_encoder(model, layout, subset)(**inputs, output_hidden_states=True).hidden_states
        pooled, logits = probe.pool(hidden_states, mask), probe(hidden_states, mask)
        token_logits = load_token_probe(model)(hidden_states, mask)
    actual = {
        "pooled": pooled,
        "logits": logits,
        "loss": loss(logits, expected["labels"]),
        "token_logits": token_logits[mask.bool()],
        "token_loss": loss(token_logits, expected["token_labels"]),
    }
    torch.testing.assert_close(actual, {name: expected[f"{subset}.{name}"] for name in actual}, **TOLERANCE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sequence_alone_is_as_in_its_batch(layout: str) -> None:
    expected, model = load_tensors(f"bert_a-{layout}-heads"), "bert_a"
    inputs = select_inputs(load_tensors(f"{model}-{layout}-calibration"), slice(3, 4))
    encoder, probe, token_probe = load_encoder(model, layout, "half"), load_probe(model), load_token_probe(model)
    before = int(load_tensors(f"{model}-{layout}-calibration")["attention_mask"][:3].sum())
    with torch.no_grad():
        hidden_states = encoder(**inputs, output_hidden_states=True).hidden_states
        logits = probe(hidden_states, inputs["attention_mask"])
        tokens = token_probe(hidden_states)[inputs["attention_mask"].bool()]
    torch.testing.assert_close(logits, expected["half.logits"][3:4], **TOLERANCE)
    torch.testing.assert_close(tokens, expected["half.token_logits"][before : before + len(tokens)], **TOLERANCE)
