"""Tiny tasks and rows for the tests of features and of the training on them."""

import copy
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import BertConfig, BertModel

from papa_lightning import AttentionConstants, SequenceClassificationTask, TokenClassificationTask, swap_attention
from papa_lightning.tasks import EncoderTask

LENGTH, LEVELS, HIDDEN, LAYERS, HEADS = 10, 3, 16, 2, 4
KINDS = ["layerwise", "mean", "class_token", "tokens"]
LAYOUTS = ["plain", "segment"]
TAGS = ("O", "B-X", "I-X")


def save_encoder(folder: str) -> str:
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 24}
    model = BertModel(BertConfig(vocab_size=40, max_position_embeddings=20, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.35)
    model.save_pretrained(folder)
    return folder


def make_task(encoder: str, kind: str, heads: Any = None, **arguments: Any) -> EncoderTask:
    """A task whose probe is of a kind; `heads` of its encoder are constant."""
    torch.manual_seed(1)
    if kind == "tokens":
        names: dict[str, Any] = {"metrics": ["entity_f1", "token_accuracy"], "label_names": TAGS}
        task: EncoderTask = TokenClassificationTask(encoder, 3, LENGTH, **(names | arguments))
    else:
        names = {"metrics": ["accuracy", "f1"], "pooling": kind}
        task = SequenceClassificationTask(encoder, 3, LENGTH, **(names | arguments))
    if heads is not None:
        values = torch.rand(LAYERS, HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(3)) + 0.01
        constants = AttentionConstants(values, torch.ones(LENGTH, LENGTH))
        swap_attention(task.encoder, "constant", constants=constants, heads=heads)
    return task.eval()


def make_rows(count: int, kind: str, layout: str = "plain", seed: int = 0) -> Dataset:
    """Random rows of 2 to 10 tokens; the tokens determine the label. In layout segment the masks have gaps."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 40, (count, LENGTH), generator=generator)
    lengths = torch.randint(2, LENGTH + 1, (count, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    if layout == "segment":
        mask[:, -1] = 1
    ids = ids * mask
    columns = {"input_ids": ids, "attention_mask": mask, "token_type_ids": (ids > 20).long() * mask}
    labels: Tensor = ids[:, 0] % 3
    if kind == "tokens":
        labels = torch.where((mask == 1) & (ids % 4 > 0), ids % 3, -100)
        labels[0] = -100  # a sentence may have been cut before its first word
    return Dataset.from_dict({name: values.tolist() for name, values in {**columns, "labels": labels}.items()})


def as_batch(rows: Dataset, numbers: Any = None) -> dict[str, Tensor]:
    """Some rows, or all, as the data loader of a data module gives them."""
    found = rows.with_format("torch")[:] if numbers is None else rows.with_format("torch")[list(numbers)]
    return dict(found)


def padded_logits(task: EncoderTask, probe: Any, batch: dict[str, Tensor]) -> Tensor:
    """Logits of a probe for padded hidden states, without the code under test."""
    with torch.no_grad():
        levels = (
            copy.deepcopy(task.encoder)
            .eval()(
                **{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")},
                output_hidden_states=True,
            )
            .hidden_states
        )
    logits: Tensor = probe(levels, batch["attention_mask"])
    return logits
