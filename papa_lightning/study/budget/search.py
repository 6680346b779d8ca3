"""The largest number of constant heads within a loss of the score, confirmed on held-out rows."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from papa_lightning.calibration import describe_filling, without_path
from papa_lightning.criteria import GreedySearch, RankingInputs, rank_heads
from papa_lightning.files.locking import claimed
from papa_lightning.files.records import without_nan
from papa_lightning.files.writing import check_work_folder, write_atomically
from papa_lightning.progress import Progress
from papa_lightning.ranking import HeadRanking
from papa_lightning.runtime import find_device, machine_facts
from papa_lightning.study.artifacts import average_of, constants_of, probe_loss, ranking_of, warn_of_zero_mass
from papa_lightning.study.budget.points import Baseline, Drop, Point, Points, Size, largest_within, open_split_bench
from papa_lightning.study.budget.settings import BudgetSettings
from papa_lightning.study.executors import interruptible
from papa_lightning.study.judged import ranking_inputs
from papa_lightning.study.store import StudyFolder, digest
from papa_lightning.study.timing import time_table
from papa_lightning.study.verdicts import ROUNDING, verdict_words
from papa_lightning.study.workbench import Bench
from papa_lightning.text import Table, tell

_FORMAT = "papa_lightning.head_budget/1"
RANKING_FILE, CONSTANTS_FILE, BUDGET_FILE = "ranking.json", "constants.safetensors", "budget.json"


@dataclass(frozen=True)
class HeadBudget:
    """The largest number of constant heads within a loss, chosen on the selection rows; 0 if no head can be.

    `tried` has the drop on the selection rows of each of the points; baselines and sizes are those of selection and
    held-out rows.
    """

    settings: BudgetSettings
    heads: int
    ranking: HeadRanking
    selection: Drop
    held_out: Drop
    points: tuple[Point, ...]
    tried: tuple[Drop, ...]
    baselines: tuple[Baseline, Baseline]
    about: Mapping[str, Any]
    sizes: tuple[Size, Size]

    @property
    def total(self) -> int:
        """Number of heads of the encoder."""
        return len(self.ranking.heads)

    @property
    def confirmed(self) -> bool | None:
        """Whether the interval of the drop on the held-out rows lies within the limit; None without constant heads."""
        return self.held_out.verdict == "within" if self.heads else None


def find_budget(settings: BudgetSettings, output: str | Path, progress: bool = True) -> HeadBudget:
    """Find the largest number of heads that can be constant within a loss, confirm it, and write what uses it."""
    place = Path(output).expanduser()
    check_work_folder("output", place)
    folder = StudyFolder(place / "work")
    with claimed("output", output, folder.path / ".lock"), interruptible():
        folder.clear(keep_features=settings.features.keep)
        return _plan(settings, place, folder, progress)


def _plan(settings: BudgetSettings, output: Path, folder: StudyFolder, progress: bool) -> HeadBudget:
    start = time.perf_counter()
    bench, held_out = open_split_bench(settings)
    with bench.watch.part("other"):
        average, ranking = average_of(folder, bench), _ranking(folder, bench, settings)
        used = average.filled()
        points = Points(folder, bench, used, ranking, settings.limit)
        heads = _search(points, len(ranking.heads), settings.limit, progress)
    warn_of_zero_mass([bench.zero_mass.text])
    wall, seconds = time.perf_counter() - start, bench.watch.take()
    if progress and not {"probes", "judging"}.isdisjoint(seconds):
        tell(time_table(seconds, wall))
    about = _about(bench, settings, held_out) | {"seconds": round(wall, 1)}
    about |= {"filled": describe_filling(used).removeprefix("filled ")}
    numbers = sorted(points.measured)
    plan = HeadBudget(
        settings,
        heads,
        ranking,
        selection=points.drop(heads),
        held_out=points.drop(heads, held_out=True),
        points=tuple(points.measured[number] for number in numbers),
        tried=tuple(map(points.drop, numbers)),
        baselines=(points.baseline(held_out=False), points.baseline(held_out=True)),
        about=about,
        sizes=(Size.of(bench, held_out=False), Size.of(bench, held_out=True)),
    )
    # The old budget.json goes first and the new one comes last: it never stands beside files of another budget.
    (output / BUDGET_FILE).unlink(missing_ok=True)
    ranking.save(output / RANKING_FILE)
    average.save(output / CONSTANTS_FILE)
    content = json.dumps(without_nan(_content(plan)), indent=1, allow_nan=False)
    write_atomically(output / BUDGET_FILE, content.encode())
    return plan


def _search(points: Points, total: int, limit: float, progress: bool) -> int:
    with Progress(total=1 + total.bit_length(), desc="Budget", disable=not progress, dynamic_ncols=True) as bar:
        for held_out in (False, True):  # refuses a score that means nothing before the search
            points.baseline(held_out)
        bar.update()

        def fits(heads: int) -> bool:
            loss = points.loss(heads)
            bar.set_postfix_str(f"{heads} of {total} heads: {-100 * loss:+.2f} %", refresh=False)
            bar.update()
            return loss <= limit + ROUNDING

        return largest_within(fits, total)


def _ranking(folder: StudyFolder, bench: Bench, settings: BudgetSettings) -> HeadRanking:
    """The order of the heads: by a criterion from the training rows, or by greedy search on the selection rows."""
    if settings.search == "share":
        return ranking_of(folder, bench, settings.criterion)
    if bench.judgements is not None:
        return _greedy_embeddings(folder, bench, settings.search_sequences)
    probe = [asdict(bench.settings.probe), settings.pooling, settings.seeds[0], settings.features.storage == "float16"]
    depends = [bench.identity, probe, settings.search_sequences, settings.split_seed]
    path = folder.ranking(bench.encoder, bench.name, "greedy-selection", digest(depends))
    if not path.exists():
        rows = bench.evaluations[""]
        # Random rows, because the split may be sorted by label; the same rows for every head.
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(settings.split_seed))
        inputs = RankingInputs(
            encoder=bench.task.encoder,
            constants=constants_of(folder, bench),
            batches=bench.padded_batches(rows.select(order[: settings.search_sequences].tolist())),
            loss=probe_loss(folder, bench),
        )
        rank_heads(GreedySearch(settings.search_sequences), inputs).save(path)
    return HeadRanking.load(path)


def _greedy_embeddings(folder: StudyFolder, bench: Bench, sequences: int) -> HeadRanking:
    """The order of a greedy search by the change of embeddings of training texts, which no selection pair can bias."""
    path = folder.ranking(bench.encoder, bench.name, "greedy-texts", digest([bench.identity, sequences]))
    if not path.exists():
        inputs = ranking_inputs(bench, "greedy", constants_of(folder, bench))
        rank_heads(GreedySearch(sequences), inputs).save(path)
    return HeadRanking.load(path)


def _about(bench: Bench, settings: BudgetSettings, held_out: str) -> dict[str, Any]:
    """Facts about the measurement."""
    described = bench.describe()
    selection, confirmation = Size.of(bench, held_out=False), Size.of(bench, held_out=True)
    del described[f"validation_{selection.unit}"]
    return {
        **machine_facts(find_device(settings.device)),
        **described,
        f"selection_{selection.unit}": selection.number,
        f"held_out_{confirmation.unit}": confirmation.number,
        "held_out": held_out,
        "dtype": "float32",
        "features": settings.features.storage,
        **bench.settings.packs.noted(bench.task.device),
    }


def _content(plan: HeadBudget) -> dict[str, Any]:
    dynamic = plan.points[0]
    return {
        "format": _FORMAT,
        "limit": plan.settings.limit,
        "heads": plan.heads,
        "total_heads": plan.total,
        "share": plan.heads / plan.total,
        "chosen": [list(head) for head in plan.ranking.first(plan.heads)],
        "metric": dynamic.metric,
        "baseline": {rows: asdict(one) for rows, one in zip(("selection", "held_out"), plan.baselines, strict=True)},
        "selection": _plain(plan.selection),
        "held_out": _plain(plan.held_out) | {"confirmed": plan.confirmed},
        "points": [
            {
                "heads": point.heads,
                "selection": _plain(drop),
                "results": [{"seed": one.seed, "scores": dict(one.scores)} for one in point.results],
            }
            for point, drop in zip(plan.points, plan.tried, strict=True)
        ],
        "files": {"ranking": RANKING_FILE, "constants": CONSTANTS_FILE},
        "settings": plan.settings.as_dict() | {"encoder": without_path(plan.settings.encoder)},
        "about": dict(plan.about),
    }


def _plain(drop: Drop) -> dict[str, Any]:
    """A drop as plain values of JSON, which has no infinity."""
    needed = drop.examples_needed
    return asdict(drop) | {"examples_needed": needed if math.isfinite(needed) else None}


def format_budget(plan: HeadBudget, output: str | Path) -> str:
    """The result of a search in lines: what was found, whether it was confirmed, pairs filled, files, and their use."""
    folder = Path(output)
    ranking, constants, budget = (str(folder / name) for name in (RANKING_FILE, CONSTANTS_FILE, BUDGET_FILE))
    use = (
        f'swap_attention(encoder, "constant", constants=AttentionConstants.load({constants!r}).filled(), '
        f"heads={plan.heads}, ranking=HeadRanking.load({ranking!r}))"
    )
    metric = plan.points[0].metric
    lines = {"found": _found(plan)}
    lines |= {"selection": f"{metric} {plan.baselines[0]}", "held out": f"{metric} {plan.baselines[1]}"}
    lines |= {"verdict": _verdict(plan), "filled": plan.about["filled"] if plan.heads else ""}
    lines = {name: line for name, line in lines.items() if line}
    lines["files"] = f"{ranking}, {constants}, {budget}"
    lines["use"] = use if plan.heads else "leave the encoder as it is"
    return str(Table(("", ""), list(lines.items()), left=2))


def _found(plan: HeadBudget) -> str:
    metric, limit = plan.points[0].metric, _limit(plan)
    examples = str(plan.sizes[0])
    by = "greedy search" if plan.settings.search == "greedy" else f"criterion {plan.ranking.criterion}"
    if plan.heads == 0:
        tried = next((point for point in plan.points if point.heads > 0), None)
        least = f"{tried.heads} of {plan.total} heads" if tried else "any head"
        return (
            f"within {limit}: no head can be constant by {by}: {metric} loses more with {least} on the selection data "
            f"({examples})"
        )
    return (
        f"within {limit}: {plan.heads} of {plan.total} heads ({100 * plan.heads / plan.total:.1f} %) by {by}; "
        f"{metric} {_moves(plan.selection)} on the selection data ({examples})"
    )


def _verdict(plan: HeadBudget) -> str:
    if plan.confirmed is None:
        return "nothing to confirm"
    drop = plan.held_out
    words = {"within": "confirmed", "beyond": "NOT confirmed", "open": "not settled", "": "NOT confirmed, no interval"}
    size = plan.sizes[1]
    notes = [f"{size.number} held-out {size.unit}, {plan.about['held_out']}"]
    if not math.isnan(drop.low):
        notes.insert(0, f"95 % interval over {drop.basis} {_percent(drop.low)} to {_percent(drop.high)}")
    if drop.verdict == "open":
        notes.append(verdict_words("open", plan.settings.limit, drop.examples_needed, size.unit).partition(": ")[2])
    return f"{words[drop.verdict]}: {plan.points[0].metric} {_moves(drop)} ({'; '.join(filter(None, notes))})"


def _moves(drop: Drop) -> str:
    return f"falls by {_percent(drop.mean)}" if drop.mean >= 0 else f"rises by {_percent(-drop.mean)}"


def _limit(plan: HeadBudget) -> str:
    return f"{100 * plan.settings.limit:.6g} %"


def _percent(share: float, unit: str = "%") -> str:
    """A share as a percentage with up to two decimals."""
    return f"{round(100 * share, 2) + 0.0:g} {unit}"
