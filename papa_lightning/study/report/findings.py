"""Sections of the report that are text and tables, and how numbers are written in it."""

import math
from collections.abc import Iterable
from datetime import datetime, timezone

import pandas as pd
import yaml

from papa_lightning.calibration import AttentionConstants, describe_filling
from papa_lightning.figures.heads import coverage_histograms
from papa_lightning.study.report.data import StudyData
from papa_lightning.study.report.sections import SECTIONS, Block, Drawings, Facts, Figures, Folded, Text
from papa_lightning.study.verdicts import verdict_words
from papa_lightning.text import Table
from papa_lightning.version import __version__

#: What differences of equal scores leave of rounding.
_NOTHING = 1e-12


def number(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """A number with a number of decimals: fewer when it is large, more when it would read 0."""
    if not math.isfinite(value):
        return "not measured"
    if abs(value) < _NOTHING:
        value = 0.0
    if value and abs(value) < 0.5 * 10**-digits:
        text = f"{value:{'+' if signed else ''}.1g}".replace("e-0", "e-")
    else:
        text = f"{value:{'+' if signed else ''}.{1 if abs(value) >= 100 else digits}f}"
    return text.replace("-", "\u2212")


def percent(value: float, *, signed: bool = True) -> str:
    """A share as percent with one decimal, and never "-0.0"."""
    if not math.isfinite(value):
        return "not measured"
    rounded = round(100.0 * value, 1) or 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.1f} %".replace("-", "\u2212")


def interval(low: float, high: float, relative: bool = False, *, signed: bool = False) -> str:
    """The ends of a 95 % interval; empty without one."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    first, last = (percent(end)[:-2] if relative else number(end, signed=signed) for end in (low, high))
    return f"{first} to {last}"


def seeds_in_words(count: int) -> str:
    """A number of seeds in words."""
    return "one seed" if count == 1 else f"{count} seeds"


def telling_shares(shares: Iterable[float]) -> list[float]:
    """The shares that headlines and bars show: the one next to a half that is neither none nor all, and the largest."""
    measured = sorted({share for share in shares if share > 0})
    between = [share for share in measured if share < 1.0]
    middle = [min(between, key=lambda share: abs(share - 0.5))] if between else []
    return sorted({*middle, *measured[-1:]})


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


@SECTIONS.section("tables", "Tables", place=100)
def table_section(data: StudyData, figures: Figures) -> list[Block]:
    """All means with their intervals, a table for each encoder and task."""
    blocks: list[Block] = [
        Text(
            "Means with 95 % intervals; differences and relative changes are against share 0, paired. Click a title to "
            "sort. The same numbers are in summary.csv, every single result in results.csv.",
            "soft",
        )
    ]
    for (encoder, task), rows in data.summary.groupby(["encoder", "task"], sort=False):
        # The task's own score first, then metric by metric.
        rows = rows.sort_values(["is_score", "metric"], ascending=[False, True], kind="stable")
        random = bool((rows["rankings"] > 1).any())
        columns = ["metric", "constants", "criterion", "share", "seeds", "score", "difference", "relative", "verdict"]
        columns += ["spread of rankings"] * random
        lines = [_line(row, random) for _, row in rows.iterrows()]
        if rows["unit"].iloc[0] != "examples":  # embeddings have no seeds
            seeds = columns.index("seeds")
            columns, *lines = ([*line[:seeds], *line[seeds + 1 :]] for line in (columns, *lines))
        table = Table(columns, lines, left=3)
        blocks += [Text(f"{encoder}, {task}", "heading"), table]
    return blocks


@SECTIONS.section("measured", "How it was measured", place=110)
def measured_section(data: StudyData, figures: Figures) -> list[Block]:
    """Machine, versions, sizes and settings behind the numbers."""
    about = dict(data.about)
    pairs = about.pop("pairs", None)
    written = datetime.fromtimestamp((data.folder / "results.parquet").stat().st_mtime, tz=timezone.utc)
    blocks: list[Block] = [Facts({"date": f"{written:%Y-%m-%d}", **about})]  # of a study that does not say its own
    if isinstance(pairs, list) and all(isinstance(pair, dict) for pair in pairs):
        for pair in pairs:
            rest = {name: value for name, value in pair.items() if name not in ("encoder", "task")}
            blocks += [Text(f"{pair.get('encoder')}, {pair.get('task')}", "heading"), Facts(rest)]
    if data.settings:
        settings = yaml.safe_dump(dict(data.settings), sort_keys=False, allow_unicode=True)
        command = "papa study --config study.yaml --output DIR, where study.yaml is:"
        blocks.append(Folded("Command and settings", [Text(command), Text(settings, "code")]))
    blocks += _coverage(data, figures)
    if data.missing:
        blocks.append(Text(f"Files that the study names and that are missing: {', '.join(data.missing)}."))
    return blocks


def _coverage(data: StudyData, figures: Figures) -> list[Block]:
    """The number of sequences behind the entries of the averages."""
    drawn = []
    for file in data.constants:
        if file.name != "average":
            continue
        constants = AttentionConstants.load(file.path)
        line = describe_filling(constants.filled())
        caption = (
            f"{file.encoder}, {file.task}: attention averaged over the training examples. Left: number of the T x T "
            "entries by the number of sequences that they average. Right: number of sequences in which a position "
            "holds a real token. Heads use entries that lean on a profile, the more the fewer their sequences"
            + (f"; {line}." if line else ".")
        )
        figure = coverage_histograms(constants.pair_counts, f"{file.encoder} · {file.task}")
        drawn.append(figures.add(figure, ["coverage", file.encoder, file.task], caption))
    return [Drawings(drawn)] if drawn else []


@SECTIONS.section("cite", "How to cite", place=120)
def citation_section(data: StudyData, figures: Figures) -> list[Block]:
    """Citations of the method and of the software."""
    software = _SOFTWARE.format(version=__version__)
    return [Text("The method, and the software that measured:"), Text(_PAPER, "code"), Text(software, "code")]


def _line(row: pd.Series, random: bool) -> list[str]:
    names = [str(row[name]) for name in ("metric", "constants", "criterion")]
    cells = [*names, f"{100 * row['share']:.4g} %", str(row["n"]), _estimate(row, "mean", "low", "high", False)]
    for name in ("difference", "relative"):
        at_zero = row["share"] == 0.0
        cells.append("" if at_zero else _estimate(row, name, f"{name}_low", f"{name}_high", True))
    cells.append(verdict_words(row["verdict"], row["margin"], row["examples_needed"], row["unit"]))
    spread = row["ranking_deviation"]
    return cells + ([number(spread) if pd.notna(spread) else ""] if random else [])


def _estimate(row: pd.Series, value: str, low: str, high: str, signed: bool) -> str:
    relative = value == "relative"
    text = percent(row[value]) if relative else number(row[value], signed=signed)
    ends = interval(row[low], row[high], relative, signed=signed)
    return f"{text} ({ends})" if ends else text
