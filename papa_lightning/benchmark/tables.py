"""Tables of a benchmark for the terminal and for Markdown."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from papa_lightning.benchmark.growth import AXES, Growth, growths
from papa_lightning.benchmark.results import BenchmarkResult
from papa_lightning.text import Blocks, Table

_SIZE = ["encoder", "hidden", "layers", "heads", "batch", "length", "padding"]
_HEADER = ("kind", "ms", "spread", "seq/s", "tokens/s", "peak MB", "held MB", "times as fast", "bound", "reached")


def variant_name(kind: str, share: float | None, backend: str, work: str = "forward") -> str:
    """Kind, share, backend and work as one name, without the usual backend and work."""
    shown = "" if share is None or math.isnan(share) else f" {100 * share:g} %"
    given = [backend] * (backend != "sdpa" or kind == "stock") + [work] * (work != "forward")
    return ", ".join([f"{kind}{shown}", *given])


def input_name(batch: int, length: int, padding: float, unit: str = "") -> str:
    """Batch and length with their unit, and the share of padding where there is some."""
    return f"{batch} x {length}{unit}" + (f", {100 * padding:g} % padding" if padding else "")


def describe(about: Mapping[str, Any]) -> str:
    """Machine, dtype and versions of a benchmark in one line."""
    versions = about["versions"]
    return (
        f"{about['cpu']} ({about['cores']} cores, {about['instructions']}), device {about['device']}, "
        + "".join(f"{name} {value}, " for name, value in about.get("gpu", {}).items())
        + f"{about['threads']} threads, {about['dtype']}, median of {about['repeats']}, seed {about['seed']}, "
        + ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "papa_lightning"))
    )


def format_result(result: BenchmarkResult) -> Blocks:
    """The tables of a benchmark for the terminal, one for each section and size.

    Args:
        result: The measurements.
    """
    parts: list[Table | str] = [describe(result.about)]
    for section, table in result.table().groupby("section", sort=False):
        for (encoder, hidden, layers, heads, batch, length, padding), rows in table.groupby(_SIZE, sort=False):
            size = f"{encoder}, hidden {hidden}, {layers} layers, {heads} heads"
            title = f"{section_title(result, section)}{size}, {input_name(batch, length, padding, ' tokens')}"
            parts.append(Table(_HEADER, list(_rows(rows)), title=title))
        parts += _growth_table(table)
    return Blocks([*parts, *_study_table(result)])


def markdown(result: BenchmarkResult) -> str:
    """The tables of a benchmark in Markdown, one for each section, with all sizes in it.

    Args:
        result: The measurements.
    """
    whole = result.table()
    parts: list[Table | str] = [f"{', '.join(dict.fromkeys(whole['encoder']))}; {describe(result.about)}."]
    for section, table in whole.groupby("section", sort=False):
        rows = [
            (input_name(batch, length, padding), str(hidden), str(layers), str(heads), *row)
            for (_, hidden, layers, heads, batch, length, padding), own in table.groupby(_SIZE, sort=False)
            for row in _rows(own)
        ]
        title = section_title(result, section) + ", ".join(dict.fromkeys(table["encoder"])) if section else ""
        parts.append(Table(("batch x T", "hidden", "layers", "heads", *_HEADER), rows, left=0, title=title))
        parts += _growth_table(table)
    return Blocks([*parts, *_study_table(result)]).markdown()


def section_title(result: BenchmarkResult, section: str) -> str:
    """Name and dtype of a section, before what else a title has; empty without sections."""
    if not section:
        return ""
    dtype = result.settings["sections"][section].get("dtype", result.settings["dtype"])
    return f"{section}: {dtype}, "


def _rows(rows: pd.DataFrame) -> Iterable[tuple[str, ...]]:
    for row in rows.itertuples(index=False):
        is_reference = row.kind == "stock" and row.speed == 1
        yield (
            variant_name(row.kind, row.share, row.backend, row.work),
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


def _study_table(result: BenchmarkResult) -> list[Table]:
    """The times of a study, if there is one."""
    if not result.study:
        return []
    sizes = result.settings["study"]
    title = (
        f"study: {sizes['rows']} + {sizes['evaluated']} rows of up to {sizes['max_length']} tokens, "
        f"hidden {sizes['hidden']}, {sizes['layers']} layers, {sizes['heads']} heads; {sizes['seeds']} probes, "
        f"{sizes['max_epochs']} epochs of batches of {sizes['batch_size']}; seconds"
    )
    parts = list(dict.fromkeys(part for one in result.study for part in one.parts))
    rows = [
        (one.piece, f"{one.seconds:.2f}", *(_number(one.parts.get(part), "{:.2f}") for part in parts))
        for one in result.study
    ]
    return [Table(("piece", "in all", *parts), rows, title=title)]


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None or math.isnan(value) else form.format(factor * value)
