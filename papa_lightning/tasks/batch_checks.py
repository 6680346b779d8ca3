"""Checks of the batches that tasks get."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from papa_lightning.errors import PapaError
from papa_lightning.tasks.scores import UNLABELLED


def main_input(batch: Mapping[str, Tensor]) -> Tensor:
    """Tokens or images of a batch."""
    return batch["input_ids"] if "input_ids" in batch else batch["pixel_values"]


def check_inputs(batch: Any, max_length: int) -> None:
    """Refuse a batch that lacks an input of the encoder, or has one of a wrong shape, without reading a value."""
    if not isinstance(batch, Mapping):
        raise PapaError(
            f"a batch is a {type(batch).__name__}, but must be a mapping with input_ids and attention_mask: let the "
            "collate function return a dict."
        )
    for name in ("input_ids", "attention_mask"):
        if name not in batch:
            raise PapaError(
                f"a batch has no {name}, only {', '.join(map(str, batch)) or 'nothing'}: let the tokenizer return it "
                "and the collate function keep it."
            )
    shape, mask_shape = tuple(batch["input_ids"].shape), tuple(batch["attention_mask"].shape)
    if len(shape) != 2 or mask_shape != shape:
        raise PapaError(
            f"input_ids has shape {shape} and attention_mask {mask_shape}, but both must be (batch, tokens): stack the "
            "sequences of a batch, also if there is only one."
        )
    if shape[1] > max_length:
        raise PapaError(
            f"the sequences are {shape[1]} tokens long, more than max_length={max_length}: cut and pad them to "
            "max_length, or build task and datamodule with a larger one."
        )


def check_classes(labels: Tensor, num_labels: int) -> None:
    """Refuse labels (N,) below 0 or beyond the classes."""
    wrong = labels[(labels < 0) | (labels >= num_labels)]
    if not wrong.numel():
        return
    value = int(wrong[0])
    if value < 0:
        remedy = "it marks a missing label, as in the test splits of GLUE: use the validation split, or predict"
    else:
        remedy = f"pass num_labels={value + 1} or more, or map the labels of the data to fewer classes"
    raise PapaError(
        f"labels has the value {value}, but num_labels={num_labels} allows 0 to {num_labels - 1}: {remedy}."
    )


def checked_labels(batch: Mapping[str, Tensor], num_labels: int, per_token: bool, look: bool) -> Tensor:
    """Labels of a batch as int64, (B, T) or (B,); without `look` an accelerator, which waits, does not check values."""
    if "labels" not in batch:
        raise PapaError(
            f"a batch has no labels, only {', '.join(batch)}: add them to the data set, or use predict, which "
            "needs none."
        )
    labels = batch["labels"]
    shape = tuple(main_input(batch).shape[: 2 if per_token else 1])
    if tuple(labels.shape) != shape or labels.is_floating_point():
        unit = f"token, {UNLABELLED} where there is none" if per_token else "sequence"
        raise PapaError(
            f"labels has shape {tuple(labels.shape)} and dtype {labels.dtype}, but must be {shape} integers: one class "
            f"for each {unit}."
        )
    if look or labels.device.type == "cpu":
        check_classes(labels[labels != UNLABELLED] if per_token else labels, num_labels)
    return labels.long()
