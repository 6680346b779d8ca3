"""What a benchmark leaves: results, tables and figures."""

from __future__ import annotations

from pathlib import Path

from papa_lightning.benchmark.figures import growth_figure, speed_figure
from papa_lightning.benchmark.growth import growths
from papa_lightning.benchmark.results import BenchmarkResult
from papa_lightning.benchmark.tables import markdown
from papa_lightning.figures.style import as_png, as_svg
from papa_lightning.files.writing import write_atomically


def write_benchmark(result: BenchmarkResult, folder: str | Path) -> list[Path]:
    """Write results, a Markdown table, and the figures that there are points for.

    Args:
        result: Of :func:`~papa_lightning.benchmark.run.run_benchmark`.
        folder: Is made when missing.

    Returns:
        Paths of ``results.json``, ``results.csv``, ``results.md``, and of ``speed`` and ``growth`` as SVG and PNG.
    """
    folder, table = Path(folder), result.table()
    written = [*result.save(folder), write_atomically(folder / "results.md", markdown(result).encode())]
    figures = {}
    if found := growths(table):
        figures["growth"] = growth_figure(found)
    elif len(table[table["kind"] != "stock"]):
        figures["speed"] = speed_figure(table)
    for name, figure in figures.items():
        written += [
            write_atomically(folder / f"{name}.svg", as_svg(figure, name)),
            write_atomically(folder / f"{name}.png", as_png(figure)),
        ]
    return written
