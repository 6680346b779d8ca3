"""The commands of `papa` that are no verbs of a Trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, Namespace

from papa_lightning.benchmark import BenchmarkSettings, ShapeSettings, format_result, run_benchmark, write_benchmark
from papa_lightning.calibration import AttentionConstants, CompactConstants
from papa_lightning.calibration.compact.constants import describe_compact
from papa_lightning.cli.choices import ChoicesHelpFormatter
from papa_lightning.export.folder import describe_export
from papa_lightning.export.source import ExportSettings, export_source
from papa_lightning.files.writing import check_output
from papa_lightning.study import (
    FeatureSettings,
    Study,
    StudySettings,
    format_groups,
    format_plan,
    format_summary,
    summarize,
    write_report,
)
from papa_lightning.study.budget.search import format_budget, plan_budget
from papa_lightning.study.budget.settings import BudgetSettings
from papa_lightning.study.comparison.report import is_kinds_study, write_kinds_report
from papa_lightning.study.comparison.results import kinds_overview, summarize_kinds
from papa_lightning.study.comparison.run import KindsStudy
from papa_lightning.study.comparison.settings import KindsSettings
from papa_lightning.study.executors import Backend, check_num_workers
from papa_lightning.study.training import ProbeSettings
from papa_lightning.text import tell

Settings = TypeVar("Settings", StudySettings, BudgetSettings)


def study(arguments: Sequence[str]) -> object:
    """Run ``papa study``.

    Args:
        arguments: What stands behind it on the command line.

    Returns:
        The table of results; with ``--dry_run`` the plan.

    Raises:
        PapaError: See :class:`~papa_lightning.study.Study`.
    """
    given = study_parser().parse_args(list(arguments))
    check_num_workers(given.num_workers, given.backend)
    with _going_on(given.output):
        return _study_kinds(given) if given.kinds.variants else _study_shares(given)


def _study_shares(given: Namespace) -> object:
    """The study of shares that ``papa study`` was told."""
    one = Study(_settings(StudySettings, given), given.output)
    if given.dry_run:
        plans = one.plan()
        tell(f"{format_groups(plans)}\n\n{format_plan(plans)}")
        return plans
    with one.folder.claimed():
        plans = one.plan()
        tell(format_plan(plans))
        table = one.run(plans, num_workers=given.num_workers, backend=given.backend)
        tell(format_summary(summarize(table)))
        tell(f"results  {one.folder.path / 'results.csv'}\nreport   {write_report(one.folder.path)}")
    return table


def _study_kinds(given: Namespace) -> object:
    """The study of kinds that ``papa study`` was told."""
    one = KindsStudy(KindsSettings(**vars(given.kinds)), given.seeds, given.output)
    missing = one.missing()
    tell(f"{len(missing)} of {len(one.seeds) * len(one.settings.variants)} models are to be trained")
    if given.dry_run:
        return missing
    table = one.run(num_workers=given.num_workers, backend=given.backend)
    tell(kinds_overview(summarize_kinds(table)))
    tell(f"results  {one.folder.path / 'kinds.csv'}\nreport   {one.folder.path / 'report.html'}")
    return table


def report(arguments: Sequence[str]) -> object:
    """Run ``papa report``.

    Args:
        arguments: What stands behind it on the command line.

    Returns:
        The path of the page.

    Raises:
        PapaError: When the folder holds no study, or nothing is finished.
    """
    folder = report_parser().parse_args(list(arguments)).folder
    path = write_kinds_report(folder) if is_kinds_study(folder) else write_report(folder)
    tell(f"report   {path}")
    return path


def plan(arguments: Sequence[str]) -> object:
    """Run ``papa plan``.

    Args:
        arguments: What stands behind it on the command line.

    Returns:
        The plan.

    Raises:
        PapaError: See :func:`~papa_lightning.study.budget.search.plan_budget`.
    """
    given = plan_parser().parse_args(list(arguments))
    with _going_on(given.output):
        found = plan_budget(_settings(BudgetSettings, given), given.output)
    tell(format_budget(found, given.output))
    return found


def benchmark(arguments: Sequence[str]) -> object:
    """Run ``papa benchmark``.

    Args:
        arguments: What stands behind it on the command line.

    Returns:
        The measurements.

    Raises:
        PapaError: See :func:`~papa_lightning.benchmark.run_benchmark`.
    """
    given = benchmark_parser().parse_args(list(arguments))
    values: dict[str, Any] = {one.name: given[one.name] for one in fields(BenchmarkSettings)}
    settings = BenchmarkSettings(**values | {"shape": ShapeSettings(**vars(given.shape))})
    if given.output is not None:
        check_output("output", Path(given.output) / "results.json")
    result = run_benchmark(settings)
    tell(format_result(result))
    if given.output is not None:
        tell("\n".join(["", *(f"written  {path}" for path in write_benchmark(result, given.output))]))
    return result


def export(arguments: Sequence[str]) -> object:
    """Run ``papa export``.

    Args:
        arguments: What stands behind it on the command line.

    Returns:
        The path of the folder.

    Raises:
        PapaError: See :func:`~papa_lightning.export_encoder`.
    """
    given = export_parser().parse_args(list(arguments))
    settings = ExportSettings(**{one.name: given[one.name] for one in fields(ExportSettings)})
    folder = export_source(settings, given.output)
    tell(describe_export(folder))
    return folder


def compact(arguments: Sequence[str]) -> object:
    """Run ``papa compact``.

    Args:
        arguments: What stands behind it on the command line.

    Returns:
        The compact constants.

    Raises:
        PapaError: When there are no constants in the file, for bad numbers, or when the output cannot be written.
    """
    given = compact_parser().parse_args(list(arguments))
    check_output("output", given.output)
    fitted = CompactConstants.fit(AttentionConstants.load(given.constants), given.width, given.rank, given.tolerance)
    tell(describe_compact(fitted))
    tell(f"written  {fitted.save(given.output)}")
    return fitted


def study_parser() -> ArgumentParser:
    """The arguments of ``papa study``."""
    parser = _parser("study", "Measure scores against shares of constant heads, and write a report.")
    parser.add_argument("--config", action="config", help="YAML file with any of the arguments; may be repeated")
    parser.add_argument("--output", type=str, required=True, help="folder of the study; one that exists goes on")
    parser.add_argument("--num_workers", type=int, default=1, help="processes that work at the same time")
    parser.add_argument("--backend", type=Backend, default="processes", help="where they are")
    parser.add_argument("--dry_run", action="store_true", help="only print what would be done, and how much it is")
    parser.add_class_arguments(KindsSettings, "kinds")  # another sort of study, where it has variants
    parser.add_class_arguments(StudySettings)
    return parser


def report_parser() -> ArgumentParser:
    """The arguments of ``papa report``."""
    parser = _parser("report", "Write the report of a study: an HTML page and figures.")
    parser.add_argument("folder", type=str, help="folder of the study")
    return parser


def plan_parser() -> ArgumentParser:
    """The arguments of ``papa plan``."""
    parser = _parser(
        "plan", "Find the largest number of heads that can be constant within a loss of the score, and confirm it."
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the arguments; may be repeated")
    parser.add_argument("--output", type=str, required=True, help="folder for ranking, constants and plan")
    parser.add_class_arguments(BudgetSettings)
    return parser


def benchmark_parser() -> ArgumentParser:
    """The arguments of ``papa benchmark``."""
    parser = _parser(
        "benchmark", "Time encoders with other attention against the stock encoder, with the bound of the arithmetic."
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the arguments; may be repeated")
    parser.add_argument("--output", type=str, help="folder for results, tables and figures; without one, only printed")
    parser.add_class_arguments(BenchmarkSettings)
    return parser


def export_parser() -> ArgumentParser:
    """The arguments of ``papa export``."""
    parser = _parser("export", "Write an encoder to a folder, without the query and key weights of its constant heads.")
    parser.add_argument("--config", action="config", help="YAML file with any of the arguments; may be repeated")
    parser.add_argument("--output", type=str, required=True, help="the folder to be made")
    parser.add_class_arguments(ExportSettings)
    return parser


def compact_parser() -> ArgumentParser:
    """The arguments of ``papa compact``."""
    parser = _parser("compact", "Fit a relative profile and column weights to each head of a constants file.")
    parser.add_argument("--constants", type=str, required=True, help="the file, as papa calibrate writes it")
    parser.add_argument("--output", type=str, required=True, help="the file with the compact constants")
    parser.add_argument("--width", type=int, default=64, help="how far before and behind a token the profile reaches")
    parser.add_argument("--rank", type=int, default=16, help="rank of heads that no profile describes")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=None,
        help="largest relative error of a head, which otherwise is of low rank or stays a matrix; profiles by default",
    )
    return parser


def _parser(command: str, description: str) -> ArgumentParser:
    return ArgumentParser(
        prog=f"papa {command}",
        exit_on_error=False,
        description=description,
        formatter_class=ChoicesHelpFormatter,
    )


@contextmanager
def _going_on(output: str) -> Iterator[None]:
    """Tell who interrupts a command that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"the same command goes on from what is finished in {output!r}.") from stop


def _settings(kind: type[Settings], given: Namespace) -> Settings:
    values: dict[str, Any] = {one.name: given[one.name] for one in fields(kind)}
    values["probe"] = ProbeSettings(**vars(given.probe))
    values["features"] = FeatureSettings(**vars(given.features))
    return kind(**values)
