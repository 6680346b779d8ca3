"""How fast encoders are: stock and swapped ones in turn, with the bound of the arithmetic beside them."""

from papa_lightning.benchmark.bound import block_of
from papa_lightning.benchmark.cases import kind_names
from papa_lightning.benchmark.growth import Growth, fit_exponent, growths
from papa_lightning.benchmark.output import write_benchmark
from papa_lightning.benchmark.results import BenchmarkResult, Measurement
from papa_lightning.benchmark.run import run_benchmark
from papa_lightning.benchmark.settings import BenchmarkSettings, ShapeSettings
from papa_lightning.benchmark.tables import format_result, markdown

__all__ = [
    "BenchmarkResult",
    "BenchmarkSettings",
    "Growth",
    "Measurement",
    "ShapeSettings",
    "block_of",
    "fit_exponent",
    "format_result",
    "growths",
    "kind_names",
    "markdown",
    "run_benchmark",
    "write_benchmark",
]
