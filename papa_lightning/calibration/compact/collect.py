"""The calibration pass to compact constants, for lengths at which full ones do not fit in memory."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from papa_lightning.attention import CompactLayer, Reach, Slots
from papa_lightning.attention.functional import average_attention
from papa_lightning.calibration.averages import RunningSums
from papa_lightning.calibration.collect import add_up, check_max_length, describe_pass
from papa_lightning.calibration.compact.constants import CompactConstants, check_width, profile_layer
from papa_lightning.calibration.compact.fit import band_sums, profile_rows, relative_error, row_bands
from papa_lightning.calibration.constants import plain_metadata
from papa_lightning.encoders import Packing, SupportedEncoder, compute_device
from papa_lightning.errors import CalibrationError


class CompactAverages(RunningSums):
    """Float64 sums of attention over diagonals and columns, and over a sample of query rows, up to T of them."""

    added = ("diagonals", "columns", "sampled", *RunningSums.added)
    checked = "columns"

    def __init__(
        self,
        reaches: Sequence[Reach],
        num_heads: int,
        max_length: int,
        width: int,
        num_rows: int,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(max_length, device)
        self.reaches, self.width, layers = tuple(reaches), width, len(reaches)
        order = torch.randperm(max_length, generator=torch.Generator().manual_seed(0))
        self.rows = order[:num_rows].sort().values  # independent of the data: the error of the fit is a sum over rows
        self.diagonals = self.zeros(layers, num_heads, 2 * width + 1)  # i - j = o at ``w + o``
        self.columns = self.zeros(layers, num_heads, max_length)
        self.sampled = self.zeros(layers, num_heads, len(self.rows), max_length)

    def add_rows(self, layer: int, first: int, rows: Tensor, slots: Slots | None = None) -> None:
        """See :meth:`RunningSums.add_rows`."""
        device, length = self.columns.device, rows.shape[3]
        bands = row_bands(rows, first, self.width).sum(dim=(0, 2))
        self.diagonals[layer] += bands.to(device, torch.float64)
        self.columns[layer, :, :length] += rows.sum(dim=(0, 2)).to(device, torch.float64)
        places = ((self.rows >= first) & (self.rows < first + rows.shape[2])).nonzero().flatten()
        if len(places) > 0:
            sampled = rows[:, :, (self.rows[places] - first).to(rows.device)].sum(dim=0)
            self.sampled[layer, :, places.to(device), :length] += sampled.to(device, torch.float64)


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
    packing: bool = True,
    tokens_per_batch: int | None = None,
) -> CompactConstants:
    """Calibrate straight to compact constants, all heads of form "profile".

    The same as ``CompactConstants.fit(calibrate(...), width=width)``, but for rounding, without the L x H matrices of
    T x T. It needs memory for sums over diagonals and columns, L x H x (T + 2 w), and over the rows that the error is
    measured on, for the pair counts (T x T, once for all heads), and for the probabilities of some rows of one layer.

    Args:
        encoder: As for :func:`~papa_lightning.calibrate`.
        batches: As for :func:`~papa_lightning.calibrate`.
        max_length: T, the longest sequence of the pass; :meth:`CompactConstants.extend` serves longer ones.
        width: w, the farthest offset of the profile; more than T - 1 is T - 1.
        error_rows: Number of query rows of the average on which the error of the fit is measured. The error is exact
            with T rows or more, else an estimate.
        metadata: As for :func:`~papa_lightning.calibrate`.
        all_reduce: As for :func:`~papa_lightning.calibrate`.
        progress: Whether to show a progress bar.
        packing: As for :func:`~papa_lightning.calibrate`.
        tokens_per_batch: As for :func:`~papa_lightning.calibrate`.

    Returns:
        The constants, on the CPU, in float32, or float64 for an encoder in float64.

    Raises:
        PapaError: As for :func:`~papa_lightning.calibrate`; a CalibrationError also for a bad width or error_rows.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=8, intermediate_size=8)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
        >>> constants = calibrate_compact(BertModel(config), [batch], max_length=4, width=1)
        >>> constants.layers[0].profile.shape, constants.layers[0].columns.shape
        (torch.Size([2, 3]), torch.Size([2, 4]))
    """
    found = SupportedEncoder.find(encoder)
    check_max_length(found.model, max_length)
    check_width("width", width, CalibrationError)
    check_width("error_rows", error_rows, CalibrationError)
    settings = Packing(packing, tokens_per_batch)
    noted = plain_metadata({} if metadata is None else metadata) | settings.noted(compute_device(found.model))
    averages = CompactAverages(
        found.reaches, found.num_heads, max_length, min(width, max_length - 1), error_rows, compute_device(found.model)
    )
    add_up(found, averages, batches, progress, settings)
    if all_reduce is not None:
        averages.reduce(all_reduce)
    averages.check_sequences()
    averages.check_finite()
    return _finish(found, averages, noted)


def _finish(found: SupportedEncoder, averages: CompactAverages, metadata: Mapping[str, Any]) -> CompactConstants:
    """Fit a profile to the sums of each head, and measure its error on the sampled rows."""
    dtype = torch.promote_types(found.model.dtype, torch.float32)
    layers: list[CompactLayer] = []
    errors: list[Tensor] = []
    for number, reach in enumerate(averages.reaches):
        sums = band_sums(averages.diagonals[number], averages.columns[number], averages.pair_counts, reach)
        layer = profile_layer(sums, reach, dtype)
        counts = reach.cut(averages.pair_counts)[averages.rows]
        target = average_attention(averages.sampled[number], counts).cpu()
        fitted = profile_rows(layer.profile, layer.columns, averages.rows, reach)
        errors.append(relative_error(target, fitted, counts.cpu()))
        layers.append(layer)
    length = layers[0].max_length
    rows = {} if len(averages.rows) == length else {"error_rows": len(averages.rows)}
    noted = describe_pass(found, length, averages.num_sequences)
    compact = {"compact": {"width": averages.width, **rows}}
    return CompactConstants(tuple(layers), torch.stack(errors), {**metadata, **noted, **compact})
