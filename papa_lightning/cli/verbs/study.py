"""``papa study``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from papa_lightning.cli.verbs.registry import VERBS, resumable
from papa_lightning.errors import PapaError
from papa_lightning.text import tell

if TYPE_CHECKING:
    from papa_lightning.study import KindsSettings, StudySettings
    from papa_lightning.study.executors import Backend
    from papa_lightning.study.parts import StudyPart


@VERBS.register("study")
def study(
    *,
    output: str,
    num_workers: int = 1,
    backend: Backend = "processes",
    dry_run: bool = False,
    part: str | None = None,
    kinds: KindsSettings,
    **settings: Any,
) -> object:
    """Measure scores against shares of constant heads, and write a report.

    Args:
        output: Folder of the study; an existing one is resumed.
        num_workers: Number of processes that work at the same time; on GPUs at most one works for each.
        backend: Where the processes run.
        dry_run: Only print what would be done, its size, and its time, from a trial on a few rows.
        part: Part of the study that this process works on, such as 3/10, while others work on the others in the same
            folder. The last one writes the report.
        kinds: A study that trains variants of a model instead; without variants, there is none.
        settings: Fields of StudySettings.
    """
    from papa_lightning.study import StudySettings
    from papa_lightning.study.executors import check_num_workers
    from papa_lightning.study.parts import StudyPart

    check_num_workers(num_workers, backend)
    if not (kinds.variants or (settings["encoders"] and settings["tasks"])):
        raise PapaError(
            f"{'tasks' if settings['encoders'] else 'encoders'} is empty: pass a file that has encoders and tasks, "
            "such as --config demo.yaml (`papa configs` lists those of the package), or --encoders.NAME FOLDER and "
            "--tasks.NAME.class_path CLASS."
        )
    with resumable():
        if kinds.variants:
            seeds = settings["seeds"]
            if part is not None:
                raise PapaError(f"part is {part!r}, but a study of kinds is not divided: leave it out.")
            return _study_kinds(kinds, seeds, output, num_workers, backend, dry_run)
        own = None if part is None else StudyPart.parse(part)
        return _study_shares(StudySettings(**settings), output, num_workers, backend, dry_run, own)


def _study_shares(
    settings: StudySettings, output: str, num_workers: int, backend: Backend, dry_run: bool, part: StudyPart | None
) -> object:
    from papa_lightning.benchmark.applied import timed_report
    from papa_lightning.study import (
        Study,
        format_filling,
        format_groups,
        format_plan,
        format_summary,
    )
    from papa_lightning.study.comparison.encoders import encoder_tables
    from papa_lightning.study.trial import format_trial

    one = Study(settings, output)
    if dry_run:
        plans = one.plan()
        tell(format_groups(plans), "", format_plan(plans), format_trial(plans, settings))
        return plans
    with one.folder.claimed(part):
        plans = one.plan()
        tell(format_plan(plans))
        table = one.run(plans, num_workers=num_workers, backend=backend, part=part)
        if left := one.unfinished(plans):
            tell(f"part {part} is finished; {left} results of other parts are still missing")
            return table
        found = one.evidence
        tell(format_summary(found.summary, found.notes), *encoder_tables(found))
        tell(*format_filling(one.folder, plans))
        page, notes = timed_report(one.folder.path)
        tell(f"results  {one.folder.path / 'results.csv'}", *notes, f"report   {page}")
    return table


def _study_kinds(
    settings: KindsSettings, seeds: Sequence[int], output: str, num_workers: int, backend: Backend, dry_run: bool
) -> object:
    from papa_lightning.study import KindsStudy, summarize_kinds
    from papa_lightning.study.comparison.results import kinds_overview

    one = KindsStudy(settings, seeds, output)
    missing = one.missing()
    tell(f"{len(missing)} of {len(one.seeds) * len(one.settings.variants)} models are to be trained")
    if dry_run:
        return missing
    table = one.run(num_workers=num_workers, backend=backend)
    tell(kinds_overview(summarize_kinds(table)))
    tell(f"results  {one.folder.path / 'kinds.csv'}\nreport   {one.folder.path / 'report.html'}")
    return table
