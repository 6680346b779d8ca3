"""Measure how reliable averaged attention is: on halves of the rows, on few of them, and against other tasks.

    python tools/measure_reliability.py --config evidence.yaml --encoders MiniLM-L6 --tasks cola sst2 --output FILE.csv

Encoders and tasks are those of the settings of a study, and their rows those that the study calibrates on. Two averages
are compared head by head by the total variation distance of their rows, see `distances`, from 0 to 1, and by their
rankings of all heads by variance. Each line of the file is one comparison:

    half        the averages of two random halves of the rows
    sequences   the average of the first k rows of a random order, and that of all rows after them
    task        the averages of all rows of two tasks

`with` has k or the other task; `distance_mean` and `distance_max` the mean and the largest distance of a head;
`rank_correlation` Spearman's of the two rankings; `lowest_half_overlap` the share of the lowest half of the heads of
one ranking that is in that of the other (0.5 by chance); `rows` the number of rows of both averages together. One
sequence has no variance, and two tasks no random order: these places are empty.

Sums of attention are additive, so the encoder runs once over the rows of a task for each seed, and the averages are
made of the sums of parts.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from scipy import stats
from torch import Tensor

from papa_lightning import AttentionAverages, HeadRanking
from papa_lightning.calibration import finish, gather
from papa_lightning.criteria import RankingInputs, rank_heads
from papa_lightning.errors import PapaError, did_you_mean
from papa_lightning.files.writing import write_atomically
from papa_lightning.study.settings import StudySettings, settings_from
from papa_lightning.study.workbench import Bench

SEQUENCES = [4**power for power in range(7)]


def merged(parts: Sequence[AttentionAverages]) -> AttentionAverages:
    """The sums of several parts together."""
    layers, heads = parts[0].squares.shape
    whole = AttentionAverages(layers, heads, parts[0].max_length)
    for name in whole.added:
        setattr(whole, name, torch.stack([getattr(part, name).cpu() for part in parts]).sum(dim=0))
    return whole


def distances(one: AttentionAverages, other: AttentionAverages) -> Tensor:
    """Mean total variation distance of the rows of two averages, by head.

        distance[l,h] = sum_i n_ii 1/2 sum_j |P[l,h,i,j] - Q[l,h,i,j]| / sum_i n_ii
        P[l,h,i,j]    = n_ij C[l,h,i,j] / sum_j n_ij C[l,h,i,j],   and Q the same of the other average

    n are the pair counts of both together, 0 for pairs that one of them never saw. So a position counts as often as it
    held a real token, as a query and as a key; where all sequences have one length, P is the row of C that sums to 1.

    Args:
        one: Sums over some sequences.
        other: Sums over others, of the same sizes.

    Returns:
        (L, H), float64, from 0 to 1: 0 for equal rows, 1 for rows that have no key in common.
    """
    counts = one.pair_counts + other.pair_counts
    counts = counts * ((one.pair_counts > 0) & (other.pair_counts > 0))
    rows = [average.compute() * counts for average in (one, other)]
    tiny = torch.finfo(torch.float64).tiny
    first, second = (row / row.sum(dim=-1, keepdim=True).clamp_min(tiny) for row in rows)
    by_row = (first - second).abs().sum(dim=-1) / 2
    weights = counts.diagonal()
    return (by_row * weights).sum(dim=-1) / weights.sum()


def compare_rankings(one: HeadRanking, other: HeadRanking) -> dict[str, float]:
    """Rank correlation of two rankings, and the share of the lowest half of the heads that is in both."""
    scores = pd.concat([one.table()["score"], other.table()["score"]], axis=1)
    half = set(one.first(0.5))
    return {
        "rank_correlation": float(stats.spearmanr(scores).statistic),
        "lowest_half_overlap": len(half & set(other.first(0.5))) / max(len(half), 1),
    }


def compare(bench: Bench, one: AttentionAverages, other: AttentionAverages) -> dict[str, float]:
    """The columns of numbers of two averages."""
    found = distances(one, other)
    ranked = dict.fromkeys(("rank_correlation", "lowest_half_overlap"), math.nan)
    if min(one.num_sequences, other.num_sequences) > 1:  # the variance of one sequence is 0 for all heads
        made = [finish(bench.task.encoder, part, {}) for part in (one, other)]
        rankings = [rank_heads("variance", RankingInputs(bench.task.encoder, constants=each)) for each in made]
        ranked = compare_rankings(*rankings)
    size = int(one.num_sequences + other.num_sequences)
    return {"distance_mean": float(found.mean()), "distance_max": float(found.max()), **ranked, "rows": size}


def in_parts(bench: Bench, ends: Sequence[int], seed: int) -> list[AttentionAverages]:
    """Sums over the training rows in a random order, in parts that end where `ends` says."""
    order = torch.randperm(len(bench.train), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = (bench.train.select(order[start:end]) for start, end in pairwise((0, *ends)))
    length, packing = bench.data.max_length, bench.settings.packs
    return [gather(bench.task.encoder, bench.batches(part), length, packing=packing) for part in rows]


def within(bench: Bench, sequences: Sequence[int], seed: int) -> tuple[list[dict[str, Any]], AttentionAverages]:
    """The lines of halves and of numbers of rows by one random order, and the sums over all rows."""
    size = len(bench.train)
    if size < 2:
        raise PapaError(f"task {bench.name!r} has {size} training rows, which cannot be halved: pass more.")
    wanted = [("half", size // 2), *(("sequences", number) for number in sequences if number < size)]
    ends = sorted({number for _, number in wanted} | {size})
    parts = in_parts(bench, ends, seed)
    names = {"encoder": bench.encoder, "task": bench.name, "seed": seed}
    lines = []
    for kind, number in wanted:
        place = ends.index(number) + 1
        found = compare(bench, merged(parts[:place]), merged(parts[place:]))
        lines.append({**names, "kind": kind, "with": "" if kind == "half" else str(number), **found})
    return lines, merged(parts)


def measure(settings: StudySettings, sequences: Sequence[int], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """All lines, encoder by encoder."""
    for encoder in settings.encoders:
        known = dict[str, AttentionAverages]()
        for task in settings.tasks:
            bench, whole = Bench(settings, encoder, task), None
            for seed in seeds:
                lines, whole = within(bench, sequences, seed)
                yield from lines
            assert whole is not None
            for other, average in known.items():
                if average.max_length != whole.max_length:
                    raise PapaError(
                        f"task {task!r} has max_length {whole.max_length}, and task {other!r} {average.max_length}: "
                        "give both the same."
                    )
                found = compare(bench, average, whole)
                yield {"encoder": encoder, "task": other, "kind": "task", "with": task, **found}
            known[task] = whole


def chosen(argument: str, given: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    """The entries of the settings with these names; all for None."""
    unknown = [name for name in names or () if name not in given]
    if unknown:
        raise PapaError(
            f"--{argument} has {unknown[0]!r}, but the settings have {', '.join(given)}"
            f"{did_you_mean(unknown[0], list(given)) or '.'}"
        )
    return {name: given[name] for name in (given if names is None else names)}


def main(words: list[str] | None = None) -> None:
    """Measure, and write each line when it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="settings of a study")
    parser.add_argument("--encoders", nargs="+", help="names of encoders in it; all by default")
    parser.add_argument("--tasks", nargs="+", help="names of tasks in it; all by default")
    parser.add_argument(
        "--sequences",
        nargs="+",
        type=int,
        default=SEQUENCES,
        help="numbers of rows k; of each task those below its own",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of the random orders")
    parser.add_argument("--output", type=Path, required=True, help="the file of comma-separated values to write")
    args = parser.parse_args(words)
    if min(args.sequences) < 1:
        parser.error(f"--sequences has {min(args.sequences)}, but an average is over 1 row at least")
    plain = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    own = {name: chosen(name, plain[name], getattr(args, name)) for name in ("encoders", "tasks")}
    settings = settings_from({**plain, **own, "constants": ["average"]})
    columns = ["encoder", "task", "kind", "with", "distance_mean", "distance_max", "rank_correlation"]
    columns += ["lowest_half_overlap", "rows", "seed"]
    lines = list[dict[str, Any]]()
    for line in measure(settings, args.sequences, args.seeds):
        lines.append(line)
        print(*line.values(), file=sys.stderr)  # it takes minutes
        table = pd.DataFrame(lines, columns=columns).astype({"seed": "Int64"})
        write_atomically(args.output, table.to_csv(index=False, float_format="%.6f").encode())


if __name__ == "__main__":
    main()
