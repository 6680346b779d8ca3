"""The curve of a study whose variants differ in one number, such as the heads or the window."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from papa_lightning.figures.style import COLOURS, INK, MUTED, interval_bars, new_figure, styled
from papa_lightning.study.comparison.settings import KindsSettings


def one_number(settings: KindsSettings) -> tuple[str, dict[str, float]] | None:
    """The one argument in which all variants differ, if it is a positive number in each.

    Returns:
        Its name, such as "num_heads" or "kind_options.window", and the number of each variant; None if they differ in
        something else, in more, or in nothing.

    Example:
        >>> task = {"class_path": "LanguageModelingTask", "init_args": {"num_heads": 4}}
        >>> data = {"class_path": "TextFileDataModule"}
        >>> one_number(KindsSettings(model=task, data=data, variants={"four": {}, "one": {"num_heads": 1}}))
        ('num_heads', {'four': 4.0, 'one': 1.0})
    """
    given = {name: dict(_flat(settings.arguments(name) | settings.swap(name))) for name in settings.variants}
    names = {argument for arguments in given.values() for argument in arguments}
    differing = [name for name in names if len({repr(arguments.get(name)) for arguments in given.values()}) > 1]
    if len(differing) != 1:
        return None
    values = {variant: arguments.get(differing[0]) for variant, arguments in given.items()}
    numbers = {variant: float(value) for variant, value in values.items() if value is not None and _is_positive(value)}
    return (differing[0], numbers) if len(numbers) == len(values) else None


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _flat(arguments: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@styled
def score_curve(summary: pd.DataFrame, table: pd.DataFrame, name: str, numbers: Mapping[str, float]) -> Figure:
    """Score against the number, means with 95 % intervals and the single seeds behind them; logarithmic to base 2.

    Args:
        summary: Of :func:`~papa_lightning.study.comparison.results.summarize_kinds`.
        table: Of :func:`~papa_lightning.study.comparison.results.kinds_table`.
        name: Of the argument, as :func:`one_number` gives it.
        numbers: Of each variant.
    """
    ordered = summary.assign(number=summary["variant"].map(numbers)).sort_values("number")
    figure = new_figure(5.2, 3.4)
    axes = figure.subplots()
    axes.plot(table["variant"].map(numbers), table["score"], "o", color=MUTED, markersize=3.5, label="single seeds")
    mean, low, high = (ordered[column].to_numpy(float) for column in ("score", "score_low", "score_high"))
    places = ordered["number"].to_numpy(float)
    axes.errorbar(
        places, mean, yerr=interval_bars(mean, low, high), fmt="o-", color=COLOURS[0], ecolor=INK, label="mean, 95 %"
    )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(places))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{np.round(value, 6):g}")
    axes.set_xlabel(name.rpartition(".")[2].replace("_", " "))
    axes.set_ylabel(str(summary["metric"].iloc[0]).replace("_", " "))
    axes.legend()
    return figure
