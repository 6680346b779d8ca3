"""The commands of `papa` that are no verbs of a Trainer: ``papa study``, ``papa report`` and ``papa plan``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, Namespace

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
from papa_lightning.study.budget import plan_budget
from papa_lightning.study.budget_settings import BudgetSettings
from papa_lightning.study.budget_words import format_budget
from papa_lightning.study.executors import Backend
from papa_lightning.study.training import ProbeSettings

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
    one = Study(_settings(StudySettings, given), given.output)
    plans = one.plan()
    if given.dry_run:
        print(f"{format_groups(plans)}\n\n{format_plan(plans)}")
        return plans
    print(format_plan(plans))
    table = one.run(plans, num_workers=given.num_workers, backend=given.backend)
    print(format_summary(summarize(table)))
    print(f"results  {one.folder.path / 'results.csv'}\nreport   {write_report(one.folder.path)}")
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
    path = write_report(report_parser().parse_args(list(arguments)).folder)
    print(f"report   {path}")
    return path


def plan(arguments: Sequence[str]) -> object:
    """Run ``papa plan``.

    Args:
        arguments: What stands behind it on the command line.

    Returns:
        The plan.

    Raises:
        PapaError: See :func:`~papa_lightning.study.budget.plan_budget`.
    """
    given = plan_parser().parse_args(list(arguments))
    found = plan_budget(_settings(BudgetSettings, given), given.output)
    print(format_budget(found, given.output))
    return found


def study_parser() -> ArgumentParser:
    """The arguments of ``papa study``."""
    parser = _parser("study", "Measure scores against shares of constant heads, and write a report.")
    parser.add_argument("--config", action="config", help="YAML file with any of the arguments; may be repeated")
    parser.add_argument("--output", type=str, required=True, help="folder of the study; one that exists goes on")
    parser.add_argument("--num_workers", type=int, default=1, help="processes that work at the same time")
    parser.add_argument("--backend", type=Backend, default="processes", help="where they are")
    parser.add_argument("--dry_run", action="store_true", help="only print what would be done, and how much it is")
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


def _parser(command: str, description: str) -> ArgumentParser:
    return ArgumentParser(prog=f"papa {command}", exit_on_error=False, description=description)


def _settings(kind: type[Settings], given: Namespace) -> Settings:
    values: dict[str, Any] = {one.name: given[one.name] for one in fields(kind)}
    values["probe"] = ProbeSettings(**vars(given.probe))
    values["features"] = FeatureSettings(**vars(given.features))
    return kind(**values)
