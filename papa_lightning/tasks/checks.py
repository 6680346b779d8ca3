"""Checks of batches: what would otherwise end as a traceback from inside torch."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from torch import Tensor

from papa_lightning.errors import PapaError
from papa_lightning.tasks.regimes import regime_of
from papa_lightning.tasks.scores import UNLABELLED

Preset = Literal["default", "reference"]
Schedule = Literal["constant", "linear", "cosine"]


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Check that an argument is one of its choices.

    Raises:
        PapaError: If it is not.

    Example:
        >>> check_choice("pooling", "max", ["mean", "class_token"])
        Traceback (most recent call last):
        ...
        papa_lightning.errors.PapaError: pooling is 'max': choose from mean, class_token.
    """
    if value not in (allowed := list(choices)):
        raise PapaError(f"{name} is {value!r}: choose from {', '.join(allowed)}.")


def check_arguments(hparams: Mapping[str, Any]) -> None:
    """Check the arguments that all tasks share.

    Args:
        hparams: The arguments of an `EncoderTask`.

    Raises:
        PapaError: If one is out of its range, or two contradict each other.
    """
    check_choice("preset", hparams["preset"], get_args(Preset))
    check_choice("schedule", hparams["schedule"], get_args(Schedule))
    regime_of(hparams["regime"], hparams["freeze_encoder"])
    rate = hparams["constants_learning_rate"]
    ranges = (
        ("num_labels", hparams["num_labels"] >= 2, "at least 2"),
        ("max_length", hparams["max_length"] >= 1, "at least 1"),
        ("learning_rate", hparams["learning_rate"] > 0, "above 0"),
        ("constants_learning_rate", rate is None or rate > 0, "above 0"),
        ("weight_decay", hparams["weight_decay"] >= 0, "at least 0"),
        ("warmup_share", 0 <= hparams["warmup_share"] <= 1, "a share from 0 to 1"),
        ("dropout", 0 <= hparams["dropout"] < 1, "a share from 0 to below 1"),
        ("distillation", hparams["distillation"] >= 0, "at least 0"),
    )
    for name, valid, wanted in ranges:
        if not valid:
            raise PapaError(f"{name} is {hparams[name]!r}: pass a value that is {wanted}.")
    names = hparams["label_names"]
    if names is not None and (isinstance(names, str) or len(names) != hparams["num_labels"]):
        raise PapaError(
            f"label_names is {names!r}, but num_labels is {hparams['num_labels']}: pass one name for each class, or "
            "None."
        )
    if hparams["constants"] is None and (hparams["heads"] != "all" or hparams["ranking"] is not None):
        raise PapaError(
            f"heads is {hparams['heads']!r} and ranking is {hparams['ranking']!r}, but there is no constants file "
            "that they could choose heads for: pass constants, or give both to the callback instead."
        )


def drop_fixed(arguments: dict[str, Any], task: str, **fixed: Any) -> None:
    """Drop the arguments that are no choice of a task: a checkpoint brings them along, with the value that they have.

    Args:
        arguments: Changed in place.
        task: What fixes them, for the message.
        fixed: Name -> the only value.

    Raises:
        PapaError: If one has another value.

    Example:
        >>> drop_fixed({"num_labels": 3}, "masked language modelling", num_labels=40)
        Traceback (most recent call last):
        ...
        papa_lightning.errors.PapaError: num_labels is 3, but masked language modelling fixes it to 40: leave it
        out.
    """
    for name, value in fixed.items():
        given = arguments.pop(name, value)
        if (tuple(given) if isinstance(given, list) else given) != value:
            raise PapaError(f"{name} is {given!r}, but {task} fixes it to {value!r}: leave it out.")


def main_input(batch: Mapping[str, Tensor]) -> Tensor:
    """The tokens or the images of a batch."""
    return batch["input_ids"] if "input_ids" in batch else batch["pixel_values"]


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
        papa_lightning.errors.PapaError: a batch has no attention_mask, only input_ids...
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
        papa_lightning.errors.PapaError: labels has the value 2, but num_labels=2 allows 0 to 1: ...
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


def checked_labels(batch: Mapping[str, Tensor], num_labels: int, per_token: bool, look: bool) -> Tensor:
    """Return the labels of a batch, checked.

    Args:
        batch: The batch.
        num_labels: The number of classes.
        per_token: Whether each token has a label or -100, rather than each sequence one.
        look: Whether to look at the values too. That waits for an accelerator, so there the first batch of an epoch
            has to do, which is enough for a data set with other classes than `num_labels` says.

    Returns:
        (B, T) or (B,), int64.

    Raises:
        PapaError: If there are none, or they are not what they must be.
    """
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
