"""The largest number of constant heads within a loss of the score, confirmed on rows that nothing was chosen by."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from papa_lightning.calibration import AttentionConstants, without_path
from papa_lightning.criteria import GreedySearch, RankingInputs, rank_heads
from papa_lightning.files.locking import claimed
from papa_lightning.files.writing import write_atomically
from papa_lightning.ranking import HeadRanking
from papa_lightning.runtime import find_device, versions
from papa_lightning.study.artifacts import average_of, probe_loss, ranking_of
from papa_lightning.study.budget.data import HELD_OUT, open_split_bench
from papa_lightning.study.budget.points import Drop, Point, Points, largest_within
from papa_lightning.study.budget.settings import BudgetSettings
from papa_lightning.study.executors import interruptible
from papa_lightning.study.hashing import digest
from papa_lightning.study.store import StudyFolder, check_writable
from papa_lightning.study.workbench import Bench

_FORMAT = "papa_lightning.head_budget/1"
#: Scores are float32: 99 of 100 must count as a loss of 1 %.
_ROUNDING = 1e-6
RANKING_FILE, CONSTANTS_FILE, PLAN_FILE = "ranking.json", "constants.safetensors", "plan.json"


@dataclass(frozen=True)
class HeadBudget:
    """How many heads can be constant within a loss of the score.

    Args:
        settings: What was asked.
        heads: The largest number that was found; 0 when not one head can.
        ranking: The order of the heads: the first `heads` of it are the choice.
        selection: The drop on the rows by which the number was chosen.
        held_out: The drop of the same probes on the held-out rows.
        points: What was measured, by the number of heads, ascending.
        about: How it was measured.
    """

    settings: BudgetSettings
    heads: int
    ranking: HeadRanking
    selection: Drop
    held_out: Drop
    points: tuple[Point, ...]
    about: Mapping[str, Any]

    @property
    def total(self) -> int:
        """Number of heads of the encoder."""
        return len(self.ranking.heads)

    @property
    def confirmed(self) -> bool | None:
        """Whether the mean drop on the held-out rows is within the limit; None where there is nothing to confirm."""
        return within(self.held_out, self.settings.limit) if self.heads else None


def within(drop: Drop, limit: float) -> bool:
    """Whether the mean of a drop is within a limit, up to the rounding of the scores."""
    return drop.mean <= limit + _ROUNDING


def plan_budget(settings: BudgetSettings, output: str | Path, progress: bool = True) -> HeadBudget:
    """Find the largest number of heads that can be constant within a loss, confirm it, and write what uses it.

    Probes with all heads dynamic are what everything is compared with. The heads are ranked; by bisection over their
    number, with probes trained anew each time, the largest one is sought whose mean relative drop over the seeds is
    within the limit on the selection rows; then the same probes are looked at on the held-out rows, once.

    Args:
        settings: Encoder, task and limit.
        output: Folder for ``ranking.json``, ``constants.safetensors`` and ``plan.json``, and for ``work/``, in which
            finished measurements stay: with another limit, or after a stop, none of them is done again.
        progress: Show a bar.

    Returns:
        The plan, as written. Where not one head fits, it chooses none.

    Raises:
        PapaError: When something cannot be loaded, stored or trained, the score with all heads dynamic is 0, or
            another process works in the folder.
    """
    place = Path(output).expanduser()
    check_writable(place)
    folder = StudyFolder(place / "work")
    with claimed("output", output, folder.path / ".lock"), interruptible():
        folder.clear(keep_features=settings.features.keep)
        return _plan(settings, place, folder, progress)


def _plan(settings: BudgetSettings, output: Path, folder: StudyFolder, progress: bool) -> HeadBudget:
    start = time.perf_counter()
    bench, held_out = open_split_bench(settings)
    constants, ranking = average_of(folder, bench), _ranking(folder, bench, settings)
    points = Points(folder, bench, constants, ranking)
    heads = _search(points, len(ranking.heads), settings.limit, progress)
    about = _about(bench, settings, held_out) | {"seconds": round(time.perf_counter() - start, 1)}
    plan = HeadBudget(
        settings,
        heads,
        ranking,
        points.drop(heads),
        points.drop(heads, held_out=True),
        tuple(points.measured[number] for number in sorted(points.measured)),
        about,
    )
    _write(plan, constants, output)
    return plan


def _search(points: Points, total: int, limit: float, progress: bool) -> int:
    with tqdm(total=1 + total.bit_length(), desc="Plan", disable=not progress, dynamic_ncols=True) as bar:
        for held_out in (False, True):  # a score of 0 is refused now, not after the search
            points.drop(0, held_out)
        bar.update()

        def fits(heads: int) -> bool:
            drop = points.drop(heads)
            bar.set_postfix_str(f"{heads} of {total} heads: {-100 * drop.mean:+.2f} %", refresh=False)
            bar.update()
            return within(drop, limit)

        return largest_within(fits, total)


def _ranking(folder: StudyFolder, bench: Bench, settings: BudgetSettings) -> HeadRanking:
    """By a criterion, from the training rows; or by greedy search on the rows by which heads are chosen."""
    if settings.search == "share":
        return ranking_of(folder, bench, settings.criterion)
    probe = [asdict(settings.probe), settings.pooling, settings.seeds[0], settings.features.storage == "float16"]
    depends = [bench.identity, probe, settings.search_sequences, settings.split_seed]
    path = folder.ranking(bench.encoder, bench.name, "greedy-selection", digest(depends))
    if not path.exists():
        rows = bench.evaluations[""]
        # At random, because rows may be sorted by their label; the same for every head.
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(settings.split_seed))
        inputs = RankingInputs(
            encoder=bench.task.encoder,
            constants=average_of(folder, bench),
            batches=bench.padded_batches(rows.select(order[: settings.search_sequences].tolist())),
            loss=probe_loss(folder, bench),
        )
        rank_heads(GreedySearch(settings.search_sequences), inputs).save(path)
    return HeadRanking.load(path)


def _about(bench: Bench, settings: BudgetSettings, held_out: str) -> dict[str, Any]:
    """How it was measured."""
    device = find_device(settings.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    sizes = {"selection_examples": len(bench.evaluations[""]), "held_out_examples": len(bench.evaluations[HELD_OUT])}
    described = bench.describe()
    del described["validation_examples"]
    return {
        **described,
        **sizes,
        "held_out": held_out,
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "features": settings.features.storage,
        "versions": versions(),
    }


def _write(plan: HeadBudget, constants: AttentionConstants, output: Path) -> None:
    # Without the old plan.json while the files that belong to it change, and the new one last.
    (output / PLAN_FILE).unlink(missing_ok=True)
    plan.ranking.save(output / RANKING_FILE)
    constants.save(output / CONSTANTS_FILE)
    write_atomically(output / PLAN_FILE, json.dumps(_content(plan), indent=1, allow_nan=False).encode())


def _content(plan: HeadBudget) -> dict[str, Any]:
    settings = plan.settings.as_dict()
    settings["encoder"] = without_path(plan.settings.encoder)
    dynamic = plan.points[0]
    return {
        "format": _FORMAT,
        "limit": plan.settings.limit,
        "heads": plan.heads,
        "total_heads": plan.total,
        "share": plan.heads / plan.total,
        "chosen": [list(head) for head in plan.ranking.first(plan.heads)],
        "metric": dynamic.metric,
        "selection": _drop(plan.selection),
        "held_out": _drop(plan.held_out) | {"confirmed": plan.confirmed},
        "points": [_point(point, dynamic) for point in plan.points],
        "files": {"ranking": RANKING_FILE, "constants": CONSTANTS_FILE},
        "settings": settings,
        "about": dict(plan.about),
    }


def _point(point: Point, dynamic: Point) -> dict[str, Any]:
    drop = Drop.of(point.scores(held_out=False), dynamic.scores(held_out=False))
    return {
        "heads": point.heads,
        "selection": _drop(drop),
        "results": [
            {"seed": one.seed, "scores": {name: _plain(score) for name, score in one.scores.items()}}
            for one in point.results
        ],
    }


def _drop(drop: Drop) -> dict[str, Any]:
    named = {"mean": drop.mean, "low": drop.low, "high": drop.high}
    return {"seeds": [_plain(one) for one in drop.seeds]} | {name: _plain(value) for name, value in named.items()}


def _plain(number: float) -> float | None:
    """JSON has no NaN."""
    return number if number == number else None


def format_budget(plan: HeadBudget, output: str | Path) -> str:
    """What was found, whether it held, where it is, and how to use it.

    Args:
        plan: What :func:`~papa_lightning.study.plan_budget` gave.
        output: Its folder.

    Returns:
        Four lines.
    """
    folder = Path(output)
    files = ", ".join(str(folder / name) for name in (RANKING_FILE, CONSTANTS_FILE, PLAN_FILE))
    lines = {"found": _found(plan), "held out": _held_out(plan), "files": files, "use": _use(plan, folder)}
    return "\n".join(f"{name:<9}{line}" for name, line in lines.items())


def _found(plan: HeadBudget) -> str:
    metric, limit = plan.points[0].metric, _limit(plan)
    examples = plan.about["selection_examples"]
    by = "greedy search" if plan.settings.search == "greedy" else f"criterion {plan.ranking.criterion}"
    if plan.heads == 0:
        tried = next((point for point in plan.points if point.heads > 0), None)
        least = f"{tried.heads} of {plan.total} heads" if tried else "any head"
        return (
            f"within {limit}: no head can be constant by {by}: {metric} loses more with {least} on the selection data "
            f"({examples} examples, {_seeds(plan)})"
        )
    return (
        f"within {limit}: {plan.heads} of {plan.total} heads ({100 * plan.heads / plan.total:.1f} %) by {by}; "
        f"{metric} {_moves(plan.selection)} on the selection data ({examples} examples, {_seeds(plan)})"
    )


def _held_out(plan: HeadBudget) -> str:
    if plan.confirmed is None:
        return "nothing to confirm"
    drop, limit = plan.held_out, _limit(plan)
    verdict = "confirmed" if plan.confirmed else "NOT confirmed"
    notes = []
    if not plan.confirmed:
        notes.append(f"{_percent(drop.mean - plan.settings.limit, unit='points')} above {limit}")
    if math.isnan(drop.low):
        notes.append("one seed, no interval")
    else:
        above = f", which reaches above {limit}" if plan.confirmed and drop.high > plan.settings.limit else ""
        notes.append(f"95 % interval over seeds {_percent(drop.low)} to {_percent(drop.high)}{above}")
    notes.append(f"{plan.about['held_out_examples']} examples, {plan.about['held_out']}")
    return f"{verdict}: {plan.points[0].metric} {_moves(drop)} ({'; '.join(notes)})"


def _use(plan: HeadBudget, folder: Path) -> str:
    if plan.heads == 0:
        return "leave the encoder as it is"
    constants, ranking = str(folder / CONSTANTS_FILE), str(folder / RANKING_FILE)
    return (
        f'swap_attention(encoder, "constant", constants=AttentionConstants.load({constants!r}), heads={plan.heads}, '
        f"ranking=HeadRanking.load({ranking!r}))"
    )


def _moves(drop: Drop) -> str:
    return f"falls by {_percent(drop.mean)}" if drop.mean >= 0 else f"rises by {_percent(-drop.mean)}"


def _limit(plan: HeadBudget) -> str:
    return f"{100 * plan.settings.limit:.6g} %"


def _seeds(plan: HeadBudget) -> str:
    number = len(plan.settings.seeds)
    return f"{number} seeds" if number > 1 else "1 seed"


def _percent(share: float, unit: str = "%") -> str:
    """A share as a percentage; two digits behind the point, as far as they say something."""
    return f"{round(100 * share, 2) + 0.0:g} {unit}"
