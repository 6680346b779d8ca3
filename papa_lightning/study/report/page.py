"""The report of a study: one page that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from papa_lightning.files.writing import write_atomically
from papa_lightning.study.report.data import StudyData, read_study
from papa_lightning.study.report.findings import citation_section, finding_section, measured_section, table_section
from papa_lightning.study.report.heads import constants_section, level_section, ranking_section
from papa_lightning.study.report.html import Figures, Section, page, paragraph
from papa_lightning.study.report.scores import (
    control_section,
    curve_section,
    drop_section,
    encoder_section,
    relative_section,
)

#: Name of the page in the folder of a study.
REPORT_NAME = "report.html"


def write_report(folder: str | Path) -> Path:
    """Write the report of a study: report.html, and its figures as files in figures/.

    The page needs nothing else, no network and no other file. The same study gives the same bytes.

    Args:
        folder: Of a study, finished or not.

    Returns:
        Path of the page.

    Raises:
        PapaError: When the folder holds no study or no finished result, or a file in it is damaged.
    """
    data = read_study(folder)
    text = page(_title(data), _lead(data), _sections(data, Figures(data.folder / "figures")))
    return write_atomically(data.folder / REPORT_NAME, text.encode())


def _sections(data: StudyData, figures: Figures) -> list[Section]:
    return [
        finding_section(data),
        curve_section(data, figures),
        relative_section(data, figures),
        drop_section(data, figures),
        control_section(data, figures),
        ranking_section(data, figures),
        constants_section(data, figures),
        level_section(data, figures),
        encoder_section(data, figures),
        table_section(data),
        measured_section(data),
        citation_section(),
    ]


def _title(data: StudyData) -> str:
    encoders, tasks = ({pair[place] for pair in data.pairs} for place in (0, 1))
    if len(encoders) == 1 and len(tasks) == 1:
        return f"Constant attention heads: {min(encoders)} on {min(tasks)}"
    return f"Constant attention heads: {_counted(encoders, 'encoder')}, {_counted(tasks, 'task')}"


def _counted(names: set[str], noun: str) -> str:
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'}"


def _lead(data: StudyData) -> str:
    return paragraph(
        "How the score of a task depends on the share of attention heads that are constant: heads that use the "
        "average of their attention matrices over a calibration pass, whatever the input (PAPA, Hassid et al. 2022, "
        "arXiv 2211.03495)."
    )
