"""The plan of a study: what is left of one encoder on one task, and how the terminal shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from papa_lightning.study.cells import Choice, Group
from papa_lightning.study.settings import RECOVERED
from papa_lightning.text import Blocks, Table

#: Forward passes that a training step costs as much as.
TRAINED = 3.0


@dataclass(frozen=True)
class PairPlan:
    """The plan of one encoder on one task.

    Args:
        encoder: Name of the encoder.
        task: Name of the task.
        keys: Hash of the result of every choice of heads and seed.
        groups: The missing probes.
        total: Number of probes, finished or not.
        preparation: Estimated forward passes over the training rows before the first group.
        group_cost: Estimated forward passes over the training rows for one group.
        examples: Number of training rows.
        about: Facts about the measurement.
        files: Paths of constants and rankings.
        probes: Whether probes are trained; a task of embeddings has none.
        recovery_cost: Estimated further passes for a group whose encoder is trained.
    """

    encoder: str
    task: str
    keys: Mapping[tuple[Choice, int], str]
    groups: list[Group]
    total: int
    preparation: float
    group_cost: float
    examples: int
    about: Mapping[str, Any]
    files: Mapping[str, list[dict[str, str]]]
    probes: bool = True
    recovery_cost: float = 0.0

    @property
    def missing(self) -> int:
        """Number of results that are missing: of probes that are still to be trained, or of embeddings."""
        return sum(len(group.seeds) for group in self.groups)

    @property
    def recovery(self) -> float:
        """Estimated forward passes over the training rows that are left for encoders that are trained."""
        return self.recovery_cost * sum(group.choice.kind == RECOVERED for group in self.groups)

    @property
    def passes(self) -> float:
        """Estimated forward passes over the training rows that are left."""
        return self.preparation + self.group_cost * len(self.groups) + self.recovery

    def cost(self, group: Group) -> float:
        """Estimated forward passes over the training rows for a group."""
        return self.group_cost + (self.recovery_cost if group.choice.kind == RECOVERED else 0.0)


def format_plan(plans: Sequence[PairPlan]) -> Blocks:
    """The work that is left of a study, for the terminal.

    Args:
        plans: Result of :meth:`Study.plan`.

    Returns:
        A row for each pair: probes or results, those that are finished, and estimated passes of the encoder over its
        training rows.
    """
    probes = all(plan.probes for plan in plans)
    columns = ("encoder", "task", "probes" if probes else "results", "finished", "choices left", "passes left")
    rows = [
        (one.encoder, one.task, f"{one.total}", f"{one.total - one.missing}", f"{len(one.groups)}", f"{one.passes:.1f}")
        for one in plans
    ]
    missing, sequences = sum(plan.missing for plan in plans), sum(plan.passes * plan.examples for plan in plans)
    left = (
        f"{missing} {'probes to train' if probes else 'results to measure'}; about {sequences:,.0f} sequences through "
        "an encoder (a pass goes once over the training rows of its task)."
    )
    return Blocks([Table(columns, rows, left=2), left])


def format_groups(plans: Sequence[PairPlan]) -> Table:
    """The missing probes of a study, a row for each choice of heads, for the terminal.

    Args:
        plans: Result of :meth:`Study.plan`.

    Returns:
        Encoder, task, share, criterion, kind of constants, and the seeds of the probes, if there are any.
    """
    columns: tuple[str, ...] = ("encoder", "task", "share", "criterion", "constants", "seeds")
    rows: list[tuple[str, ...]] = [
        (one.encoder, one.task, f"{by.share:g}", by.criterion or "-", by.kind or "-", ", ".join(map(str, one.seeds)))
        for one, by in ((group, group.choice) for plan in plans for group in plan.groups)
    ]
    if not any(plan.probes for plan in plans):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table(columns, rows, left=len(columns))
