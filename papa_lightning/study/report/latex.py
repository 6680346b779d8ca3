"""The results of a study as a table of LaTeX."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from papa_lightning.files.writing import write_atomically
from papa_lightning.study.comparison.report import is_kinds_study, read_kinds
from papa_lightning.study.comparison.results import kinds_overview
from papa_lightning.study.statistics import Evidence
from papa_lightning.text import counted

_NOTE = "% \\usepackage{booktabs}\n"


def write_latex(folder: str | Path) -> Path:
    """Write results.tex, a table environment with the tasks' own scores, means with 95 % intervals.

    A row for each encoder, task, kind of constants and criterion, and a column for each share of constant heads; for a
    comparison of kinds a row for each variant. The rules are those of the package booktabs.

    Args:
        folder: Folder of a study, finished or not.

    Returns:
        Path of the file.

    Raises:
        PapaError: When the folder holds no study or no finished result, or a file in it is damaged.
    """
    text = _kinds_latex(folder) if is_kinds_study(folder) else _shares_latex(folder)
    return write_atomically(Path(folder).expanduser() / "results.tex", (_NOTE + text).encode())


def _shares_latex(folder: str | Path) -> str:
    summary = Evidence.read(folder).summary
    own = summary[summary["is_score"].astype(bool)]
    names = ["encoder", "task", "metric", "constants", "criterion"]
    cells = own.assign(cell=[_cell(row) for _, row in own.iterrows()], share=100 * own["share"])
    rows = cells[names].drop_duplicates()
    table = cells.pivot(index=names, columns="share", values="cell").reindex(pd.MultiIndex.from_frame(rows))
    table.columns = pd.Index([f"{share:.4g} %" for share in table.columns])
    shown = table.reset_index()
    kept = [name for name in names if name in ("encoder", "task", "criterion") or shown[name].nunique() > 1]
    probes = set(own["unit"]) == {"examples"}
    seeds = f": means over {counted(int(own['n'].max()), 'seed')}" if probes else ""
    basis = ", ".join(found for found in dict.fromkeys(own["basis"]) if found != "none")
    metrics = ", ".join(dict.fromkeys(own["metric"]))
    caption = f"{metrics} by share of constant heads{seeds}" + (f", 95 % intervals over {basis}." if basis else ".")
    return _latex(shown[[*kept, *table.columns]].fillna("--"), len(kept), caption)


def _kinds_latex(folder: str | Path) -> str:
    data = read_kinds(folder)
    overview = kinds_overview(data.summary)
    caption = f"Kinds of attention: means over {counted(len(data.seeds), 'seed')} with 95 % intervals."
    return _latex(pd.DataFrame(overview.rows, columns=list(overview.columns)), 1, caption)


def _cell(row: pd.Series) -> str:
    if pd.isna(row["mean"]):
        return "--"
    interval = "" if pd.isna(row["low"]) else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['mean']:.3f}{interval}"


def _latex(table: pd.DataFrame, left: int, caption: str) -> str:
    columns = "l" * left + "r" * (len(table.columns) - left)
    caption = re.sub(r"([%_&#])", r"\\\1", caption)  # which pandas leaves as it is
    found: str = table.to_latex(index=False, escape=True, column_format=columns, caption=caption, label="tab:papa")
    return found.replace("±", "$\\pm$")
