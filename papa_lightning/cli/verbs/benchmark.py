"""``papa benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from papa_lightning.cli.verbs.registry import VERBS
from papa_lightning.files.writing import check_output
from papa_lightning.text import tell

if TYPE_CHECKING:
    from papa_lightning.benchmark import BenchmarkResult


@VERBS.register("benchmark")
def benchmark(*, output: str | None = None, **settings: Any) -> BenchmarkResult:
    """Time encoders with other attention against the stock encoder, with the bound of the arithmetic.

    Args:
        output: Folder for results, tables and figures; null only prints.
        settings: Fields of BenchmarkSettings.
    """
    from papa_lightning.benchmark import BenchmarkSettings, format_result, run_benchmark, write_benchmark

    asked = BenchmarkSettings(**settings)
    if output is not None:
        check_output("output", Path(output) / "results.json")
    result = run_benchmark(asked, keep=None if output is None else lambda finished: finished.save(output))
    tell(format_result(result))
    if output is not None:
        tell("\n".join(["", *(f"written  {path}" for path in write_benchmark(result, output))]))
    return result
