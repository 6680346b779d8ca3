"""Tables of a benchmark for the terminal and for Markdown."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from papa_lightning.benchmark.growth import AXES, Growth, growths
from papa_lightning.benchmark.results import BenchmarkResult
from papa_lightning.text import Blocks, Table

_SIZE = ["encoder", "hidden", "layers", "heads", "batch", "length"]
_HEADER = ("kind", "ms", "spread", "seq/s", "tokens/s", "peak MB", "held MB", "times as fast", "bound", "reached")


def variant_name(kind: str, share: float | None, backend: str) -> str:
    """Kind, share and backend as one name, without the usual backend."""
    shown = "" if share is None or math.isnan(share) else f" {100 * share:g} %"
    return f"{kind}{shown}" + ("" if backend == "sdpa" and kind != "stock" else f", {backend}")


def describe(about: Mapping[str, Any]) -> str:
    """Machine, dtype and versions of a benchmark in one line."""
    versions = about["versions"]
    return (
        f"{about['cpu']} ({about['cores']} cores, {about['instructions']}), device {about['device']}, "
        f"{about['threads']} threads, {about['dtype']}, median of {about['repeats']}, seed {about['seed']}, "
        + ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "papa_lightning"))
    )


def format_result(result: BenchmarkResult) -> Blocks:
    """The tables of a benchmark for the terminal, one for each size.

    Args:
        result: The measurements.
    """
    parts: list[Table | str] = [describe(result.about)]
    table = result.table()
    for (encoder, hidden, layers, heads, batch, length), rows in table.groupby(_SIZE, sort=False):
        title = f"{encoder}, hidden {hidden}, {layers} layers, {heads} heads, {batch} x {length} tokens"
        parts.append(Table(_HEADER, list(_rows(rows)), title=title))
    return Blocks([*parts, *_growth_table(table)])


def markdown(result: BenchmarkResult) -> str:
    """The tables of a benchmark in Markdown, with all sizes in one.

    Args:
        result: The measurements.
    """
    table = result.table()
    rows = [
        (f"{batch} x {length}", str(hidden), str(layers), str(heads), *row)
        for (_, hidden, layers, heads, batch, length), own in table.groupby(_SIZE, sort=False)
        for row in _rows(own)
    ]
    measured = f"{', '.join(dict.fromkeys(table['encoder']))}; {describe(result.about)}."
    sizes = Table(("batch x T", "hidden", "layers", "heads", *_HEADER), rows, left=0)
    return Blocks([measured, sizes, *_growth_table(table)]).markdown()


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


def _growth_table(table: pd.DataFrame) -> list[Table]:
    """The exponents of growth, if there are points for them."""
    pairs: dict[tuple[str, str], dict[str, Growth]] = {}
    for one in growths(table):
        pairs.setdefault((AXES[one.axis], variant_name(*one.variant)), {})[one.quantity] = one
    rows = []
    for (axis, name), own in pairs.items():
        first = next(iter(own.values()))
        span = f"{first.fitted:g} to {first.points[-1][0]:g}"
        exponents = {quantity: f"{one.exponent:.2f} ± {one.error:.2f}" for quantity, one in own.items()}
        rows.append((axis, name, exponents.get("seconds", ""), exponents.get("memory", ""), span))
    header = ("grows with", "kind", "time", "memory", "fitted over")
    return [Table(header, rows, left=2, title="exponents of growth")] if rows else []


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None or math.isnan(value) else form.format(factor * value)
