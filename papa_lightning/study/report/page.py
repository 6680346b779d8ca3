"""The page of a study."""

from pathlib import Path

from papa_lightning.files.writing import write_atomically
from papa_lightning.study.report import answer, findings, heads, scores  # noqa: F401 (they register their sections)
from papa_lightning.study.report.data import read_study
from papa_lightning.study.report.sections import SECTIONS, Figures, render
from papa_lightning.text import counted

_LEAD = (
    "How the score of a task depends on the share of attention heads that are constant: heads that use the average of "
    "their attention matrices over a calibration pass, whatever the input (PAPA, Hassid et al. 2022, arXiv 2211.03495)."
)


def write_report(folder: str | Path) -> Path:
    """Write the report of a study: report.html, and its figures as files in figures/.

    The page needs no network and no other file. The same study gives the same bytes.

    Args:
        folder: Folder of a study, finished or not.

    Returns:
        Path of the page.

    Raises:
        PapaError: When the folder holds no study or no finished result, or a file in it is damaged.
    """
    data = read_study(folder)
    encoders, tasks = ({pair[place] for pair in data.pairs} for place in (0, 1))
    title = f"{counted(len(encoders), 'encoder')}, {counted(len(tasks), 'task')}"
    if len(encoders) == 1 and len(tasks) == 1:
        title = f"{min(encoders)} on {min(tasks)}"
    text = render(f"Constant attention heads: {title}", _LEAD, SECTIONS.built(data, Figures(data.folder / "figures")))
    return write_atomically(data.folder / "report.html", text.encode())
