"""The calibration pass that leaves compact constants, for lengths at which full ones would not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from papa_lightning.attention import CompactLayer
from papa_lightning.attention.functional import average_attention
from papa_lightning.calibration.collect import add_up, check_max_length, describe_pass
from papa_lightning.calibration.compact.averages import CompactAverages
from papa_lightning.calibration.compact.constants import CompactConstants, check_width, profile_layer
from papa_lightning.calibration.compact.fit import profile_rows, relative_error
from papa_lightning.calibration.constants import plain_metadata
from papa_lightning.encoders import attention_reaches, compute_device, encoder_shape, find_encoder
from papa_lightning.errors import CalibrationError


def calibrate_compact(
    encoder: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    max_length: int,
    *,
    width: int = 64,
    error_rows: int = 64,
    metadata: Mapping[str, Any] | None = None,
    all_reduce: Callable[[Tensor], Tensor] | None = None,
    progress: bool = False,
) -> CompactConstants:
    """Calibrate straight to compact constants, all heads of form "profile".

    The same as ``CompactConstants.fit(calibrate(...), width=width)``, but for rounding, without the L x H matrices of
    T x T. It needs memory for sums over diagonals and columns, L x H x (T + 2 w), and over the rows that the error is
    measured on, for the pair counts (T x T, once for all heads), and for the probabilities of some rows of one layer.

    Args:
        encoder: As for :func:`~papa_lightning.calibrate`.
        batches: As for :func:`~papa_lightning.calibrate`.
        max_length: T, the longest sequence that is calibrated on; :meth:`CompactConstants.extend` goes on from there.
        width: w, how far the profile reaches; more than T - 1 is T - 1.
        error_rows: How many query rows of the average are kept, to measure the error of the fit on. It is exact when
            these are all rows, T or more, else an estimate.
        metadata: What to note in the result.
        all_reduce: Sums a tensor over processes, when several calibrate together.
        progress: Show a progress bar.

    Returns:
        The constants, on the CPU, in float32, or float64 for an encoder in float64.

    Raises:
        UnsupportedEncoderError: For a model that is not a supported encoder.
        ConstantsFileError: For metadata that cannot be saved.
        CalibrationError: For a bad ``max_length``, ``width`` or ``error_rows``, a bad batch, no sequences at all, or
            NaN in the attention.
        PapaError: For a token that is not in the vocabulary.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=8, intermediate_size=8)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
        >>> constants = calibrate_compact(BertModel(config), [batch], max_length=4, width=1)
        >>> constants.layers[0].profile.shape, constants.layers[0].columns.shape
        (torch.Size([2, 3]), torch.Size([2, 4]))
    """
    base = find_encoder(encoder)
    check_max_length(base, max_length)
    check_width("width", width, CalibrationError)
    check_width("error_rows", error_rows, CalibrationError)
    noted = plain_metadata({} if metadata is None else metadata)
    averages = _gather(base, batches, max_length, min(width, max_length - 1), error_rows, progress)
    if all_reduce is not None:
        averages.reduce(all_reduce)
    averages.check()
    return _finish(base, averages, noted)


def _gather(
    encoder: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    max_length: int,
    width: int,
    num_rows: int,
    progress: bool,
) -> CompactAverages:
    heads = encoder_shape(encoder)[1]
    averages = CompactAverages(attention_reaches(encoder), heads, max_length, width, num_rows, compute_device(encoder))
    add_up(encoder, averages, batches, progress)
    return averages


def _finish(encoder: PreTrainedModel, averages: CompactAverages, metadata: Mapping[str, Any]) -> CompactConstants:
    dtype = torch.promote_types(encoder.dtype, torch.float32)
    layers: list[CompactLayer] = []
    errors: list[Tensor] = []
    for number, reach in enumerate(averages.reaches):
        layer = profile_layer(averages.sums(number), reach, dtype)
        counts = reach.cut(averages.pair_counts)[averages.rows]
        target = average_attention(averages.sampled[number], counts).cpu()
        fitted = profile_rows(layer.profile, layer.columns, averages.rows, reach)
        errors.append(relative_error(target, fitted, counts.cpu()))
        layers.append(layer)
    length = layers[0].max_length
    rows = {} if len(averages.rows) == length else {"error_rows": len(averages.rows)}
    noted = describe_pass(encoder, length, averages.num_sequences)
    compact = {"compact": {"width": averages.width, **rows}}
    return CompactConstants(tuple(layers), torch.stack(errors), {**metadata, **noted, **compact})
