"""``papa budget``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from papa_lightning.cli.verbs.registry import VERBS, resumable
from papa_lightning.text import tell

if TYPE_CHECKING:
    from papa_lightning.study.budget.search import HeadBudget


@VERBS.register("budget")
def budget(*, output: str, **settings: Any) -> HeadBudget:
    """Find the most heads that can be constant within a loss of the score, and confirm it on held-out data.

    Args:
        output: Folder for ranking, constants and budget; an existing one is resumed.
        settings: Fields of BudgetSettings.
    """
    from papa_lightning.study.budget.search import find_budget, format_budget
    from papa_lightning.study.budget.settings import BudgetSettings

    with resumable():
        found = find_budget(BudgetSettings(**settings), output)
    tell(format_budget(found, output))
    return found
