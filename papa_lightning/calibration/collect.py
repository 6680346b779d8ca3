"""The calibration pass."""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from papa_lightning.attention import RowMixing
from papa_lightning.calibration.averages import AttentionAverages, RunningSums
from papa_lightning.calibration.batches import run_encoder
from papa_lightning.calibration.constants import AttentionConstants, plain_metadata
from papa_lightning.encoders import (
    Packing,
    SupportedEncoder,
    compute_device,
    describe_lengths,
    fits_positions,
    replace_mixing,
    weights_fingerprint,
)
from papa_lightning.errors import CalibrationError
from papa_lightning.progress import Progress


def calibrate(
    encoder: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    max_length: int,
    *,
    metadata: Mapping[str, Any] | None = None,
    all_reduce: Callable[[Tensor], Tensor] | None = None,
    progress: bool = False,
    packing: bool = True,
    tokens_per_batch: int | None = None,
) -> AttentionConstants:
    """Average the attention matrices of an encoder over data, ``C = sums / counts``.

    One pass without gradients, in eval mode; every module gets back the mode it had. The attention averaged is the
    original, dynamic one, also of an encoder that is swapped already. Beside the model it needs memory for the sums,
    L x H x T x T in float64, and for the probabilities of some rows of one layer; on a GPU, where kernels add these up
    as they mix, 64 MB at most. Source: Hassid et al. 2022, arXiv 2211.03495.

    Args:
        encoder: Any supported PreTrainedModel, with or without a task head, or a module that holds one.
        batches: Any iterable of mappings with input_ids and attention_mask, (B, t) with t up to ``max_length``
            (and token_type_ids, position_ids), or with pixel_values for an encoder of images; other keys are ignored.
            No labels are needed.
        max_length: T, the longest sequence that the constants are to serve; for images, the number of tokens that the
            encoder makes of one.
        metadata: Entries of the result's metadata beside model, sizes and versions, e.g. tokenizer, layout, data.
        all_reduce: Function that sums a tensor over processes, when several calibrate together, each its own share.
        progress: Whether to show a progress bar.
        packing: Whether the encoder runs over the real tokens alone, in batches of sequences of similar length, where
            that is exact (docs/packing.md); the averages are the same but for rounding.
        tokens_per_batch: Largest number of tokens in such a batch; None takes 1,536 on a CPU and 32,768 on other
            devices.

    Returns:
        The constants, on the CPU; values in float32, or float64 for an encoder in float64.

    Raises:
        UnsupportedEncoderError: For a model that is not a supported encoder.
        ConstantsFileError: For metadata that cannot be saved.
        CalibrationError: For a bad ``max_length``, a batch without attention_mask, a sequence that is too
            long, no sequences at all, or NaN in the attention (with the layer's number).
        PapaError: For a token that is not in the vocabulary.

    Example:
        >>> from papa_lightning import calibrate
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=8, intermediate_size=8)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
        >>> constants = calibrate(BertModel(config), [batch], max_length=4)
        >>> constants.values.shape, constants.metadata["sequences"]
        (torch.Size([1, 2, 4, 4]), 1)
    """
    found = SupportedEncoder.find(encoder)
    check_max_length(found.model, max_length)
    settings = Packing(packing, tokens_per_batch)
    noted = plain_metadata({} if metadata is None else metadata)  # refused now, not after hours
    noted |= settings.noted(compute_device(found.model))
    averages = gather(found, batches, max_length, progress=progress, packing=settings)
    if all_reduce is not None:
        averages.reduce(all_reduce)
    return finish(found, averages, noted)


def check_max_length(encoder: PreTrainedModel, max_length: int) -> None:
    """Refuse a length for which the encoder has no positions; the CalibrationError names it and the limit."""
    if not fits_positions(encoder, max_length):
        raise CalibrationError(
            f"max_length is {max_length!r}, but must be {describe_lengths(encoder)}: pass a length that it has."
        )


def gather(
    encoder: nn.Module | SupportedEncoder,
    batches: Iterable[Mapping[str, Any]],
    max_length: int,
    *,
    progress: bool = False,
    packing: Packing | None = None,
) -> AttentionAverages:
    """The sums of :func:`calibrate` over the batches of this process (there may be none), not reduced or divided."""
    found = SupportedEncoder.find(encoder)
    averages = AttentionAverages(found.num_layers, found.num_heads, max_length, compute_device(found.model))
    add_up(found, averages, batches, progress, packing)
    return averages


def add_up(
    found: SupportedEncoder,
    sums: RunningSums,
    batches: Iterable[Mapping[str, Any]],
    progress: bool,
    packing: Packing | None = None,
) -> None:
    """Run an encoder over batches, in eval mode and without gradients, and add up its attention."""
    mixings = [RowMixing(partial(sums.mix, layer), sums.reads_slots) for layer in range(found.num_layers)]
    with torch.no_grad(), eval_mode(found.model), replace_mixing(found, mixings) as attached:
        masks = run_encoder(attached, progress_bar(batches, progress), sums.max_length, packing)
        for number, mask in enumerate(masks):
            sums.add_mask(mask)
            if number == 0:  # a broken encoder fails at once, not after hours; later batches are checked at the end
                sums.check_finite()


def finish(
    encoder: nn.Module | SupportedEncoder, averages: AttentionAverages, metadata: Mapping[str, Any]
) -> AttentionConstants:
    """Divide the sums of all processes, and describe the pass in the metadata; CalibrationError without sequences."""
    found = SupportedEncoder.find(encoder)
    values = averages.compute(torch.promote_types(found.model.dtype, torch.float32)).cpu()
    noted = {**metadata, **describe_pass(found, averages.max_length, averages.num_sequences)}
    return AttentionConstants(values, averages.pair_counts.cpu(), noted, variance=averages.variance().cpu())


def describe_pass(encoder: SupportedEncoder, max_length: int, num_sequences: Tensor) -> dict[str, Any]:
    """The metadata of a pass: the model, T, the number of sequences, and versions."""
    return {
        "model": describe_model(encoder),
        "max_length": max_length,
        "sequences": int(num_sequences),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("papa-lightning", "torch", "transformers")},
    }


def describe_model(encoder: nn.Module | SupportedEncoder) -> dict[str, Any]:
    """Name, type, sizes and fingerprint of an encoder; of a local folder the name only, never the path."""
    found = SupportedEncoder.find(encoder)
    config = found.model.config
    return {
        "name": without_path(config.name_or_path or ""),
        "type": config.model_type,
        "layers": found.num_layers,
        "heads": found.num_heads,
        "hidden_size": int(config.hidden_size),
        "weights": weights_fingerprint(found.model),
    }


def without_path(name: str) -> str:
    """The name of a model or tokenizer on the hub; of a local folder the last part, for files that go elsewhere.

    Example:
        >>> without_path("google-bert/bert-base-uncased"), without_path("/models/mine")
        ('google-bert/bert-base-uncased', 'mine')
    """
    path = Path(name).expanduser()
    return path.name if path.is_absolute() or path.exists() else name


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode for the whole module; afterwards every submodule gets back the mode that it had."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


def progress_bar(batches: Iterable[Any], shown: bool) -> Iterable[Any]:
    """The batches, which must be iterable, with the progress bar of a calibration pass."""
    if not any(hasattr(type(batches), name) for name in ("__iter__", "__getitem__")):
        raise CalibrationError(
            f"batches is a {type(batches).__name__}, but must be an iterable of mappings with input_ids and "
            "attention_mask: a list of them, or a DataLoader."
        )
    bar: Iterable[Any] = Progress(batches, "Calibrating", unit="batch", disable=not shown, dynamic_ncols=True)
    return bar
