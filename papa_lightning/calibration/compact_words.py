"""What a fit of compact constants cost and saved, in words."""

from __future__ import annotations

from papa_lightning.attention.compact.layer import FORMS
from papa_lightning.calibration.compact.constants import CompactConstants

_COLUMNS = ("layer", "error", "largest", "of head", *(form.replace("_", " ") for form in FORMS))
_WIDTHS = (5, 8, 9, 9, 9, 10, 9)


def describe_compact(compact: CompactConstants) -> str:
    """A table of the errors by layer, and the size beside that of an average.

    Args:
        compact: What was fitted.

    Returns:
        Lines: for each layer the mean relative error of its heads, the largest and which head has it, and how many
        heads have each form; then the same over all layers, and how many numbers there are.

    Example:
        >>> import torch
        >>> from papa_lightning import AttentionConstants
        >>> average = AttentionConstants(torch.full((1, 2, 8, 8), 0.125), torch.ones(8, 8))
        >>> print(describe_compact(CompactConstants.fit(average, width=2)))
        layer   error  largest  of head  profile  low rank    dense
        0      0.0000   0.0000        0        2         0        0
        all    0.0000   0.0000        0        2         0        0
        numbers  26, which is 20.31 % of the average's 128
    """
    lines = [_line(*_COLUMNS)]
    for number, (layer, errors) in enumerate(zip(compact.layers, compact.errors, strict=True)):
        counts = [layer.forms.count(form) for form in FORMS]
        lines.append(_line(number, f"{errors.mean():.4f}", f"{errors.max():.4f}", int(errors.argmax()), *counts))
    totals = [sum(layer.forms.count(form) for layer in compact.layers) for form in FORMS]
    errors = compact.errors
    worst = int(errors.max(dim=0).values.argmax())
    lines.append(_line("all", f"{errors.mean():.4f}", f"{errors.max():.4f}", worst, *totals))
    whole = compact.num_layers * compact.num_heads * compact.max_length**2
    share = compact.num_elements / whole
    lines.append(
        f"numbers  {compact.num_elements:,}, which is {share:.2%} of the average's {whole:,}".replace("%", " %")
    )
    return "\n".join(lines)


def _line(*cells: object) -> str:
    first, *others = (str(cell) for cell in cells)
    return first.ljust(_WIDTHS[0]) + "".join(cell.rjust(width) for cell, width in zip(others, _WIDTHS[1:], strict=True))
