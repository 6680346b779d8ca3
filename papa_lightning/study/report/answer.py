"""The answer at the top of a report: how many heads can be constant, which, and at what cost; and how to apply it."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from papa_lightning.ranking import HeadRanking
from papa_lightning.study.report.applied import Applied, load_applied
from papa_lightning.study.report.data import StudyData
from papa_lightning.study.report.findings import interval, number, percent
from papa_lightning.study.report.sections import SECTIONS, Block, Card, Cards, Figures, Folded, Links, Text
from papa_lightning.study.settings import RECOVERED
from papa_lightning.study.verdicts import counted_units, verdict_words
from papa_lightning.text import Table, counted

#: Most pairs of an encoder and a task that get cards of their own; more are a table.
MOST_CARDS = 2


@dataclass(frozen=True, eq=False)
class Proposal:
    """The heads that a report proposes for one encoder and task.

    Args:
        encoder: Name of the encoder.
        task: Name of the task.
        row: The row of the summary with the largest share within the margin, or with the smallest share if none is.
        following: The row of the next larger share; None if there is none.
        ranking: File of the ranking; None where it is missing.
        constants: File of the average attention; None where it is missing.
        ranking_name: Path of the ranking in the folder of the study.
    """

    encoder: str
    task: str
    row: pd.Series
    following: pd.Series | None
    ranking: Path | None
    constants: Path | None
    ranking_name: str | None

    @property
    def heads(self) -> int:
        """Number of constant heads."""
        return int(self.row["constant_heads"])

    @property
    def settled(self) -> bool:
        """Whether the loss is within the margin."""
        return bool(self.row["verdict"] == "within")

    def chosen(self) -> list[tuple[int, int]]:
        """The heads themselves; none without a ranking."""
        return [] if self.ranking is None else list(HeadRanking.load(self.ranking).heads[: self.heads])


def proposals(data: StudyData) -> list[Proposal]:
    """The proposal for each encoder and task with a measured share of constant heads, by the first criterion."""
    found = []
    for encoder, task in data.pairs:
        curve = data.main_curve(encoder, task)
        if not (curve["share"] > 0).any():
            continue
        criterion = str(curve["criterion"].iloc[0])
        within = data.evidence.largest_within(encoder, task, criterion)
        row = data.evidence.next_after(None, encoder, task, criterion) if within is None else within
        assert row is not None
        rankings = [one for one in data.rankings if (one.encoder, one.task) == (encoder, task)]
        # All random orders are one criterion; elsewhere a detail such as "greedy:64" makes another one.
        orders = [one.path for one in rankings if criterion == "random" == one.name.partition(":")[0]]
        files = orders or [one.path for one in rankings if one.name == criterion]
        averages = [
            one.path for one in data.constants if (one.encoder, one.task, one.name) == (encoder, task, "average")
        ]
        ranking = files[0] if files else None
        name = None if ranking is None else Path(os.path.relpath(ranking, data.folder)).as_posix()
        following = data.evidence.next_after(row, encoder, task, criterion)
        found.append(Proposal(encoder, task, row, following, ranking, averages[0] if averages else None, name))
    return found


@SECTIONS.section("answer", "How many heads can be constant?", place=10)
def answer_section(data: StudyData, figures: Figures) -> list[Block]:
    """Number of heads, which, and cost: cards for one or two pairs, a table for more."""
    found = proposals(data)
    applied = {(one.encoder, one.task, one.heads, one.ranking): one for one in load_applied(data.folder)}
    measured = [applied.get((one.encoder, one.task, one.heads, str(one.ranking_name))) for one in found]
    if not found:
        return [Text("No share of constant heads has been measured yet.")]
    blocks: list[Block] = []
    if len(found) > MOST_CARDS:
        rows = [_line(data, one, speed) for one, speed in zip(found, measured, strict=True)]
        columns = ("encoder", "task", "heads", "verdict", "score", "change", "against random orders", "speed")
        kept = [place for place in range(len(columns)) if any(row[place] for row in rows)]
        shown = [[row[place] for place in kept] for row in rows]
        blocks.append(Table([columns[place] for place in kept], shown, left=len(kept)))
    else:
        for one, speed in zip(found, measured, strict=True):
            title = [Text(f"{one.encoder}, {one.task}", "heading")] if len(found) > 1 else []
            blocks += [*title, Cards([_how_many(data, one), _which(one), _cost(data, one, speed)])]
    return [*blocks, *(Text(note, "soft") for note in data.evidence.notes)]


def _how_many(data: StudyData, proposal: Proposal) -> Card:
    row, following = proposal.row, proposal.following
    share, limit = (f"{100 * row[name]:.3g}\u00a0%" for name in ("share", "margin"))
    heads = f"{proposal.heads} of {row['total_heads']} heads"
    if row["verdict"] == "no baseline":
        return Card("How many?", "No answer: no better than chance", _chance(data, proposal))
    if proposal.settled:
        answer, lines = (
            f"{heads} ({share})",
            [f"They cost at most {limit} of {row['metric']}, the margin of this study."],
        )
    elif row["verdict"] == "beyond":
        answer, lines = "None that was measured", [f"{heads} ({share}) cost more than {limit} of {row['metric']}."]
    else:
        words = verdict_words("open", row["margin"], row["examples_needed"], row["unit"])
        answer, lines = (
            "Not settled",
            [f"Whether {heads} ({share}) cost at most {limit} of {row['metric']} is {words}."],
        )
    if following is not None:
        words = _words(following)
        change = _change(following, "relative")
        lines.append(f"Next measured: {following['constant_heads']} heads, {change}{f': {words}' if words else ''}.")
    return Card("How many?", answer, [*lines, *_recovered(data, proposal), *_chance(data, proposal)])


def _recovered(data: StudyData, proposal: Proposal) -> list[str]:
    """The largest number of heads within the margin where the encoder was trained with its constants."""
    pair = proposal.encoder, proposal.task
    found = data.evidence.largest_within(*pair, str(proposal.row["criterion"]), RECOVERED)
    if found is not None:
        heads = f"{found['constant_heads']} of {found['total_heads']} heads, {_change(found, 'relative')}"
        return [f"With recovery, a training to the embeddings of the original: {heads}: {_words(found)}."]
    first = data.evidence.next_after(None, *pair, str(proposal.row["criterion"]), RECOVERED)
    return [] if first is None else [f"With recovery {first['constant_heads']} heads: {_words(first)}."]


def _chance(data: StudyData, proposal: Proposal) -> list[str]:
    """The score with all heads dynamic beside chance."""
    baseline = data.baseline(proposal.encoder, proposal.task)
    if baseline is None or not math.isfinite(baseline["chance"]):
        return []
    score, chance = number(baseline["mean"]), number(baseline["chance"])
    above = _change(baseline, "above_chance")
    return [f"With all heads dynamic {baseline['metric']} is {score}; chance is {chance}, difference {above}."]


def _which(proposal: Proposal) -> Card:
    row, chosen = proposal.row, proposal.chosen()
    answer = "All of them" if row["share"] == 1.0 else f"The {proposal.heads} with the lowest {row['criterion']} scores"
    if not chosen:
        missing = [] if row["share"] == 1.0 else ["The ranking is missing, so they cannot be listed."]
        return Card("Which?", answer, missing)
    links = {"map of all heads": "#heads", "what each head does": "#atlas"}
    return Card("Which?", answer, [listed_heads(chosen)], links)


def listed_heads(heads: Sequence[tuple[int, int]]) -> str:
    r"""Heads by layer, runs of neighbours as ranges.

    Example:
        >>> listed_heads([(0, 1), (0, 0), (0, 2), (2, 5)]).replace("\N{EN DASH}", "-")
        'Layer 0: 0-2; layer 2: 5'
    """
    layers: dict[int, list[int]] = {}
    for layer, head in sorted(heads):
        layers.setdefault(layer, []).append(head)
    text = "; ".join(f"layer {layer}: {_ranges(own)}" for layer, own in layers.items())
    return text[:1].upper() + text[1:]


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for one in numbers:
        if runs and one == runs[-1][-1] + 1:
            runs[-1].append(one)
        else:
            runs.append([one])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}\u2013{run[-1]}" for run in runs)


def _cost(data: StudyData, proposal: Proposal, applied: Applied | None) -> Card:
    row, baseline = proposal.row, data.baseline(proposal.encoder, proposal.task)
    before = "?" if baseline is None else number(baseline["mean"])
    name = "difference" if math.isnan(row["relative"]) else "relative"
    lines = [f"{row['metric']} {before} \u2192 {number(row['mean'])} ({_basis(row)})", _random(data, proposal)]
    lines += _speed(applied)
    return Card("At what cost?", _change(row, name), lines)


def _basis(row: pd.Series) -> str:
    parts = [counted_units(int(row["examples"]), row["unit"])] if row["examples"] else []
    return ", ".join(parts + [counted(int(row["n"]), "seed")] * (row["unit"] == "examples"))


def _words(row: pd.Series) -> str:
    return verdict_words(row["verdict"], row["margin"], row["examples_needed"], row["unit"])


def _random(data: StudyData, proposal: Proposal) -> str:
    """The score beside that of random orders of the heads."""
    row = proposal.row
    if row["share"] == 1.0:
        return "With all heads constant the order does not matter."
    difference, low, high = (float(row[f"against_random{end}"]) for end in ("", "_low", "_high"))
    if math.isnan(difference):
        return "No random order of the heads was measured beside it."
    rows = data.curves(proposal.encoder, proposal.task)
    random = rows[(rows["criterion"] == "random") & (rows["share"] == row["share"])].iloc[0]
    spread = number(random["ranking_deviation"])
    orders = f"{random['rankings']} random orders, spread {spread}" if random["rankings"] > 1 else "one random order"
    if math.isnan(low):
        meaning = "Beside random"
    else:
        meaning = "Better than random" if low > 0 else "Worse than random" if high < 0 else "No better than random"
    return f"{meaning}: {_change(row, 'against_random')} against {number(random['mean'])} ({orders})."


def _speed(applied: Applied | None) -> list[str]:
    if applied is None:
        return ["Size and speed are not measured; papa report measures them in seconds."]
    count, threads = applied.parameters, applied.machine.get("threads")
    left = count["whole"] - count["left_out"] + count["added"]
    device = f"{applied.machine.get('device')}, {counted(int(threads), 'thread')}" if threads else "this machine"
    return [
        f"Size: {count['whole'] / 1e6:.1f} M \u2192 {left / 1e6:.1f} M parameters "
        f"({percent(left / count['whole'] - 1)}), {count['added'] / 1e6:.2f} M of them constants.",
        f"Speed: {applied.speed:.2f} times the stock encoder (quartiles {applied.speed_low:.2f} to "
        f"{applied.speed_high:.2f}), {1000 * applied.stock_seconds:.0f} \u2192 {1000 * applied.seconds:.0f} ms for "
        f"{applied.input.replace('x', ' x ')} tokens ({device}).",
    ]


def _change(row: pd.Series, name: str) -> str:
    """A change with its interval: "-1.1 % (-3.0 to +0.8)"."""
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    relative = name == "relative"
    text = percent(value).replace(" ", "\u00a0") if relative else number(value, signed=True)
    ends = interval(low, high, relative, signed=True)
    return f"{text} ({ends})" if ends else text


def _line(data: StudyData, proposal: Proposal, applied: Applied | None) -> list[str]:
    row, baseline = proposal.row, data.baseline(proposal.encoder, proposal.task)
    name = "difference" if math.isnan(row["relative"]) else "relative"
    words = _words(row)
    before = "?" if baseline is None else number(baseline["mean"])
    return [
        proposal.encoder,
        proposal.task,
        f"{proposal.heads} of {row['total_heads']}",
        words,
        f"{before} \u2192 {number(row['mean'])} {row['metric']}",
        _change(row, name),
        "" if math.isnan(row["against_random"]) else _change(row, "against_random"),
        "" if applied is None else f"{applied.speed:.2f}",
    ]


_PYTHON = """from papa_lightning import AttentionConstants, HeadRanking, swap_attention
from transformers import AutoModel

encoder = AutoModel.from_pretrained({encoder!r})
constants = AttentionConstants.load({constants!r}).filled()
ranking = HeadRanking.load({ranking!r})
swap_attention(encoder, "constant", constants=constants, heads={heads}, ranking=ranking)"""
_COMMAND = """papa export --encoder {encoder} --constants {constants} \\
  --ranking {ranking} --heads {heads} --output exported"""
#: What the command ends with for an embedding model: the folder is one that SentenceTransformer loads.
_SENTENCES = " --format sentence-transformers"


@SECTIONS.section("apply", "Use it", place=15, needs=["constants", "rankings"])
def apply_section(data: StudyData, figures: Figures) -> list[Block]:
    """Lines of code and the command that make the proposed heads constant, and links to the files."""
    blocks, found = list[Block](), proposals(data)
    tables = {name: name for name in ("results.csv", "summary.csv") if (data.folder / name).is_file()}
    for one in found:
        if one.ranking_name is None or one.constants is None:
            continue
        constants = Path(os.path.relpath(one.constants, data.folder)).as_posix()
        encoder = data.encoders.get(one.encoder, one.encoder)
        named = {"encoder": os.path.expanduser(encoder), "constants": constants, "ranking": one.ranking_name}
        quoted = {name: shlex.quote(path) for name, path in named.items()}
        title = f"{one.encoder}, {one.task}: {one.heads} constant heads"
        own: list[Block] = [
            Text(_PYTHON.format(**named, heads=one.heads), "code"),
            Text(_COMMAND.format(**quoted, heads=one.heads) + _SENTENCES * (one.row["unit"] != "examples"), "code"),
            Links({"ranking": one.ranking_name, "constants": constants, **tables}),
        ]
        blocks += [Folded(title, own)] if len(found) > MOST_CARDS else [Text(title), *own]
    note = "Paths of files start from the folder of this page, that of an encoder from where the study was started."
    return [*blocks, Text(note, "soft")] if blocks else []
