"""Blocks on choices: what the constants are, and which criterion ranks the heads."""

from __future__ import annotations

import math
import re

import pandas as pd

from papa_lightning.criteria import criterion_from
from papa_lightning.study.intervals import Estimate
from papa_lightning.study.report.data import LOW_SCORE
from papa_lightning.text import counted
from results_page.data import HALF, Average, Part, Results, average
from results_page.words import NONE, change, grouped, listed, of_row, sign_words, tables

#: What an interval of an area settles.
_WORDS = ("better", "worse", "not told apart")
#: What an interval of pruned minus average settles.
_PRUNED = ("pruning is better", "pruning is as good within 1 %", "the average is better", "not told apart")
#: Title of the column without tasks whose scores are near 0.
_SOLID = f"the same, scores of at least {LOW_SCORE}"
#: Shares of the controls, and their names.
_SHARES = ((HALF, "half"), (1.0, "all"))


def constants(results: Results) -> str:
    """Kinds of constants beside the average, by encoder, and whether pruning does as well."""
    part = results.tasks
    kinds = _kinds(part)
    blocks = [_pruning(part)] if "zero" in kinds else []
    blocks += _enough(part, kinds)
    for encoder in part.encoders:
        rows = [_kind_row(part, encoder, kind) for kind in ("average", *kinds)]
        shown = [row for row in rows if any(row[1:])]
        if len(shown) > 1:
            columns = (encoder, "tasks", "half: change", "half: to average", "all: change", "all: to average")
            blocks.append(tables(columns, shown))
    return "\n\n".join(blocks)


def _enough(part: Part, kinds: list[str]) -> list[str]:
    """A sentence on the fewest rows that are enough; none where numbers of rows were not measured."""
    parts = [
        f"{name}, {encoder} on {said}"
        for share, name in _SHARES
        for encoder in part.encoders
        if (said := _fewest(part, encoder, share, kinds))
    ]
    told = "**How many rows are enough**, at most 1 % lost beside the average of all, settled"
    return [f"{told}: {'; '.join(parts)}."] if parts else []


def _fewest(part: Part, encoder: str, share: float, kinds: list[str]) -> str:
    """From how many rows on the loss is settled to be at most 1 %, on the tasks that have all numbers of rows."""
    numbers = {kind: int(kind.split(":")[1]) for kind in kinds if kind.startswith("sequences:")}
    found = {number: own for kind, number in numbers.items() if (own := _differences(part, encoder, share, kind))}
    tasks = [task for task in part.tasks if found and all(task in own for own in found.values())]
    means = {number: average([own[task] for task in tasks]) for number, own in found.items()}
    unsettled = [number for number, mean in means.items() if mean is None or not mean.low >= -NONE]
    enough = [number for number in found if number > max(unsettled, default=0)]
    if not tasks:
        return ""
    said = f"from {counted(min(enough), 'row')}" if enough else f"more than {counted(max(found), 'row')}"
    return f"{listed(tasks)}: {said} (of {listed(map(str, found))} measured)"


def _kinds(part: Part) -> list[str]:
    """Kinds of constants other than the average: plain ones, then numbers of sequences, then those of other tasks."""
    found = dict.fromkeys(part.rows.loc[part.rows["kind"] == "difference", "constants"])

    def order(kind: str) -> tuple[int, int]:
        number = re.fullmatch(r"sequences:(\d+)", kind)
        return (1, int(number[1])) if number else (2 if kind.startswith("other:") else 0, 0)

    return sorted(found, key=order)


def difference(part: Part, encoder: str, share: float, kind: str) -> Average | None:
    """The mean of the paired differences of a kind of constants to the average, over tasks that beat chance."""
    return average(list(_differences(part, encoder, share, kind).values()))


def _differences(part: Part, encoder: str, share: float, kind: str) -> dict[str, pd.Series]:
    """The paired differences to the average by task, of tasks that beat chance and are not that of the kind itself."""
    rows = part.known(encoder, share, part.first, constants=kind, kind="difference")
    return {row["task"]: row for row in rows if row["beats_chance"] and kind != f"other:{row['task']}"}


def _kind_row(part: Part, encoder: str, kind: str) -> tuple[str, ...]:
    cells, tasks = list[str](), dict[str, str]()
    for share, name in _SHARES:
        rows = part.known(encoder, share, part.first, constants=kind)
        whole = average([row for row in rows if kind != f"other:{row['task']}"])
        beside = None if kind == "average" else difference(part, encoder, share, kind)
        if whole is not None:
            tasks[name] = f"{len(whole.tasks)}"
        cells += [change(whole), change(beside)]
    numbers = [*dict.fromkeys(tasks.values())]
    told = numbers if len(numbers) < 2 else [f"{name} {number}" for name, number in tasks.items()]
    return f"`{kind}`", ", ".join(told), *cells


def _pruning(part: Part) -> str:
    """Where pruning does as well as the average: on the mean, and on each task."""
    blocks = []
    for share, name in _SHARES:
        found = {encoder: difference(part, encoder, share, "zero") for encoder in part.encoders}
        known = {encoder: one for encoder, one in found.items() if one is not None and math.isfinite(one.low)}
        if not known:
            continue
        said = {encoder: _pruned(one.estimate) for encoder, one in known.items()}
        rows = {encoder: _differences(part, encoder, share, "zero") for encoder in known}
        single = {
            f"{encoder} on {task}": _pruned(of_row(row)) for encoder, own in rows.items() for task, row in own.items()
        }
        told = f"**Pruning with {name} of the heads**, mean over tasks: {grouped(said, _PRUNED)}."
        lines = [(task, *(change(rows[encoder].get(task)) for encoder in known)) for task in part.tasks]
        lines.append(("**mean**", *map(change, known.values())))
        table = tables(("pruned minus average", *known), [line for line in lines if any(line[1:])])
        blocks.append(f"{told} By task: {grouped(single, _PRUNED)}.\n\n{table}")
    return "\n\n".join(blocks)


def _pruned(one: Estimate) -> str:
    """What the interval of pruned minus average settles."""
    if one.low > 0:
        return _PRUNED[0]
    if one.low >= -NONE:
        return _PRUNED[1]
    return _PRUNED[2] if one.high < 0 else _PRUNED[3]


def criteria(results: Results) -> str:
    """Areas between the curves of criteria and of random orders, their costs, and a recommendation."""
    part = results.tasks
    blocks = []
    for encoder in part.encoders:
        rows = [_criterion_row(part, encoder, one) for one in part.criteria]
        shown = [row for row in rows if row[1]]
        if shown:
            columns = (
                f"{encoder}: passes",
                "tasks; shares",
                "against random",
                _SOLID,
                f"against `{part.first}`",
                _SOLID,
            )
            blocks.append(tables(columns, shown))
    return "\n\n".join([_recommendation(part), *blocks]) if blocks else ""


def _criterion_row(part: Part, encoder: str, criterion: str) -> tuple[str, ...]:
    others = [part.areas(encoder, criterion, against) for against in ("random", part.first)]
    areas = [average(rows) for own in others for rows in (own, _solid(part, own))]
    tasks = max((len(one.tasks) for one in areas if one is not None), default=0)
    shares = " or ".join(f"{number:g}" for number in sorted({row["shares"] for own in others for row in own}))
    about = f"{tasks}; {shares}" if tasks else ""
    return f"`{criterion}`: {criterion_from(criterion).passes:g}", about, *map(change, areas)


def _solid(part: Part, rows: list[pd.Series]) -> list[pd.Series]:
    """The rows of tasks whose scores are not near 0."""
    return [row for row in rows if row["task"] in part.solid(row["encoder"])]


def _recommendation(part: Part) -> str:
    """What is settled of each criterion, and which to take."""
    lines, any_better = list[str](), False
    for criterion in part.criteria:
        rows = [row for encoder in part.encoders for row in part.areas(encoder, criterion, "random")]
        known = {name: one for name, one in _by_encoder(rows).items() if math.isfinite(one.low)}
        said = {encoder: sign_words(one, *_WORDS) for encoder, one in known.items()}
        any_better |= _WORDS[0] in said.values()
        if said:
            lines.append(f"- `{criterion}` against random orders: {grouped(said, _WORDS)}.")
    if lines and not any_better:
        lines.append("- None is settled to be better than random orders for any encoder.")
    return "\n".join([*lines, *[f"- {_choice(part)}"] * any_better])


def _choice(part: Part) -> str:
    """Which criterion to take: another than the first only where an encoder settles that it is better.

    Criteria have results on different tasks, so each is compared with the first on the tasks that both have, without
    those whose scores are near 0, of which relative changes say little. Which of them is the best is judged by the
    encoders and tasks that all of them have, where there are any.
    """
    others = [one for one in part.criteria if one not in (part.first, "random")]
    rows = {one: [row for encoder in part.encoders for row in part.areas(encoder, one, part.first)] for one in others}
    solid = {one: found for one in others if (found := _solid(part, rows[one]))}
    if not solid:
        return f"No other criterion than `{part.first}` has been measured beside random orders."
    places = {one: {(row["encoder"], row["task"]) for row in own} for one, own in solid.items()}
    common = set.intersection(*places.values())

    def gain(criterion: str) -> float:
        own = [row for row in solid[criterion] if not common or (row["encoder"], row["task"]) in common]
        means = [one.value for one in _by_encoder(own).values()]
        return sum(means) / len(means)

    best = max(solid, key=gain)
    known = _by_encoder(solid[best])
    areas = [one for one in known.values() if math.isfinite(one.low)]
    better, worse = (sum(one.low > 0 for one in areas), sum(one.high < 0 for one in areas))
    cheap = f"`{part.first}`, which costs {criterion_from(part.first).passes:g} passes"
    passes = f"{criterion_from(best).passes:g} passes"
    taken = f"take it where {passes} are affordable, else {cheap}" if better and not worse else f"take {cheap}"
    told = "; ".join(f"{encoder} {change(one)}" for encoder, one in known.items())
    single = {f"{row['encoder']} on {row['task']}": sign_words(of_row(row), *_WORDS) for row in rows[best]}
    return (
        f"Beside `{part.first}`, on the tasks that both have with scores of at least {LOW_SCORE}, `{best}` does best: "
        f"{told}. That it is better is settled for {better} of {counted(len(areas), 'encoder')}: {taken}. By task: "
        f"{grouped(single, _WORDS)}."
    )


def _by_encoder(rows: list[pd.Series]) -> dict[str, Average]:
    """The mean areas by encoder."""
    names = dict.fromkeys(row["encoder"] for row in rows)
    found = {name: average([row for row in rows if row["encoder"] == name]) for name in names}
    return {name: one for name, one in found.items() if one is not None}
