"""Checks of batches: what would otherwise end as a traceback from inside torch."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from papa_lightning.exceptions import PapaError


def check_inputs(batch: Any, max_length: int) -> None:
    """Check that a batch has the inputs of an encoder, without reading a value.

    Args:
        batch: What the data loader returned.
        max_length: The greatest number of tokens that is allowed.

    Raises:
        PapaError: If the batch is no mapping, lacks an input, or has inputs of a wrong shape.

    Example:
        >>> import torch
        >>> check_inputs({"input_ids": torch.ones(2, 8)}, max_length=8)
        Traceback (most recent call last):
        ...
        papa_lightning.exceptions.PapaError: a batch has no attention_mask, only input_ids...
    """
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
    """Check that all labels are classes.

    Args:
        labels: (N,), the labels.
        num_labels: The number of classes.

    Raises:
        PapaError: If a label is below 0 or beyond the classes.

    Example:
        >>> import torch
        >>> check_classes(torch.tensor([0, 2]), num_labels=2)
        Traceback (most recent call last):
        ...
        papa_lightning.exceptions.PapaError: labels has the value 2, but num_labels=2 allows 0 to 1: ...
    """
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
