"""Sections of the report with figures of scores."""

import math

import pandas as pd

from papa_lightning.calibration import CONTROLS
from papa_lightning.figures.bars import control_points, drop_against_baseline
from papa_lightning.figures.curves import score_curves, sequences_curve
from papa_lightning.study.correlation import RankCorrelation, rank_correlation
from papa_lightning.study.report.data import StudyData
from papa_lightning.study.report.findings import number, seeds_in_words, telling_shares
from papa_lightning.study.report.sections import SECTIONS, Block, Drawing, Drawings, Figures, Text, noted
from papa_lightning.study.settings import kind_of

#: Fewest encoders for a conclusion from a rank correlation: four in the same order happen once in 24 by chance.
TELLING_ENCODERS = 5
_SIZES = 'Sizes of the data are under "How it was measured".'


@SECTIONS.section("curves", "Score by share of constant heads", place=20)
def curve_section(data: StudyData, figures: Figures) -> list[Block]:
    """Score against share of constant heads, a figure for each encoder and task."""
    drawn = []
    for encoder, task in data.pairs:
        rows = data.with_recovery(encoder, task)
        if rows["mean"].notna().any():
            caption = (
                f"{encoder}, {task}: {rows['metric'].iloc[0]} by share of constant heads, one line for each criterion "
                f"that ranks the heads; at 0 and 100 % the criterion does not matter. {_measured(data, rows)}"
            )
            drawn.append(figures.add(score_curves(rows, f"{encoder} · {task}"), ["score", encoder, task], caption))
    note = (
        "Error bars are those of the paired difference to all heads dynamic, drawn around the score: a bar that does "
        "not reach the dashed line is a difference. The grey band is the margin. Axes need not begin at 0, but span at "
        "least a tenth of the score; lines are moved aside a little. Values show where a pointer rests on a point."
    )
    return noted(note, drawn)


@SECTIONS.section("controls", "Controls: other kinds of constants", place=50)
def control_section(data: StudyData, figures: Figures) -> list[Block]:
    """Score by kind of constants, and by number of averaged sequences."""
    drawn: list[Drawing] = []
    for encoder, task in data.pairs:
        rows = data.controls(encoder, task)
        rows = _in_order(rows[rows["mean"].notna()]) if len(rows) else rows
        controls = rows[rows["constants"] != "average"]
        shares = telling_shares(controls["share"])
        if len(controls):
            drawn += _control_figures(data, figures, rows[rows["share"].isin(shares)], shares[-1])
    note = (
        "If another kind of constants scores as well as the average, the content of the average does not matter for "
        "the task: the encoder does not need that information, or a probe makes up for it."
    )
    return noted(note, drawn)


@SECTIONS.section("encoders", "Do better models lose more?", place=90)
def encoder_section(data: StudyData, figures: Figures) -> list[Block]:
    """Relative drop against score with all heads dynamic, and their rank correlation across encoders."""
    rows = data.relative
    points = rows.loc[(rows["share"] == 1.0) & rows["relative"].notna(), ["encoder", "task", "relative"]]
    points = points.assign(
        drop=-points["relative"],
        baseline=[_baseline(data, *pair) for pair in zip(points["encoder"], points["task"], strict=True)],
    )
    if len(data.pairs) < 2:
        return []
    if len(points) < 3:
        text = f"Too few results to ask whether better models lose more: {len(points)} of the 3 pairs that it takes."
        return [Text(text + _left_out(data))]
    caption = (
        "One point for each encoder and task: marker for the task, letter for the encoder. Relative drop with all "
        "heads constant against the score with all heads dynamic, means over seeds. Metrics differ between tasks, so "
        f"compare points of the same marker. {_SIZES}{_left_out(data)}"
    )
    shown = figures.add(drop_against_baseline(points), ["encoders"], caption)
    tables = [points.pivot(index="task", columns="encoder", values=value) for value in ("baseline", "drop")]
    found = rank_correlation(*(table.to_numpy(float) for table in tables))
    return [Text(_correlation(found)), Drawings([shown])]


def _control_figures(data: StudyData, figures: Figures, rows: pd.DataFrame, share: float) -> list[Drawing]:
    encoder, task = rows["encoder"].iloc[0], rows["task"].iloc[0]
    title, baseline = f"{encoder} · {task}", _baseline(data, encoder, task)
    caption = (
        f"{encoder}, {task}: {rows['metric'].iloc[0]} by kind of constants. Where some heads are dynamic, heads are "
        f"ranked by {rows['criterion'].iloc[0]}. {_measured(data, rows)}"
    )
    drawn = [figures.add(control_points(rows, title, baseline), ["controls", encoder, task], caption)]
    counts = {kind: kind_of(kind).sequences for kind in dict.fromkeys(rows["constants"])}
    chosen = rows[(rows["share"] == share) & rows["constants"].map(lambda kind: counts[kind] is not None)]
    if len(chosen) > 1:
        whole = rows.loc[(rows["share"] == share) & (rows["constants"] == "average"), "mean"]
        average = float(whole.iloc[0]) if len(whole) else math.nan
        sequences = [counts[kind] or 0 for kind in chosen["constants"]]
        caption = (
            f"{encoder}, {task}: {rows['metric'].iloc[0]} with {100 * share:.3g} % of the heads constant, by the "
            f"number of sequences whose attention the constants average. {_measured(data, chosen)}"
        )
        figure = sequences_curve(sequences, chosen, title, baseline, average)
        drawn.append(figures.add(figure, ["sequences", encoder, task], caption))
    return drawn


def _in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows by kind of constants: the plain kinds, those of other tasks, and sequences by their number."""

    def place(kind: str) -> tuple[int, int]:
        parsed = kind_of(kind)
        if parsed.sequences is not None:
            return 2, parsed.sequences
        plain = list(CONTROLS)
        return (0, plain.index(kind)) if kind in plain else (1, 0)

    kinds = {kind: number for number, kind in enumerate(sorted(dict.fromkeys(rows["constants"]), key=place))}
    return rows.sort_values("constants", key=lambda column: column.map(kinds), kind="stable")


def _baseline(data: StudyData, encoder: str, task: str) -> float:
    found = data.baseline(encoder, task)
    return math.nan if found is None else float(found["mean"])


def _correlation(found: RankCorrelation) -> str:
    if math.isnan(found.rho):
        return (
            f"A rank correlation takes at least 3 encoders whose results differ; here are {found.encoders}. The figure "
            "shows single points, from which nothing can be concluded."
        )
    known = math.isfinite(found.low) and math.isfinite(found.high)
    ends = f"95 % interval {number(found.low, 2)} to {number(found.high, 2)}" if known else "no interval"
    if found.encoders < TELLING_ENCODERS:
        meaning = (
            f"From {found.encoders} encoders nothing can be concluded, whatever the interval: the bootstrap draws the "
            "same few again and again."
        )
    elif found.low > 0 or found.high < 0:
        meaning = f"Among these encoders, those that score higher lose {'more' if found.low > 0 else 'less'}."
    else:
        meaning = "The interval contains 0 or is not defined: these results do not say whether better models lose more."
    return (
        f"Spearman's rank correlation of score and relative drop, encoders ranked within each task, is "
        f"{number(found.rho, 2)} ({ends}, bootstrap over {found.encoders} encoders). {meaning} Noise of a "
        "baseline raises its own drop, so differences between encoders should be large beside their intervals."
    )


def _measured(data: StudyData, rows: pd.DataFrame) -> str:
    sizes = data.sizes(rows["encoder"].iloc[0], rows["task"].iloc[0])
    return _error_bars(rows) + (f" {sizes}." if sizes else "")


def _error_bars(rows: pd.DataFrame) -> str:
    least, most = int(rows["n"].min()), int(rows["n"].max())
    basis = [one for one in dict.fromkeys(rows["basis"]) if one != "none"]
    random = int(rows["rankings"].max())
    orders = f"; random is the mean of {random} random orders" if random > 1 else ""
    if rows["unit"].iloc[0] != "examples":  # embeddings, which have no seeds
        return f"Error bars are 95 % intervals over {' or '.join(basis) or 'nothing'}{orders}."
    if not basis:
        return f"{seeds_in_words(most).capitalize()} of the probe and no predictions, so no error bars."
    seeds = seeds_in_words(most) if least == most else f"{least} to {most} seeds"
    return f"Means over {seeds} of the probe{orders}; error bars are 95 % intervals over {' or '.join(basis)}."


def _left_out(data: StudyData) -> str:
    """The pairs that are left out because their score is too low for a relative change."""
    low = [f"{one} on {task}" for one, task in data.pairs if data.is_low(one, task)]
    if not low:
        return ""
    return f" Left out, because the score with all heads dynamic does not beat chance or is too low: {', '.join(low)}."
