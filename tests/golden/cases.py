"""Loading the numbers of the published implementation."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaConfig,
    DebertaForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

DATA = Path(__file__).parent / "data"
FAMILIES = {
    "bert_a": (BertConfig, BertForSequenceClassification),
    "deberta_a": (DebertaConfig, DebertaForSequenceClassification),
    "roberta_a": (RobertaConfig, RobertaForSequenceClassification),
}
MODELS = sorted(FAMILIES)
LAYOUTS = ["right", "segment"]
TOLERANCE = {"atol": 1e-5, "rtol": 0.0}


def load_facts(case: str) -> dict[str, Any]:
    return json.loads((DATA / f"{case}.json").read_text())


def load_tensors(case: str) -> dict[str, Tensor]:
    return load_file(DATA / f"{case}.safetensors")


def load_classifier(model: str) -> PreTrainedModel:
    config_class, model_class = FAMILIES[model]
    classifier = model_class(config_class(**load_facts(f"{model}-model")["config_kwargs"]))
    classifier.load_state_dict(load_tensors(f"{model}-model"), strict=True)
    return classifier.eval()


def select_inputs(tensors: dict[str, Tensor], rows: Any = slice(None)) -> dict[str, Tensor]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: tensors[name][rows] for name in names if name in tensors}


def pack(hidden_states: Any, mask: Tensor) -> Tensor:
    """The real tokens of all levels, row after row, as the files store them."""
    return torch.stack([level[mask.bool()] for level in hidden_states])
