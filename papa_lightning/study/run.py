"""Plan and run of a study: missing results are computed, and finished ones are kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from papa_lightning.calibration import AttentionConstants, describe_filling
from papa_lightning.criteria import criterion_from
from papa_lightning.either_lightning import Logger
from papa_lightning.errors import StudyError
from papa_lightning.progress import Progress
from papa_lightning.runtime import find_device, machine_facts
from papa_lightning.study.artifacts import (
    average_key,
    cell_key,
    check_constants,
    open_bench,
    pieces_of,
    prepare,
    ranking_key,
    run_groups,
    warn_of_zero_mass,
)
from papa_lightning.study.cells import Group, cells_of, choices, pairs
from papa_lightning.study.executors import Backend, check_num_workers, do_pieces, gpus_of, useful_workers
from papa_lightning.study.judged import check_pair
from papa_lightning.study.logged import log_study
from papa_lightning.study.parts import StudyPart
from papa_lightning.study.plan import TRAINED, PairPlan
from papa_lightning.study.results import CellResult, results_table, save_summary, save_table
from papa_lightning.study.settings import RECOVERED, StudySettings, settings_from
from papa_lightning.study.sources import encoder_folder, plain_tasks
from papa_lightning.study.statistics import Evidence
from papa_lightning.study.store import NAMED, StudyFolder
from papa_lightning.study.timing import Part, Stopwatch, time_table
from papa_lightning.study.views import StudyViews
from papa_lightning.study.workbench import Bench
from papa_lightning.text import tell


class Study(StudyViews):
    """Scores against shares of constant heads, for encoders, tasks, criteria, kinds of constants and seeds.

    Each encoder is calibrated and its heads are ranked once on each task. For every choice of heads it runs once over
    the data, and the probes of all seeds learn from its hidden states (Hassid et al. 2022, arXiv 2211.03495). Finished
    results are named by a hash of all they depend on: a killed study resumes, and never uses an old result.

    In a notebook a study shows its curve; see also :meth:`results`, :meth:`plot`, :meth:`compare` and :meth:`report`.

    Args:
        settings: Settings of the study, or a map of their fields. Encoders may be modules, or pairs of a module and its
            tokenizer, and tasks may be data modules: a copy of such an encoder is saved in the folder, and of a data
            module class and arguments are noted, so that any process can go on.
        output: Folder of the study.
        logger: A logger of Lightning, or several, which get the curves at the end of a run.

    Raises:
        PapaError: When the folder cannot hold a study, or an encoder or data module cannot be used.

    Example:
        >>> from papa_lightning import DemoDataModule
        >>> tasks = {"demo": DemoDataModule("bert-base-uncased", max_train_examples=200)}
        >>> Study({"encoders": {"bert": "bert-base-uncased"}, "tasks": tasks, "shares": [0.5, 1]}, "studies/bert")
        Study('studies/bert', 1 encoder, 1 task, no results yet)
    """

    def __init__(
        self,
        settings: StudySettings | Mapping[str, Any],
        output: str | Path,
        logger: Logger | Iterable[Logger] | None = None,
    ) -> None:
        self.folder = StudyFolder(output)
        self.folder.check()
        given = settings if isinstance(settings, StudySettings) else settings_from(plain_tasks(self.folder, settings))
        encoders = {name: encoder_folder(self.folder, name, one) for name, one in given.encoders.items()}
        self.settings = replace(given, encoders=encoders)
        self._loggers = [] if logger is None else list(logger) if isinstance(logger, Iterable) else [logger]
        self._json = json.dumps(self.settings.as_dict())
        self._finished: dict[str, CellResult] = {}
        self._evidence: Evidence | None = None
        self._watch, self._planning = Stopwatch(), 0.0

    @property
    def evidence(self) -> Evidence:
        """The results in the folder with the predictions behind them, as of the last :meth:`run`.

        Raises:
            PapaError: When the folder holds no study.
        """
        if self._evidence is None:
            self._evidence = Evidence.read(self.folder.path, self.settings.margin)
        return self._evidence

    def plan(self) -> list[PairPlan]:
        """Load every encoder and task, and find the missing results.

        Raises:
            PapaError: When an encoder or data cannot be loaded.
        """
        open_bench.cache_clear()
        self._watch, start, plans = Stopwatch(), time.perf_counter(), []
        for encoder, task in pairs(self.settings):
            bench = open_bench(self._json, encoder, task)
            with bench.watch.part("other"):
                plans.append(self._plan_pair(bench))
            self._watch.add(bench.watch.take())
        self._planning = time.perf_counter() - start
        return plans

    def run(
        self,
        plans: Sequence[PairPlan] | None = None,
        num_workers: int = 1,
        backend: Backend = "processes",
        progress: bool = True,
        part: StudyPart | None = None,
    ) -> pd.DataFrame:
        """Compute the missing results; with a progress bar, a table at its end says where the time went.

        Args:
            plans: Result of :meth:`plan`, just made; None plans first.
            num_workers: Number of worker processes. They end with this process, also when it is killed. On GPUs at most
                one works for each.
            backend: Where the workers run.
            progress: Whether to show a progress bar.
            part: Part of the study that this process works on, while others work on the others; None for all of it.

        Returns:
            The table of results, which is also in the folder.

        Raises:
            PapaError: For a bad `num_workers`; when another process works in the folder; when something cannot be
                loaded, stored or trained. Finished results are kept.
        """
        check_num_workers(num_workers, backend)
        device = find_device(self.settings.device)
        num_workers = useful_workers(num_workers, backend, device)
        with self.folder.claimed(part):
            plans, start = self.plan() if plans is None else plans, time.perf_counter()
            do = partial(do_pieces, num_workers=num_workers, backend=backend, gpus=gpus_of(device))
            own = plans if part is None else self._own(part, plans)
            files = {name: [file for plan in plans for file in plan.files[name]] for name in NAMED}
            self._clear(part)
            about = self._about(plans) | (self._measured() if self.unfinished(plans) == 0 else {})
            self.folder.write(self.settings.as_dict(), about, files)
            try:
                # The bar counts sequences that pass through an encoder, which take most of the time.
                with Progress(
                    total=sum(plan.passes * plan.examples for plan in own),
                    desc="Study",
                    bar_format="{l_bar}{bar}| {elapsed}, {remaining} to go {postfix}",
                    disable=not progress,
                    dynamic_ncols=True,
                ) as bar:
                    texts = self._work(plans, own, do, num_workers, bar)
            finally:
                open_bench.cache_clear()
                self._clear(part)  # left by stopped workers
            warn_of_zero_mass(texts)
            seconds, wall = self._watch.take(), self._planning + time.perf_counter() - start
            if progress and not {"probes", "judging"}.isdisjoint(seconds):
                tell(time_table(seconds, wall, num_workers))
            table = self.table(plans)
            self._evidence = None
            save_summary(self.evidence.summary, self.folder.path)
            log_study(self._loggers, self.settings, self.evidence.summary)
            return table

    def unfinished(self, plans: Iterable[PairPlan]) -> int:
        """Number of results that are still missing, of all parts."""
        return sum(self._result(key) is None for plan in plans for key in plan.keys.values())

    def _own(self, part: StudyPart, plans: Sequence[PairPlan]) -> list[PairPlan]:
        """Plans with the groups of a part. What is finished already does not matter: it may differ between jobs."""
        every = [(encoder, task, choice) for encoder, task in pairs(self.settings) for choice in choices(self.settings)]
        chosen = set(part.of(every))
        return [
            replace(plan, groups=[one for one in plan.groups if (one.encoder, one.task, one.choice) in chosen])
            for plan in plans
        ]

    def _clear(self, part: StudyPart | None) -> None:
        """Remove what killed processes left, unless other parts of the study may be at work."""
        if part is None:
            self.folder.clear(self.settings.features.keep)

    def _work(
        self,
        plans: Sequence[PairPlan],
        own: Sequence[PairPlan],
        do: Callable[..., Any],
        num_workers: int,
        bar: Progress,
    ) -> list[str]:
        """Make constants and rankings, and train the probes; texts of zero mass warnings, of which some may be ""."""
        given = self._json, str(self.folder.path)
        plan_of = {(plan.encoder, plan.task): plan for plan in own}
        cost = {pair: plan.preparation * plan.examples for pair, plan in plan_of.items() if plan.groups}
        name = "encoder {0[0]}, task {0[1]}".format

        def prepared(pair: tuple[str, str], seconds: dict[Part, float]) -> None:
            self._watch.add(seconds)
            bar.update(cost[pair])

        do(partial(prepare, *given), list(cost), prepared, name=name)

        texts: list[str] = []

        def trained(groups: Sequence[Group], measured: tuple[dict[Part, float], str]) -> None:
            self._watch.add(measured[0])
            texts.append(measured[1])
            for group in groups:
                plan = plan_of[group.encoder, group.task]
                if any(self._result(plan.keys[group.choice, seed]) is None for seed in group.seeds):
                    raise StudyError(f"{group}: encoder or data have changed since the plan was made: run it again.")
                bar.set_postfix_str(f"{group.encoder}, {group.task}, share {group.choice.share:g}", refresh=False)
                bar.update(plan.cost(group) * plan.examples)
            self.table(plans)

        device, at_least = find_device(self.settings.device), -(-num_workers // max(len(cost), 1))
        pieces = [piece for plan in own for piece in pieces_of(plan.groups, device, at_least)]
        do(partial(run_groups, *given), pieces, trained, name=lambda groups: "; ".join(map(str, groups)))
        return texts

    def table(self, plans: Iterable[PairPlan]) -> pd.DataFrame:
        """Collect the finished cells into the table, and write it.

        Args:
            plans: Result of :meth:`plan`.
        """
        with self.folder.turn("table"):  # the last of several parts has seen the results of all
            table = self._collected(plans)
            save_table(table, self.folder.path)
        return table

    def _collected(self, plans: Iterable[PairPlan]) -> pd.DataFrame:
        """The finished cells as a table."""
        keys = {(plan.encoder, plan.task): plan.keys for plan in plans}
        results = []
        for cell in cells_of(self.settings):
            # Tasks of embeddings have one seed.
            key = keys[cell.encoder, cell.task].get((cell.choice, cell.seed))
            if key is not None and (result := self._result(key)) is not None:
                # Cells that differ in irrelevant parts, such as the criterion at share 1, share a probe.
                own = replace(result, encoder=cell.encoder, task=cell.task, criterion=cell.criterion)
                results.append(replace(own, constants=cell.kind))
        return results_table(results)

    def _result(self, key: str) -> CellResult | None:
        """The finished result of a hash, read once; None if it is missing."""
        if key not in self._finished:
            if not self.folder.cell(key).exists():
                return None
            self._finished[key] = self.folder.result(key, CellResult.load)
        return self._finished[key]

    def _plan_pair(self, bench: Bench) -> PairPlan:
        check_pair(bench)
        check_constants(bench)
        encoder, task = bench.encoder, bench.name
        chosen, seeds, judged = choices(self.settings), bench.seeds, bench.judgements is not None
        keys = {(choice, seed): cell_key(bench, choice, seed) for choice in chosen for seed in seeds}
        left = {one: tuple(seed for seed in seeds if self._result(keys[one, seed]) is None) for one in chosen}
        groups = [Group(encoder, task, choice, missing) for choice, missing in left.items() if missing]
        average = self.folder.constants(encoder, task, "average", average_key(bench, "average"))
        ranked = sorted({choice.criterion for choice in chosen if choice.criterion is not None})
        rankings = {name: self.folder.ranking(encoder, task, name, ranking_key(bench, name)) for name in ranked}
        criteria = [criterion_from(name) for name, path in rankings.items() if not path.exists()]
        costs = [one.passes + ("loss" in one.needs) for one in criteria]
        evaluated = sum(map(len, bench.evaluations.values()))

        def file(path: Path, **named: str) -> dict[str, str]:
            return {"encoder": encoder, "task": task, **named, "path": self.folder.relative(path)}

        return PairPlan(
            encoder,
            task,
            keys=keys,
            groups=groups,
            total=len(keys),
            preparation=(not average.exists()) + sum(costs) if groups else 0.0,
            group_cost=(not judged) + evaluated / len(bench.train),
            examples=len(bench.train),
            about=bench.describe(),
            files={
                "constants": [file(average, kind="average")],
                "rankings": [file(path, criterion=name) for name, path in rankings.items()],
            },
            probes=not judged,
            recovery_cost=TRAINED * self.settings.recovery.max_epochs,
        )

    def _machine(self) -> dict[str, Any]:
        """Today, and the machine."""
        today = f"{datetime.now(timezone.utc):%Y-%m-%d}"
        return {"date": today, **machine_facts(find_device(self.settings.device))}

    def _measured(self) -> dict[str, Any]:
        """Day and machine of the results that are there, where all of them are."""
        try:
            about = self.folder.read()["about"]
        except StudyError:  # missing or damaged: it is written anew
            return {}
        return {name: about[name] for name in self._machine() if name in about}

    def _about(self, plans: Sequence[PairPlan]) -> dict[str, Any]:
        """Facts about the measurement."""
        settings = self.settings
        probes = {
            "features": settings.features.storage,
            "probe": asdict(settings.probe) | {"pooling": settings.pooling},
            "seeds": list(settings.seeds),
        }
        return {
            **self._machine(),
            "dtype": "float32",
            **settings.packs.noted(find_device(settings.device)),
            **(probes if any(plan.probes for plan in plans) else {}),
            **({"recovery": asdict(settings.recovery)} if RECOVERED in settings.constants else {}),
            "pairs": [{"encoder": plan.encoder, "task": plan.task, **plan.about} for plan in plans],
        }


def format_filling(folder: StudyFolder, plans: Sequence[PairPlan]) -> list[str]:
    """A line for each pair of whose average pairs of positions were filled that calibration never saw.

    Args:
        folder: Folder of the study.
        plans: Result of :meth:`Study.plan`, after the run.
    """
    lines = []
    for plan in plans:
        for file in plan.files["constants"]:
            path = folder.path / file["path"]
            line = describe_filling(AttentionConstants.load(path).filled()) if path.exists() else ""
            lines += [f"{line} ({plan.encoder}, {plan.task})"] * bool(line)
    return lines
