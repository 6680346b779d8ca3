"""A benchmark in words: tables for the terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from papa_lightning.benchmark.growth import AXES, Growth, growths
from papa_lightning.benchmark.results import BenchmarkResult

_SIZE = ["encoder", "hidden", "layers", "heads", "batch", "length"]
_HEADER = ("kind", "ms", "spread", "seq/s", "tokens/s", "peak MB", "held MB", "times as fast", "bound", "reached")
_GROWTH_HEADER = ("grows with", "kind", "time", "memory", "fitted over")


def variant_name(kind: str, share: float | None, backend: str) -> str:
    """Kind, share and backend as one name; nothing of what is usual.

    Example:
        >>> variant_name("constant", 0.5, "sdpa"), variant_name("stock", None, "compile")
        ('constant 50 %', 'stock, compile')
    """
    shown = "" if share is None or math.isnan(share) else f" {100 * share:g} %"
    return f"{kind}{shown}" + ("" if backend == "sdpa" and kind != "stock" else f", {backend}")


def describe(about: Mapping[str, Any]) -> str:
    """What it was measured on, in one line."""
    versions = about["versions"]
    return (
        f"{about['cpu']} ({about['cores']} cores, {about['instructions']}), device {about['device']}, "
        f"{about['threads']} threads, {about['dtype']}, median of {about['repeats']}, seed {about['seed']}, "
        + ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "papa_lightning"))
    )


def format_result(result: BenchmarkResult) -> str:
    """The tables of a benchmark for the terminal, one for each size."""
    parts = [describe(result.about)]
    table = result.table()
    for size, rows in table.groupby(_SIZE, sort=False):
        parts.append(f"{_size_name(size)}\n{_aligned([_HEADER, *_rows(rows)])}")
    if found := growths(table):
        parts.append(f"exponents of growth\n{_aligned([_GROWTH_HEADER, *_growth_rows(found)])}")
    return "\n\n".join(parts)


def markdown(result: BenchmarkResult) -> str:
    """The same as Markdown: what it was measured on, one table of all sizes, and the exponents."""
    table = result.table()
    header = ("batch x T", "hidden", "layers", "heads", *_HEADER)
    rows = [
        (f"{batch} x {length}", str(hidden), str(layers), str(heads), *row)
        for (_, hidden, layers, heads, batch, length), own in table.groupby(_SIZE, sort=False)
        for row in _rows(own)
    ]
    parts = [f"{', '.join(dict.fromkeys(table['encoder']))}; {describe(result.about)}.", _piped([header, *rows])]
    if found := growths(table):
        parts.append(_piped([_GROWTH_HEADER, *_growth_rows(found)]))
    return "\n\n".join(parts) + "\n"


def _size_name(size: Sequence[object]) -> str:
    encoder, hidden, layers, heads, batch, length = size
    return f"{encoder}, hidden {hidden}, {layers} layers, {heads} heads, {batch} x {length} tokens"


def _rows(rows: pd.DataFrame) -> Iterable[tuple[str, ...]]:
    for row in rows.itertuples(index=False):
        is_reference = row.kind == "stock" and row.backend == "sdpa"
        yield (
            variant_name(row.kind, row.share, row.backend),
            f"{1e3 * row.seconds:.4g}",
            f"{1e3 * row.low:.4g} to {1e3 * row.high:.4g}",
            f"{row.sequences_per_second:.4g}",
            f"{row.tokens_per_second:.4g}",
            _number(row.peak_bytes, "{:.4g}", 1e-6),
            _number(row.held_bytes, "{:.4g}", 1e-6),
            "1" if is_reference else f"{row.speed:.3f} ({row.speed_low:.3f} to {row.speed_high:.3f})",
            "" if is_reference else _number(row.bound, "{:.3f}"),
            "" if is_reference else _number(row.reached, "{:.1f} %", 100.0),
        )


def _growth_rows(found: Sequence[Growth]) -> Iterable[tuple[str, ...]]:
    pairs: dict[tuple[str, str], dict[str, Growth]] = {}
    for one in found:
        pairs.setdefault((AXES[one.axis], variant_name(*one.variant)), {})[one.quantity] = one
    for (axis, name), own in pairs.items():
        first = next(iter(own.values()))
        span = f"{first.fitted:g} to {first.points[-1][0]:g}"
        yield (axis, name, *(_exponent(own.get(quantity)) for quantity in ("seconds", "memory")), span)


def _exponent(one: Growth | None) -> str:
    return "" if one is None else f"{one.exponent:.2f} ± {one.error:.2f}"


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None or math.isnan(value) else form.format(factor * value)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _piped(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
