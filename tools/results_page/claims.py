"""Blocks on the claims of the paper: what half of the heads cost, what all of them cost, and who loses more."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd

from papa_lightning.study import rank_correlation
from papa_lightning.study.correlation import RankCorrelation
from papa_lightning.study.report.data import LOW_SCORE
from papa_lightning.study.report.findings import number, percent
from papa_lightning.study.verdicts import verdict_of
from papa_lightning.text import counted
from results_page.data import HALF, Average, Part, Results, average
from results_page.words import (
    NONE,
    PAPER,
    VERDICTS,
    change,
    grouped,
    listed,
    marked,
    of_row,
    score,
    sign_words,
    tables,
    verdict,
)

#: Fewest encoders whose rank correlation has an interval here, and can be a verdict.
_FEWEST = 5
#: Title of rows without tasks whose scores are near 0.
_SOLID = f"mean of scores of at least {LOW_SCORE}"
#: Title of means that can be compared between criteria.
_COMMON = "mean of the tasks that all criteria have"


def verdicts(results: Results) -> str:
    """The three verdicts, each with its figures."""
    lines = [_half(results.tasks), _all(results.tasks), _better(results)]
    return "\n".join(f"- {' '.join(line.split())}" for line in lines if line)


def summary(results: Results) -> str:
    """The scores of one encoder with half and all heads constant, by task: of that with the most tasks above chance."""
    part = results.tasks
    if not part:
        return ""
    encoder = max(part.encoders, key=lambda name: sum(row["beats_chance"] for row in part.known(name, 0.0)))
    rows = [
        (
            f"{row['task']}, {row['metric'].replace('_', ' ')}, n {row['examples']:,}",
            number(row["mean"]),
            *(change(part.row(encoder, row["task"], share, part.first)) for share in (HALF, 1.0)),
        )
        for row in part.known(encoder, 0.0)
        if row["beats_chance"]
    ]
    seeds = counted(int(part.own["n"].max()), "probe")
    return tables(
        (f"{encoder}, {seeds} a cell", "all dynamic", f"half constant, by `{part.first}`", "all constant"), rows
    )


def _changes(part: Part, share: float, criterion: str = "", solid: bool = False) -> dict[str, Average]:
    """The mean changes by encoder; `solid` leaves out tasks with scores near 0."""
    found = {
        encoder: part.change(encoder, share, criterion, tasks=part.solid(encoder) if solid else None)
        for encoder in part.encoders
    }
    return {encoder: one for encoder, one in found.items() if one is not None}


def _without_low(part: Part, share: float, criterion: str = "") -> str:
    """The mean changes without tasks whose scores are near 0, if there are such tasks."""
    found, whole = (_changes(part, share, criterion, solid) for solid in (True, False))
    left = {name: one for name, one in found.items() if len(one.tasks) < len(whole[name].tasks)}
    return f"Of scores of at least {LOW_SCORE} alone: {_figures(left)}." if left else ""


def _figures(found: dict[str, Average]) -> str:
    """Mean changes by encoder, with the number of tasks."""
    return ", ".join(f"{name} {change(one)} over {counted(len(one.tasks), 'task')}" for name, one in found.items())


def _half(part: Part) -> str:
    found = _changes(part, HALF, part.first)
    said = {name: verdict(one.estimate) for name, one in found.items()}
    if not any(said.values()):
        return ""
    answer = _half_answer(set(said.values()))
    return (
        f"**Half of the heads cost nothing?** {answer}. By `{part.first}`, mean of the relative changes: "
        f"{_figures(found)} ({grouped(said, VERDICTS)}). {_without_low(part, HALF, part.first)} "
        f"{_singles(part)}"
    )


def _half_answer(said: set[str]) -> str:
    """One answer to the first claim from the verdicts on all encoders."""
    ranks = {list(VERDICTS).index(one) for one in said if one}
    if ranks == {0}:
        return "Yes, within 1 %"
    if max(ranks) <= 2:
        return "Nearly: at most 3 % is lost"
    if min(ranks) >= 4:
        return "No"
    return "Not by every encoder" if max(ranks) >= 4 else "Not settled"


def _singles(part: Part) -> str:
    """Single tasks on which half of the heads lose more than the mean may hide."""
    rows = [(name, row) for name in part.encoders for row in part.known(name, HALF, part.first)]
    lost = [f"{name} on {row['task']} {change(row)}" for name, row in rows if verdict_of(of_row(row), NONE) == "beyond"]
    return (
        f"More than 1 % lost, settled: {listed(lost)}."
        if lost
        else "On no single task is more than 1 % settled to be lost."
    )


def _all(part: Part) -> str:
    found = _changes(part, 1.0)
    known = {name: one for name, one in found.items() if math.isfinite(one.low)}
    if not known:
        return ""
    said = {name: _against_paper(one) for name, one in known.items()}
    order = ("less than 8 %", "8 % lies in the interval", "more than 8 %")
    settled = [one for one in (order[0], order[2]) if one in said.values()]
    answers = {order[0]: "Less", order[2]: "More"}
    answer = answers[settled[0]] if len(settled) == 1 else "It depends on the encoder" if settled else "Not settled"
    answer += ", where it is settled" if len(settled) == 1 and order[1] in said.values() else ""
    figures = f"{_figures(found)} ({grouped(said, order)}). {_without_low(part, 1.0)}"
    return f"**All heads cost {100 * PAPER:.0f} %?** {answer}. {figures}"


def _against_paper(one: Average) -> str:
    if one.low > -PAPER:
        return "less than 8 %"
    return "more than 8 %" if one.high < -PAPER else "8 % lies in the interval"


def correlation(part: Part, share: float = 1.0, criterion: str = "") -> RankCorrelation:
    """Rank correlation of the score with all heads dynamic and the relative drop, over encoders and tasks."""
    scores, drops = (np.full((len(part.tasks), len(part.encoders)), math.nan) for _ in range(2))
    for place in np.ndindex(scores.shape):
        names = part.encoders[place[1]], part.tasks[place[0]]
        base, row = part.row(*names, 0.0), part.row(*names, share, criterion)
        if base is not None and row is not None and math.isfinite(row["relative"]):
            scores[place], drops[place] = base["mean"], -row["relative"]
    return rank_correlation(scores, drops)


def _better(results: Results) -> str:
    graded, pretrained = correlation(results.graded), correlation(results.tasks)
    if math.isnan(graded.rho) and math.isnan(pretrained.rho):
        return ""
    if graded.encoders >= _FEWEST and math.isfinite(graded.low):
        answer = "Yes" if graded.low > 0 else "The other way round" if graded.high < 0 else "Not settled"
        losses = _changes(results.graded, 1.0)
        if not any(one.high < 0 for one in losses.values()):
            answer += " by rank, but no loss of a checkpoint is settled" if answer != "Not settled" else ""
        said = (
            f"{answer}. Checkpoints of one training, rank correlation of score and relative drop: {_rho(graded)}; the "
            f"last one changes by {change(list(losses.values())[-1])} with all heads constant"
        )
    else:
        said = "Not settled: too few encoders that are alike in everything else have been measured"
    beside = f"; the pretrained ones: {_rho(pretrained)}" if math.isfinite(pretrained.rho) else ""
    return f"**Better models lose more?** {said}{beside}."


def _rho(one: RankCorrelation) -> str:
    if math.isnan(one.rho):
        return "not defined"
    few = one.encoders < _FEWEST or math.isnan(one.low)  # resamples of so few are all alike
    ends = " (too few for an interval)" if few else f" ({number(one.low, 2)} to {number(one.high, 2)})"
    return f"{number(one.rho, 2)}{ends}, {counted(one.encoders, 'encoder')}, {counted(one.tasks, 'task')}"


def tasks(results: Results) -> str:
    """Scores of every encoder on every task, after the last and after the best epoch."""
    part = results.tasks
    if not part:
        return ""
    places = [(0.0, ""), (HALF, part.first), (HALF, "random"), (1.0, "")]
    columns = ("task, metric, examples", "all dynamic", f"half, `{part.first}`", "half, random", "all constant")
    blocks = []
    for encoder in part.encoders:
        rows = []
        for task in part.tasks:
            own = [
                score(part.row(encoder, task, *place), part.row(encoder, task, *place, best=True)) for place in places
            ]
            if any(own):
                base = part.row(encoder, task, 0.0)
                size = "" if base is None else f", n {base['examples']:,}"
                level = "" if base is None or base["beats_chance"] else ", at chance"
                rows.append((f"{task}, {part.metrics[encoder, task].replace('_', ' ')}{size}{level}", *own))
        layers, heads = part.layers(encoder)
        about = f"**{encoder}**, {layers} layers, {heads} heads; {_seeds(part, encoder)}"
        blocks.append(f"{about}\n\n{tables(columns, rows)}")
    return "\n\n".join(blocks)


def _seeds(part: Part, encoder: str) -> str:
    """Number of seeds, or the smallest and the largest one."""
    counts = part.own.loc[part.own["encoder"] == encoder, "n"]
    least, most = int(counts.min()), counted(int(counts.max()), "seed")
    return most if least == counts.max() else f"{least} to {most}"


def half(results: Results) -> str:
    """Relative changes of half of the heads by task and criterion, and what they settle."""
    part = results.tasks
    blocks, every = list[str](), dict[tuple[str, str, str], str]()
    for encoder in part.encoders:
        criteria = [one for one in part.criteria if part.known(encoder, HALF, one)]
        if not criteria:
            continue
        found = {one: part.change(encoder, HALF, one) for one in criteria}
        rows = []
        for task in part.tasks:
            own = [part.row(encoder, task, HALF, one) for one in criteria]
            rows.append((task, *map(marked, own)))
            for name, row in zip(criteria, own, strict=True):
                if row is not None and math.isfinite(row["relative"]):
                    every[encoder, task, name] = verdict(of_row(row))
        rows.append(("**mean**", *(marked(found[one]) for one in criteria)))
        solid = [part.change(encoder, HALF, one, tasks=part.solid(encoder)) for one in criteria]
        if any(one != found[name] for name, one in zip(criteria, solid, strict=True)):
            rows.append((_SOLID, *map(marked, solid)))
        measured = [set(one.tasks) for one in found.values() if one is not None]
        if any(one != measured[0] for one in measured):
            common = [part.change(encoder, HALF, one, tasks=set.intersection(*measured)) for one in criteria]
            rows.append((_COMMON, *map(marked, common)))
        columns = (encoder, *(f"`{one}`" for one in criteria))
        kept = [row for row in rows if any(row[1:])]
        blocks.append(tables(columns, kept))
    return "\n\n".join([_counts(every), *blocks]) if blocks else ""


def _counts(every: dict[tuple[str, str, str], str]) -> str:
    """How many combinations have which verdict, and which are settled within 1 %."""
    settled = [one for one in every.values() if one]
    counts = {words: settled.count(words) for words in VERDICTS}
    text = f"Of {counted(len(settled), 'combination')} of encoder, task and criterion: "
    text += ", ".join(f"{count} {words}" for words, count in counts.items() if count) + "."
    good = [name for name, words in every.items() if words == "at most 1 % lost"]
    by_criterion = {one: [name for name in good if name[2] == one] for one in dict.fromkeys(name[2] for name in good)}
    parts = [
        f"by `{one}` " + listed(f"{encoder} on {task}" for encoder, task, _ in names)
        for one, names in by_criterion.items()
    ]
    return f"{text} Within 1 %: {'; '.join(parts)}." if parts else f"{text} None is settled within 1 %."


def everything(results: Results) -> str:
    """Relative changes of all heads by task and encoder."""
    part = results.tasks
    found = _changes(part, 1.0)
    if not found:
        return ""
    rows = [(task, *(change(part.row(one, task, 1.0)) for one in found)) for task in part.tasks]
    rows.append(("**mean**", *map(change, found.values())))
    solid = {name: part.change(name, 1.0, tasks=part.solid(name)) for name in found}
    if solid != found:
        rows.append((_SOLID, *map(change, solid.values())))
    rows.append(("mean, best epoch", *(change(part.change(name, 1.0, best=True)) for name in found)))
    worst = [
        (row["relative"], name, row["task"])
        for name in found
        for row in part.known(name, 1.0)
        if math.isfinite(row["relative"])
    ]
    drop, name, task = min(worst)
    told = f"The largest loss is {percent(drop)}, of {name} on {task}." if drop < 0 else "No task loses anything."
    return f"{tables(('task', *found), [row for row in rows if any(row[1:])])}\n\n{told}"


def better(results: Results) -> str:
    """Losses by depth of the pretrained encoders, and by checkpoint of the graded ones."""
    return "\n\n".join(text for text in (_graded(results.graded), _depth(results.tasks)) if text)


def _losses(part: Part) -> list[tuple[str, str, str, str]]:
    """Encoder, tasks above chance, and mean changes at half and at all."""
    rows = []
    for encoder in part.encoders:
        whole = part.change(encoder, 1.0)
        tasks = "0" if whole is None else f"{len(whole.tasks)}"
        rows.append((encoder, tasks, change(part.change(encoder, HALF, part.first)), change(whole)))
    return [row for row in rows if any(row[2:])]


def _graded(part: Part) -> str:
    rows = _losses(part)
    if not rows:
        return ""
    found = {"all heads constant": correlation(part), f"half, `{part.first}`": correlation(part, HALF, part.first)}
    told = "; ".join(f"{name} {_rho(one)}" for name, one in found.items())
    columns = ("checkpoint", "tasks above chance", f"half, `{part.first}`", "all constant")
    return f"{tables(columns, rows)}\n\nRank correlation of score and relative drop: {told}."


def _depth(part: Part) -> str:
    rows = _losses(part)
    if not rows:
        return ""
    lines = [(f"{row[0]}, {part.layers(row[0])[0]} layers", *row[1:]) for row in rows]
    names = sorted(_changes(part, 1.0), key=part.layers)
    told = [_beside(part, *both) for both in itertools.pairwise(names)]
    words = f"With all heads constant {listed(one for one in told if one)}." if any(told) else ""
    columns = ("pretrained encoder", "tasks above chance", f"half, `{part.first}`", "all constant")
    return f"{tables(columns, lines)}\n\n{words}".strip()


def _beside(part: Part, first: str, second: str) -> str:
    """Whether the deeper encoder loses more, on the tasks that both have; their intervals as if independent."""
    rows = {name: {row["task"]: row for row in part.known(name, 1.0)} for name in (first, second)}
    common = [task for task in part.tasks if all(_is_known(own.get(task)) for own in rows.values())]
    one, other = (average([rows[name][task] for task in common]) for name in (first, second))
    if one is None or other is None:
        return ""
    found = other.minus(one)
    words = sign_words(found, "loses less than", "loses more than", "loses neither more nor less than")
    return f"{second} {words} {first} (difference {change(found)} over {counted(len(common), 'task')})"


def _is_known(row: pd.Series | None) -> bool:
    return row is not None and math.isfinite(row["relative"])
