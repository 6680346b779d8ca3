"""The sequence probe against the numbers of the published implementation."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from papa_lightning.tasks import LayerwiseProbe

DATA = Path(__file__).parent / "data"
FAMILIES = {
    "bert_a": (BertConfig, BertForSequenceClassification),
    "roberta_a": (RobertaConfig, RobertaForSequenceClassification),
}


def load_encoder(model: str) -> PreTrainedModel:
    config_class, model_class = FAMILIES[model]
    facts = json.loads((DATA / f"{model}-model.json").read_text())
    classifier = model_class(config_class(attn_implementation="eager", **facts["config_kwargs"]))
    classifier.load_state_dict(load_file(DATA / f"{model}-model.safetensors"), strict=True)
    return classifier.base_model.eval()


def load_probe(model: str) -> LayerwiseProbe:
    tensors = load_file(DATA / f"{model}-heads.safetensors")
    weights = {name.removeprefix("pool."): value for name, value in tensors.items() if name.startswith("pool.")}
    levels, max_length = weights["position_weights"].shape
    num_labels, hidden_size = weights["classifier.weight"].shape
    probe = LayerwiseProbe(levels, max_length, hidden_size, num_labels)
    probe.load_state_dict(weights, strict=True)
    return probe.eval()


@pytest.mark.parametrize("layout", ["right", "segment"])
@pytest.mark.parametrize("model", sorted(FAMILIES))
def test_probe_over_the_plain_encoder(model: str, layout: str) -> None:
    inputs = load_file(DATA / f"{model}-{layout}-calibration.safetensors")
    expected = load_file(DATA / f"{model}-{layout}-heads.safetensors")
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs]
    mask = inputs["attention_mask"]
    probe = load_probe(model)
    with torch.no_grad():
        encoded = load_encoder(model)(**{name: inputs[name] for name in names}, output_hidden_states=True)
        pooled = probe.pool(encoded.hidden_states, mask)
        logits = probe(encoded.hidden_states, mask)
    torch.testing.assert_close(pooled, expected["plain.pooled"], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, expected["plain.logits"], atol=1e-5, rtol=0)
    loss = F.cross_entropy(logits, expected["labels"])
    torch.testing.assert_close(loss, expected["plain.loss"], atol=1e-5, rtol=0)
