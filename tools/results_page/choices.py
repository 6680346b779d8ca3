"""Blocks on choices: what the constants are, and which criterion ranks the heads."""

from __future__ import annotations

import math
import re

from papa_lightning.criteria import criterion_from
from papa_lightning.text import counted
from results_page.data import HALF, Average, Part, Results, average
from results_page.words import change, grouped, sign_words, tables

#: What an interval of an area settles.
_WORDS = ("better", "worse", "not told apart")
#: Shares of the controls, and their names.
_SHARES = ((HALF, "half"), (1.0, "all"))


def constants(results: Results) -> str:
    """Kinds of constants beside the average, by encoder, and whether pruning does as well."""
    part = results.tasks
    kinds = _kinds(part)
    blocks = [_pruning(part)] if "zero" in kinds else []
    for encoder in part.encoders:
        rows = [_kind_row(part, encoder, kind) for kind in ("average", *kinds)]
        shown = [row for row in rows if any(row[1:])]
        if len(shown) > 1:
            columns = (encoder, "tasks", "half: change", "half: to average", "all: change", "all: to average")
            blocks.append(tables(columns, shown))
    return "\n\n".join(blocks)


def _kinds(part: Part) -> list[str]:
    """Kinds of constants other than the average: plain ones, then numbers of sequences, then those of other tasks."""
    found = dict.fromkeys(part.rows.loc[part.rows["kind"] == "difference", "constants"])

    def order(kind: str) -> tuple[int, int]:
        number = re.fullmatch(r"sequences:(\d+)", kind)
        return (1, int(number[1])) if number else (2 if kind.startswith("other:") else 0, 0)

    return sorted(found, key=order)


def difference(part: Part, encoder: str, share: float, kind: str) -> Average | None:
    """The mean of the paired differences of a kind of constants to the average, over tasks that beat chance."""
    rows = part.known(encoder, share, part.first, constants=kind, kind="difference")
    return average([row for row in rows if row["beats_chance"] and kind != f"other:{row['task']}"])


def _kind_row(part: Part, encoder: str, kind: str) -> tuple[str, ...]:
    cells, tasks = list[str](), 0
    for share, _ in _SHARES:
        rows = part.known(encoder, share, part.first, constants=kind)
        whole = average([row for row in rows if kind != f"other:{row['task']}"])
        beside = None if kind == "average" else difference(part, encoder, share, kind)
        tasks = max(tasks, 0 if whole is None else len(whole.tasks))
        cells += [change(whole), change(beside)]
    return f"`{kind}`", f"{tasks or ''}", *cells


def _pruning(part: Part) -> str:
    """Where pruning does as well as the average."""
    words = ("pruning is better than the average", "the average is better", "pruning cannot be told from the average")
    lines = []
    for share, name in _SHARES:
        found = {encoder: difference(part, encoder, share, "zero") for encoder in part.encoders}
        known = {encoder: one for encoder, one in found.items() if one is not None and math.isfinite(one.low)}
        if known:
            said = {encoder: sign_words(one, *words) for encoder, one in known.items()}
            figures = ", ".join(f"{encoder} {change(one)}" for encoder, one in known.items())
            lines.append(f"- With {name} of the heads: {grouped(said, words)}. Pruned minus average: {figures}.")
    return "\n".join(lines)


def criteria(results: Results) -> str:
    """Areas between the curves of criteria and of random orders, their costs, and a recommendation."""
    part = results.tasks
    blocks = []
    for encoder in part.encoders:
        rows = [_criterion_row(part, encoder, one) for one in part.criteria]
        shown = [row for row in rows if any(row[2:])]
        if len(shown) > 1:
            columns = (encoder, "passes", "tasks", "area against random", f"against `{part.first}`", "change at half")
            blocks.append(tables(columns, shown))
    return "\n\n".join([_recommendation(part), *blocks]) if blocks else ""


def _criterion_row(part: Part, encoder: str, criterion: str) -> tuple[str, ...]:
    against = [average(part.areas(encoder, criterion, other)) for other in ("random", part.first)]
    tasks = max((len(one.tasks) for one in against if one is not None), default=0)
    at_half = change(part.change(encoder, HALF, criterion))
    cost = f"{criterion_from(criterion).passes:g}"
    return f"`{criterion}`", cost, f"{tasks or ''}", *map(change, against), at_half


def _recommendation(part: Part) -> str:
    """The criterion with the largest area, and whether it is settled that it is better than the first one."""
    known = {
        one: [found for encoder in part.encoders if (found := average(part.areas(encoder, one, "random"))) is not None]
        for one in part.criteria
        if one != "random"
    }
    means = {one: sum(area.value for area in found) / len(found) for one, found in known.items() if found}
    if not means:
        return ""
    lines, any_better = list[str](), False
    for one in means:
        found = {encoder: average(part.areas(encoder, one, "random")) for encoder in part.encoders}
        known = {name: area for name, area in found.items() if area is not None and math.isfinite(area.low)}
        said = {encoder: sign_words(area, *_WORDS) for encoder, area in known.items()}
        any_better |= _WORDS[0] in said.values()
        if said:
            lines.append(f"- `{one}` against random orders: {grouped(said, _WORDS)}.")
    best = max(means, key=lambda one: means[one])
    told = _choice(part, best) if any_better else "None is settled to be better than random orders for any encoder."
    return "\n".join([*lines, f"- {told}"])


def _choice(part: Part, best: str) -> str:
    """Which criterion to take: another than the first only where an encoder settles that it is better."""
    if best == part.first:
        return f"The largest area, on average over the encoders, has `{best}`: take it."
    found = {encoder: average(part.areas(encoder, best, part.first)) for encoder in part.encoders}
    known = {encoder: one for encoder, one in found.items() if one is not None and math.isfinite(one.low)}
    better = [encoder for encoder, one in known.items() if one.low > 0]
    worse = [encoder for encoder, one in known.items() if one.high < 0]
    settled = f"settled for {counted(len(better), 'encoder')} of {len(known)}"
    if better and not worse:
        taken = f"take it where {criterion_from(best).passes:g} passes are affordable"
    else:
        taken = f"take `{part.first}`, which costs {criterion_from(part.first).passes:g} passes"
    return (
        f"The largest area, on average over the encoders, has `{best}`; that it is better than `{part.first}` is "
        f"{settled}: {taken}."
    )
