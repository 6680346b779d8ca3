"""Sections of the report that are text and tables, and how numbers are written in it."""

import math
from collections.abc import Iterable

import pandas as pd

from papa_lightning.study.report.data import StudyData
from papa_lightning.study.report.sections import SECTIONS, Block, Facts, Figures, Text
from papa_lightning.text import Table
from papa_lightning.version import __version__


def number(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """A number with a number of decimals: fewer when it is large, more when it would read 0."""
    if not math.isfinite(value):
        return "not measured"
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


def share_in_words(share: float) -> str:
    """A share of the heads in words."""
    if share == 1.0:
        return "all heads"
    return "half of the heads" if abs(share - 0.5) < 0.005 else f"{100.0 * share:.3g} % of the heads"


def seeds_in_words(count: int) -> str:
    """A number of seeds in words."""
    return "one seed" if count == 1 else f"{count} seeds"


def telling_shares(shares: Iterable[float]) -> list[float]:
    """The shares that headlines and bars show: the one next to a half that is neither none nor all, and the largest."""
    measured = sorted({share for share in shares if share > 0})
    between = [share for share in measured if share < 1.0]
    middle = [min(between, key=lambda share: abs(share - 0.5))] if between else []
    return sorted({*middle, *measured[-1:]})


def finding(data: StudyData, encoder: str, task: str) -> str:
    """The result in one to three sentences; changes are absolute where the score with all heads dynamic is too low."""
    baseline, rows = data.baseline(encoder, task), data.main_curve(encoder, task)
    if baseline is None:
        return "The score with all heads dynamic has not been measured yet, so changes are not known."
    known = rows[rows["mean"].notna()]
    chosen = known[known["share"].isin(telling_shares(known["share"]))].sort_values("share")
    low, metric = data.is_low(encoder, task), baseline["metric"]
    changes = [_change(row, "difference" if low else "relative") for _, row in chosen.iterrows()]
    change = f"{metric} changes by {', and by '.join(changes)}" if changes else "nothing else has been measured yet"
    by = "" if set(chosen["share"]) <= {1.0} else f"; heads ranked by {chosen['criterion'].iloc[0]}"
    ends = interval(baseline["low"], baseline["high"])
    seeds = seeds_in_words(int(baseline["n"]))
    start = f"{number(baseline['mean'])} ({f'95 % interval {ends}; ' if ends else ''}{seeds}{by})"
    if low:
        return (
            f"With all heads dynamic {metric} is only {start}: too low for a relative change to mean anything. In "
            f"units of the metric, {change}."
        )
    return f"{change[:1].upper()}{change[1:]}. With all heads dynamic it is {start}."


def _change(row: pd.Series, column: str) -> str:
    """A change with its interval: "-3.9 % (95 % interval -5.0 to -2.8) with all heads constant"."""
    value, low, high = (float(row[name]) for name in (column, f"{column}_low", f"{column}_high"))
    relative = column == "relative"
    amount = percent(value) if relative else number(value, signed=True)
    ends = interval(low, high, relative, signed=True)
    if not math.isfinite(value):
        doubt = "a seed lacks its score with all heads dynamic"
    elif not ends:
        doubt = "no interval" if row["n"] > 1 else "one seed, so no interval"
    else:
        # At the printed precision: an interval that ends at "0.0" contains 0 for its reader.
        step = 0.0005
        doubt = f"95 % interval {ends}" + (", so it may be chance" if low <= step and high >= -step else "")
    return f"{amount} ({doubt}) with {share_in_words(row['share'])} constant"


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


@SECTIONS.section("findings", "What was found", place=10)
def finding_section(data: StudyData, figures: Figures) -> list[Block]:
    """The result of every encoder on every task in words."""
    blocks: list[Block] = []
    for encoder, task in data.pairs:
        blocks += [Text(f"{encoder}, {task}", "heading"), Text(finding(data, encoder, task))]
    return blocks


@SECTIONS.section("tables", "Tables", place=100)
def table_section(data: StudyData, figures: Figures) -> list[Block]:
    """All means with their intervals, a table for each encoder and task."""
    blocks: list[Block] = [
        Text(
            "Means with 95 % intervals. Differences and relative changes are against share 0, paired over examples and "
            "seeds. Every single result is in results.csv and results.parquet.",
            "soft",
        )
    ]
    for (encoder, task), rows in data.summary.groupby(["encoder", "task"], sort=False):
        # The task's own score first, then metric by metric.
        rows = rows.sort_values(["is_score", "metric"], ascending=[False, True], kind="stable")
        random = bool((rows["rankings"] > 1).any())
        columns = ["metric", "constants", "criterion", "share", "seeds", "score", "difference", "relative"]
        lines = [_line(row, random) for _, row in rows.iterrows()]
        table = Table(columns + ["spread of rankings"] * random, lines, left=3)
        blocks += [Text(f"{encoder}, {task}", "heading"), table]
    return blocks


@SECTIONS.section("measured", "How it was measured", place=110)
def measured_section(data: StudyData, figures: Figures) -> list[Block]:
    """Machine, versions, sizes and settings behind the numbers."""
    about = dict(data.about)
    pairs = about.pop("pairs", None)
    blocks: list[Block] = [Facts(about)] if about else []
    if isinstance(pairs, list) and all(isinstance(pair, dict) for pair in pairs):
        for pair in pairs:
            rest = {name: value for name, value in pair.items() if name not in ("encoder", "task")}
            blocks += [Text(f"{pair.get('encoder')}, {pair.get('task')}", "heading"), Facts(rest)]
    if data.missing:
        blocks.append(Text(f"Files that the study names and that are missing: {', '.join(data.missing)}."))
    return blocks


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
    spread = row["ranking_deviation"]
    return cells + ([number(spread) if pd.notna(spread) else ""] if random else [])


def _estimate(row: pd.Series, value: str, low: str, high: str, signed: bool) -> str:
    relative = value == "relative"
    text = percent(row[value]) if relative else number(row[value], signed=signed)
    ends = interval(row[low], row[high], relative, signed=signed)
    return f"{text} ({ends})" if ends else text
