"""Make the measured tables and figures of docs/results_kinds.md: first a small file of results, then the page from it.

    python tools/make_kinds_tables.py collect NAME STUDY...
    python tools/make_kinds_tables.py page

The studies of one name are runs of one comparison of kinds that differ in `kinds.steps`. On the page, everything
between a comment `<!-- kinds: NAME -->` and its end is replaced; the rest stays.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from papa_lightning.errors import PapaError
from papa_lightning.figures import as_svg
from papa_lightning.figures.style import interval_bars, new_figure, series_style, styled
from papa_lightning.files.writing import write_atomically
from papa_lightning.study.comparison.report import read_kinds
from papa_lightning.study.intervals import mean_interval

DOCS = Path(__file__).parents[1] / "docs"
DATA, PAGE = DOCS / "data" / "kinds.csv", DOCS / "results_kinds.md"
#: Columns of the file: what a training is, and what it reached.
COLUMNS = ["study", "steps", "variant", "kind", "seed", "metric", "score", "loss", "parameters"]
_DECIMALS = 6
#: A variant whose name ends with its learning rate.
_RATE = re.compile(r"(.+)-(\d(?:\.\d+)?e-\d+)")


def collect(name: str, folders: list[Path], output: Path) -> pd.DataFrame:
    """Write the results of the studies of one name, in place of those that the file has of it.

    Raises:
        PapaError: When a study is not finished, or two have the same steps.
    """
    tables = list[pd.DataFrame]()
    for folder in folders:
        study = read_kinds(folder)
        if len(study.table) < len(study.settings.variants) * len(study.seeds):
            raise PapaError(f"{str(folder)!r} is not finished: run `papa study` again with its settings.")
        tables.append(study.table.assign(study=name)[COLUMNS])
    rows = pd.concat(tables)
    if rows.duplicated(["steps", "variant", "seed"]).any():
        raise PapaError(f"two studies of {name!r} have the same steps: pass each once.")
    rows = rows.sort_values("steps", kind="stable")
    if output.exists():
        before = pd.read_csv(output)
        rows = pd.concat([before[before["study"] != name], rows])
    write_atomically(output, rows.round(_DECIMALS).to_csv(index=False).encode())
    return rows


def with_blocks(text: str, results: pd.DataFrame) -> str:
    """The text of the page with a new table and figure in each block.

    Raises:
        PapaError: When the blocks of the page are not the studies of the results.
    """
    names = re.findall(r"<!-- kinds: (\S+) -->", text)
    if sorted(names) != sorted(set(results["study"])):
        raise PapaError(f"the page has the blocks {names}, but the file has {list(dict.fromkeys(results['study']))}.")

    def made(found: re.Match[str]) -> str:
        name, rows = found[1], results[results["study"] == found[1]]
        parts = [f"<!-- kinds: {name} -->", (rates_table if has_rates(rows) else table)(rows)]
        if has_figure(rows):
            parts.append(f"![Score by kind of attention and steps, with 95 % intervals](figures/{figure_name(name)})")
        return "\n\n".join([*parts, f"<!-- end of {name} -->"])

    return re.sub(r"<!-- kinds: (\S+) -->.*?<!-- end of \1 -->", made, text, flags=re.DOTALL)


def has_figure(rows: pd.DataFrame) -> bool:
    """Whether a study has several numbers of steps, which its figure shows."""
    return len(set(rows["steps"])) > 1


def figure_name(name: str) -> str:
    """Name of the file of a study's figure."""
    return f"kinds_{name}.svg"


def table(rows: pd.DataFrame) -> str:
    """Scores by variant and steps; the last steps' loss, parameters, and difference to the first variant, by seed."""
    numbers = sorted(set(rows["steps"]))
    variants, metric = list(dict.fromkeys(rows["variant"])), str(rows["metric"].iloc[0]).replace("_", " ")
    last = rows[rows["steps"] == numbers[-1]]
    scores = last.pivot_table(index="seed", columns="variant", values="score")
    lines = list[tuple[str, ...]]()
    for variant in variants:
        own = rows[rows["variant"] == variant]
        cells = [with_half(own.loc[own["steps"] == steps, "score"]) for steps in numbers]
        beside = "" if variant == variants[0] else with_half(scores[variant] - scores[variants[0]], signed=True)
        own = last[last["variant"] == variant]
        lines.append((f"`{variant}`", *cells, beside, with_half(own["loss"]), f"{own['parameters'].iloc[0]:,}"))
    heads = [f"{metric}, {numbers[0]:,} steps", *(f"{steps:,} steps" for steps in numbers[1:])]
    columns = ("attention", *heads, f"minus `{variants[0]}`", "loss, nats", "parameters")
    return "\n".join("| " + " | ".join(line) + " |" for line in (columns, ("---",) * len(columns), *lines))


def has_rates(rows: pd.DataFrame) -> bool:
    """Whether each variant is a kind with a learning rate, as in "dot-4-5e-4"."""
    return all(_RATE.fullmatch(variant) for variant in rows["variant"])


def rates_table(rows: pd.DataFrame) -> str:
    """Score, and behind a stroke the loss, of kinds by learning rate; the lowest loss of a kind is bold."""
    names = rows["variant"].str.extract(_RATE)
    rates = list(dict.fromkeys(names[1]))
    metric, steps = str(rows["metric"].iloc[0]).replace("_", " "), int(rows["steps"].iloc[0])
    heads = [f"{metric} / loss, {steps:,} steps, rate {rates[0]}", *rates[1:]]
    lines = [("attention", *heads), ("---",) * (1 + len(rates))]
    for kind, own in rows.groupby(names[0], sort=False):
        means = own.groupby(names[1], sort=False)[["score", "loss"]].mean()
        cells = {rate: f"{one.score:.3f} / {one.loss:.3f}" for rate, one in means.iterrows()}
        cells[means["loss"].idxmin()] = f"**{cells[means['loss'].idxmin()]}**"
        lines.append((f"`{kind}`", *(cells.get(rate, "") for rate in rates)))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_half(values: pd.Series, signed: bool = False) -> str:
    """Mean and half of its 95 % interval over the seeds (Student's t); the mean alone for fewer than three seeds."""
    mean, _, high = mean_interval(values.to_numpy(float))
    half = "" if math.isnan(high) else f" ± {high - mean:.3f}"
    return f"{mean:{'+' if signed else ''}.3f}{half}".replace("-", "\N{MINUS SIGN}")


@styled
def figure(rows: pd.DataFrame) -> Figure:
    """Score against steps, a line for each variant, with 95 % intervals over the seeds."""
    drawn = new_figure(5.6, 3.4)
    axes = drawn.subplots()
    variants, numbers = list(dict.fromkeys(rows["variant"])), sorted(set(rows["steps"]))
    for place, variant in enumerate(variants):
        own = rows[rows["variant"] == variant].groupby("steps")["score"]
        mean, low, high = np.array([mean_interval(own.get_group(steps).to_numpy(float)) for steps in numbers]).T
        # Intervals of variants stand beside each other, not on top of each other.
        places = [steps * 1.03 ** (place - len(variants) / 2) for steps in numbers]
        axes.errorbar(places, mean, yerr=interval_bars(mean, low, high), label=variant, **series_style(place))
    axes.set_xscale("log")
    axes.set_xticks(numbers, [f"{steps:,}" for steps in numbers])
    axes.minorticks_off()
    axes.set(xlabel="steps", ylabel=str(rows["metric"].iloc[0]).replace("_", " "))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawn


def main() -> None:
    """Collect results, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("collect", help="read studies, write one file")
    step.add_argument("name", help="of the comparison")
    step.add_argument("studies", type=Path, nargs="+", help="folders of its studies")
    steps.add_parser("page", help="write the blocks of the page, and the figures")
    args = parser.parse_args()
    if args.step == "collect":
        collect(args.name, args.studies, DATA)
        return
    results = pd.read_csv(DATA)
    for name, rows in results.groupby("study", sort=False):
        if has_figure(rows):
            place = DOCS / "figures" / figure_name(str(name))
            write_atomically(place, as_svg(figure(rows), place.name))
    write_atomically(PAGE, with_blocks(PAGE.read_text(encoding="utf-8"), results).encode())


if __name__ == "__main__":
    main()
