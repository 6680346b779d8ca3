"""Benchmarks: speed and memory of stock and swapped encoders, beside the bound of the arithmetic.

Imports everything below, study and export. A kind with a bound or a set-up of its own has an entry in cases, another
way to run an encoder in backends, another runtime a class in runtimes.
"""

from papa_lightning.benchmark.bound import block_of
from papa_lightning.benchmark.cases import kind_names
from papa_lightning.benchmark.figures import write_benchmark
from papa_lightning.benchmark.growth import Growth, fit_exponent, growths
from papa_lightning.benchmark.results import BenchmarkResult, Measurement, StudyTime
from papa_lightning.benchmark.run import run_benchmark
from papa_lightning.benchmark.settings import BenchmarkSettings, ShapeSettings, StudyTiming
from papa_lightning.benchmark.tables import format_result, markdown

__all__ = [
    "BenchmarkResult",
    "BenchmarkSettings",
    "Growth",
    "Measurement",
    "ShapeSettings",
    "StudyTime",
    "StudyTiming",
    "block_of",
    "fit_exponent",
    "format_result",
    "growths",
    "kind_names",
    "markdown",
    "run_benchmark",
    "write_benchmark",
]
