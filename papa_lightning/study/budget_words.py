"""A plan within a budget in four lines."""

from __future__ import annotations

import math
from pathlib import Path

from papa_lightning.study.budget.points import Drop
from papa_lightning.study.budget.search import CONSTANTS_FILE, PLAN_FILE, RANKING_FILE, HeadBudget


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
