"""Sections of words and numbers."""

from __future__ import annotations

from html import escape

import pandas as pd

from papa_lightning.study.report.data import StudyData
from papa_lightning.study.report.html import Section, facts, html_table, paragraph
from papa_lightning.study.report_words import finding, interval, number, percent
from papa_lightning.version import __version__

_PAPER = """@inproceedings{hassid-etal-2022-much,
  title = {How Much Does Attention Actually Attend? Questioning the Importance of Attention in Pretrained Transformers},
  author = {Hassid, Michael and Peng, Hao and Rotem, Daniel and Kasai, Jungo and Montero, Ivan and Smith, Noah A. and
            Schwartz, Roy},
  booktitle = {Findings of the Association for Computational Linguistics: EMNLP 2022},
  year = {2022},
  note = {arXiv 2211.03495}
}"""
_SOFTWARE = """@software{{papa_lightning,
  title = {{papa_lightning}},
  version = {{{version}}},
  note = {{Python package papa-lightning}}
}}"""
_NUMBERS = frozenset({"share", "seeds", "score", "difference", "relative", "spread of rankings"})


def finding_section(data: StudyData) -> Section:
    """What the curves say, a few sentences an encoder and task."""
    told = "".join(
        f"<li><strong>{escape(f'{encoder}, {task}')}:</strong> {escape(finding(data, encoder, task))}</li>"
        for encoder, task in data.pairs
    )
    return Section("findings", "What was found", f'<ul class="findings">{told}</ul>')


def table_section(data: StudyData) -> Section:
    """All means with their intervals, a table an encoder and task."""
    parts = [
        paragraph(
            "Means with 95 % intervals over the seeds of the probe (Student's t). Differences and relative changes are "
            "against share 0 of the same seed. Every single result is in results.csv and results.parquet.",
            soft=True,
        )
    ]
    for (encoder, task), rows in data.summary.groupby(["encoder", "task"], sort=False):
        # The task's own score first, then metric by metric.
        rows = rows.sort_values(["is_score", "metric"], ascending=[False, True], kind="stable")
        parts.append(f"<h3>{escape(f'{encoder}, {task}')}</h3>{_table(rows)}")
    return Section("tables", "Tables", "".join(parts))


def measured_section(data: StudyData) -> Section:
    """How the numbers were measured."""
    about = dict(data.about)
    pairs = about.pop("pairs", None)
    body = facts(about) if about else ""
    if isinstance(pairs, list) and pairs and all(isinstance(pair, dict) for pair in pairs):
        for pair in pairs:
            rest = {name: value for name, value in pair.items() if name not in ("encoder", "task")}
            body += f"<h3>{escape(str(pair.get('encoder')))}, {escape(str(pair.get('task')))}</h3>{facts(rest)}"
    versions = data.table["versions"].nunique()
    if versions > 1:
        body += paragraph(f"The results were made with {versions} different sets of versions; results.csv has them.")
    if data.missing:
        body += paragraph(f"Files that the study names and that are not there: {', '.join(data.missing)}.")
    return Section("measured", "How it was measured", body)


def citation_section() -> Section:
    """How to cite the method and the software."""
    body = f"<pre>{escape(_PAPER)}</pre><pre>{escape(_SOFTWARE.format(version=__version__))}</pre>"
    return Section("cite", "How to cite", paragraph("The method, and the software that measured:") + body)


def _table(rows: pd.DataFrame) -> str:
    random = bool((rows["rankings"] > 1).any())
    columns = ["metric", "constants", "criterion", "share", "seeds", "score", "difference", "relative"]
    lines = [_line(row, random) for _, row in rows.iterrows()]
    return html_table(columns + ["spread of rankings"] * random, lines, _NUMBERS)


def _line(row: pd.Series, random: bool) -> list[str]:
    names = [str(row[name]) for name in ("metric", "constants", "criterion")]
    cells = [*names, f"{100 * row['share']:.4g} %", str(row["n"]), _estimate(row, "mean", "low", "high", False)]
    for name in ("difference", "relative"):
        at_zero = row["share"] == 0.0
        cells.append("" if at_zero else _estimate(row, name, f"{name}_low", f"{name}_high", True))
    spread = row["ranking_deviation"]
    return cells + ([number(spread) if pd.notna(spread) else ""] if random else [])


def _estimate(row: pd.Series, value: str, low: str, high: str, signed: bool) -> str:
    relative = value == "relative"
    text = percent(row[value]) if relative else number(row[value], signed=signed)
    ends = interval(row[low], row[high], relative, signed=signed)
    return f"{text} ({ends})" if ends else text
