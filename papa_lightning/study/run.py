"""Running a study: what is missing is done, and every finished piece stays."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from papa_lightning.errors import StudyError
from papa_lightning.runtime import find_device, versions
from papa_lightning.study.artifacts import average_key, criterion_cost, ranking_key
from papa_lightning.study.cells import Choice, Group, cells_of, choices, pairs
from papa_lightning.study.executors import Backend, check_num_workers, run_pieces
from papa_lightning.study.pieces import cell_key, describe, open_bench, prepare, run_group
from papa_lightning.study.results import CellResult, results_table, save_table
from papa_lightning.study.settings import StudySettings
from papa_lightning.study.store import StudyFolder


@dataclass(frozen=True)
class PairPlan:
    """What is to be done for one encoder on one task.

    Args:
        encoder: Name of the encoder.
        task: Name of the task.
        keys: Hash of the result of every choice of heads and seed.
        groups: What is missing.
        total: Number of probes, finished or not.
        preparation: Estimated forward passes over the training rows before the first group.
        group_cost: The same for one group.
        examples: Number of training rows.
        about: How the numbers are measured.
        files: Where constants and rankings are going to be.
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

    @property
    def missing(self) -> int:
        """Number of probes that are not trained yet."""
        return sum(len(group.seeds) for group in self.groups)

    @property
    def passes(self) -> float:
        """Estimated forward passes over the training rows that are still to be done."""
        return self.preparation + self.group_cost * len(self.groups)


class Study:
    """Scores against shares of constant heads, for encoders, tasks, criteria, kinds of constants and seeds.

    Each encoder is calibrated once on each task, its heads are ranked once by each criterion, and then, for every
    choice of heads, the encoder runs once over the data and the probes of all seeds learn from its hidden states
    (Hassid et al. 2022, arXiv 2211.03495, for the question and the probe). What is finished is in the folder, under a
    hash of all that it depends on: a study that was killed goes on where it was, and one whose settings changed never
    takes up an old result.

    Args:
        settings: What to study.
        output: Folder of the study.

    Raises:
        StudyError: When the folder cannot hold a study.
    """

    def __init__(self, settings: StudySettings, output: str | Path) -> None:
        self.settings, self.folder = settings, StudyFolder(output)
        self.folder.check()
        self._json = json.dumps(settings.as_dict())
        self._finished: dict[str, CellResult] = {}

    def plan(self) -> list[PairPlan]:
        """Load everything once, and see what is missing.

        Raises:
            PapaError: When an encoder or data cannot be loaded.
        """
        open_bench.cache_clear()
        return [self._plan_pair(encoder, task) for encoder, task in pairs(self.settings)]

    def run(
        self,
        plans: Sequence[PairPlan] | None = None,
        num_workers: int = 1,
        backend: Backend = "processes",
        progress: bool = True,
    ) -> pd.DataFrame:
        """Do what is missing.

        Args:
            plans: What :meth:`plan` gave just now; None plans first.
            num_workers: Processes at a time. They end with this one, also when it is killed.
            backend: Where they are.
            progress: Show a bar with the remaining time.

        Returns:
            The table of results, which also is in the folder.

        Raises:
            PapaError: For a bad `num_workers`; when another process works in the folder; when something cannot be
                loaded, stored or trained. What is finished stays.
        """
        check_num_workers(num_workers, backend)
        with self.folder.claimed():
            plans = self.plan() if plans is None else plans
            self.folder.clear(keep_features=self.settings.features.keep)
            self.folder.write(self.settings.as_dict(), self._about(plans), _joined(plan.files for plan in plans))
            try:
                with _bar(plans, progress) as bar:
                    self._prepare(plans, partial(run_pieces, num_workers=num_workers, backend=backend), bar)
                    self._measure(plans, partial(run_pieces, num_workers=num_workers, backend=backend), bar)
            finally:
                open_bench.cache_clear()
                self.folder.clear(keep_features=self.settings.features.keep)  # of workers that were stopped
            return self.table(plans)

    def _prepare(self, plans: Sequence[PairPlan], work: Callable[..., Any], bar: tqdm[Any]) -> None:
        """Make constants and rankings."""
        cost = {(plan.encoder, plan.task): plan.preparation * plan.examples for plan in plans if plan.groups}
        function = partial(_prepare_pair, self._json, str(self.folder.path))
        with closing(work(function, list(cost), name="encoder {0[0]}, task {0[1]}".format)) as done:
            for pair, _ in done:
                bar.update(cost[pair])

    def _measure(self, plans: Sequence[PairPlan], work: Callable[..., Any], bar: tqdm[Any]) -> None:
        """Train the probes."""
        plan_of = {(plan.encoder, plan.task): plan for plan in plans}
        function, groups = partial(run_group, self._json, str(self.folder.path)), [g for p in plans for g in p.groups]
        with closing(work(function, groups, name=Group.__str__)) as done:
            for group, _ in done:
                plan = plan_of[group.encoder, group.task]
                if any(self._result(plan.keys[group.choice, seed]) is None for seed in group.seeds):
                    raise StudyError(f"{group}: encoder or data have changed since the plan was made: run it again.")
                bar.set_postfix_str(f"{group.encoder}, {group.task}, share {group.choice.share:g}", refresh=False)
                bar.update(plan.group_cost * plan.examples)
                self.table(plans)

    def table(self, plans: Iterable[PairPlan]) -> pd.DataFrame:
        """Collect the finished cells into the table, and write it.

        Args:
            plans: What :meth:`plan` gave.
        """
        keys = {(plan.encoder, plan.task): plan.keys for plan in plans}
        results = []
        for cell in cells_of(self.settings):
            result = self._result(keys[cell.encoder, cell.task][cell.choice, cell.seed])
            if result is not None:
                # One probe may serve several cells: all heads are all heads, whatever ranked them.
                own = replace(result, encoder=cell.encoder, task=cell.task, criterion=cell.criterion)
                results.append(replace(own, constants=cell.kind))
        table = results_table(results)
        save_table(table, self.folder.path)
        return table

    def _result(self, key: str) -> CellResult | None:
        """The finished result of a hash; read once."""
        if key not in self._finished:
            if not self.folder.cell(key).exists():
                return None
            self._finished[key] = self.folder.result(key, CellResult.load)
        return self._finished[key]

    def _plan_pair(self, encoder: str, task: str) -> PairPlan:
        bench = open_bench(self._json, encoder, task)
        keys = {
            (choice, seed): cell_key(bench, choice, seed)
            for choice in choices(self.settings)
            for seed in self.settings.seeds
        }
        groups = []
        for choice in choices(self.settings):
            seeds = tuple(seed for seed in self.settings.seeds if self._result(keys[choice, seed]) is None)
            if seeds:
                groups.append(Group(encoder, task, choice, seeds))
        average = self.folder.constants(encoder, task, "average", average_key(bench, "average"))
        ranked = {choice.criterion for choice in choices(self.settings)} - {None}
        rankings = {
            name: self.folder.ranking(encoder, task, name, ranking_key(bench, name))
            for name in sorted(map(str, ranked))
        }
        costs = [criterion_cost(name) for name, path in rankings.items() if not path.exists()]
        evaluated = sum(map(len, bench.evaluations.values()))
        pair = {"encoder": encoder, "task": task}
        return PairPlan(
            encoder,
            task,
            keys=keys,
            groups=groups,
            total=len(keys),
            preparation=(not average.exists()) + sum(costs) if groups else 0.0,
            group_cost=1 + evaluated / len(bench.train),
            examples=len(bench.train),
            about=describe(bench),
            files={
                "constants": [{**pair, "kind": "average", "path": self.folder.relative(average)}],
                "rankings": [
                    {**pair, "criterion": name, "path": self.folder.relative(path)} for name, path in rankings.items()
                ],
            },
        )

    def _about(self, plans: Iterable[PairPlan]) -> dict[str, Any]:
        """How the numbers are measured."""
        settings = self.settings
        device = find_device(settings.device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        return {
            "versions": versions(),
            "device": f"{device.type} ({name})",
            "threads": torch.get_num_threads(),
            "dtype": "float32",
            "features": settings.features.storage,
            "probe": asdict(settings.probe) | {"pooling": settings.pooling},
            "seeds": list(settings.seeds),
            "pairs": [{"encoder": plan.encoder, "task": plan.task, **plan.about} for plan in plans],
        }


def _prepare_pair(settings: str, output: str, pair: tuple[str, str]) -> float:
    return prepare(settings, output, *pair)


def _bar(plans: Sequence[PairPlan], progress: bool) -> tqdm[Any]:
    """A bar of sequences that pass through an encoder: what most of the time goes into."""
    return tqdm(
        total=sum(plan.passes * plan.examples for plan in plans),
        desc="Study",
        bar_format="{l_bar}{bar}| {elapsed}, {remaining} to go {postfix}",
        disable=not progress,
        dynamic_ncols=True,
    )


def _joined(files: Iterable[Mapping[str, list[dict[str, str]]]]) -> dict[str, list[dict[str, str]]]:
    """The files of all pairs together."""
    joined: dict[str, list[dict[str, str]]] = {"constants": [], "rankings": []}
    for one in files:
        for name, listed in one.items():
            joined[name].extend(listed)
    return joined


def format_plan(plans: Sequence[PairPlan]) -> str:
    """What a study is going to do, for the terminal.

    Args:
        plans: What :meth:`Study.plan` gave.

    Returns:
        A table with a line a pair: probes, finished ones, and estimated passes of the encoder over its training rows.
    """
    lines = [f"{'encoder':<20} {'task':<20} {'probes':>8} {'finished':>9} {'choices left':>13} {'passes left':>12}"]
    for plan in plans:
        lines.append(
            f"{plan.encoder:<20} {plan.task:<20} {plan.total:>8} {plan.total - plan.missing:>9} "
            f"{len(plan.groups):>13} {plan.passes:>12.1f}"
        )
    missing, sequences = sum(plan.missing for plan in plans), sum(plan.passes * plan.examples for plan in plans)
    lines.append(
        f"{missing} probes to train; about {sequences:,.0f} sequences through an encoder (a pass goes once over the "
        "training rows of its task)."
    )
    return "\n".join(lines)


def format_groups(plans: Sequence[PairPlan]) -> str:
    """What is missing, a line for each choice of heads, for the terminal.

    Args:
        plans: What :meth:`Study.plan` gave.

    Returns:
        Encoder, task, share, criterion, kind of constants, and the seeds of the probes.
    """
    lines = [f"{'encoder':<20} {'task':<20} {'share':>7} {'criterion':<16} {'constants':<16} seeds"]
    for group in (group for plan in plans for group in plan.groups):
        choice, seeds = group.choice, ", ".join(map(str, group.seeds))
        lines.append(
            f"{group.encoder:<20} {group.task:<20} {choice.share:>7g} {choice.criterion or '-':<16} "
            f"{choice.kind or '-':<16} {seeds}"
        )
    return "\n".join(lines)
