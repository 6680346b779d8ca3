"""``papa report``."""

from pathlib import Path

from papa_lightning.cli.verbs.registry import VERBS
from papa_lightning.text import tell


@VERBS.register("report")
def report(folder: str, *, latex: bool = False) -> Path:
    """Write the report of a study: an HTML page and figures, or a table of LaTeX.

    Args:
        folder: Folder of the study.
        latex: Write results.tex, a table for papers, instead of the page.
    """
    if latex:
        from papa_lightning.study.report.latex import write_latex

        table = write_latex(folder)
        tell(f"table    {table}")
        return table
    from papa_lightning.benchmark.applied import timed_report
    from papa_lightning.study import write_kinds_report
    from papa_lightning.study.comparison.report import is_kinds_study

    path, notes = (write_kinds_report(folder), []) if is_kinds_study(folder) else timed_report(folder)
    tell(*notes, f"report   {path}")
    return path
