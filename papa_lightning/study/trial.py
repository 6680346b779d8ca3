"""How long a study will take: a short trial of its work on a few rows, times the counts of its plan."""

import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from papa_lightning.study.artifacts import average_of, features_of
from papa_lightning.study.plan import PairPlan
from papa_lightning.study.settings import StudySettings
from papa_lightning.study.store import StudyFolder
from papa_lightning.study.training import FeatureSet, train_sets
from papa_lightning.study.workbench import Bench

#: Training rows of a trial, and as many to evaluate on: some seconds with an encoder of base size on a CPU.
ROWS = 96


@dataclass(frozen=True)
class PairTrial:
    """Seconds of the parts of a study, measured on one encoder and task.

    Args:
        loading: Seconds to load encoder and data.
        calibrating: Seconds of a sequence in calibration.
        encoding: Seconds of a sequence whose hidden states are stored, or which is embedded.
        step: Seconds of a step of the probes of all seeds.
        evaluating: Seconds in which the probes of all seeds are evaluated on a sequence.
    """

    loading: float
    calibrating: float
    encoding: float
    step: float
    evaluating: float

    def seconds(self, plan: PairPlan, settings: StudySettings) -> float:
        """Estimated seconds of what is left of a plan, with one worker."""
        evaluated = (plan.group_cost - 1) * plan.examples
        encoded = self.encoding * (len(plan.groups) * plan.group_cost + plan.recovery) * plan.examples
        probe, share = settings.for_task(plan.task).probe, plan.missing / len(settings.seeds)  # choices of heads
        evaluations = probe.max_epochs if probe.best_epoch else 1
        trained = share * (self.step * probe.steps(plan.examples) + self.evaluating * evaluated * evaluations)
        return self.loading + self.calibrating * plan.preparation * plan.examples + encoded + trained


def try_pair(settings: StudySettings, encoder: str, task: str) -> PairTrial:
    """Calibrate, store hidden states, and train probes for an epoch, on a few rows of a task.

    Args:
        settings: Settings of the study.
        encoder: Name of the encoder.
        task: Name of the task.
    """
    start = time.perf_counter()
    bench = Bench(settings, encoder, task)
    loading = time.perf_counter() - start
    bench.train = bench.train.select(_some(len(bench.train)))
    if bench.judgements is not None:
        return _try_embeddings(bench, loading)
    name, rows = next(iter(bench.evaluations.items()))
    bench.evaluations = {name: rows.select(_some(len(rows)))}
    with tempfile.TemporaryDirectory() as place:
        folder = StudyFolder(Path(place) / "trial")
        with features_of(folder, bench, "first", {}):
            start = time.perf_counter()  # the first batches of a process are slower, and do not count
        average_of(folder, bench)
        calibrated = time.perf_counter()
        with features_of(folder, bench, "trial", bench.evaluations) as (features, others):
            encoded = time.perf_counter()
            seeds, probe = settings.seeds, replace(bench.settings.probe, max_epochs=1, best_epoch=False)
            train_sets(bench.probed, [FeatureSet(features, {})], seeds, probe)
            trained = time.perf_counter()
            train_sets(bench.probed, [FeatureSet(features, others)], seeds, probe)
            evaluated = time.perf_counter()
    train, sequences = len(bench.train), len(bench.evaluations[name])
    return PairTrial(
        loading=loading,
        calibrating=(calibrated - start) / train,
        encoding=(encoded - calibrated) / (train + sequences),
        step=(trained - encoded) / probe.steps(train),
        evaluating=max(evaluated - trained - (trained - encoded), 0.0) / sequences,
    )


def _try_embeddings(bench: Bench, loading: float) -> PairTrial:
    """Calibrate on, and embed, a few training texts."""
    embed = partial(bench.embedder.embed_rows, bench.batches())
    embed()  # the first batches of a process are slower, and do not count
    start = time.perf_counter()
    embed()
    embedded = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        average_of(StudyFolder(Path(place) / "trial"), bench)
    calibrated, texts = time.perf_counter(), len(bench.train)
    return PairTrial(loading, (calibrated - embedded) / texts, (embedded - start) / texts, step=0.0, evaluating=0.0)


def _some(rows: int) -> list[int]:
    """Numbers of some rows, spread evenly: files may be sorted by length."""
    return sorted({number * rows // ROWS for number in range(ROWS)})


def format_trial(plans: Iterable[PairPlan], settings: StudySettings) -> str:
    """Estimated time of what is left of a study, from a trial of each encoder and task.

    Args:
        plans: Result of :meth:`~papa_lightning.study.Study.plan`.
        settings: Settings of the study.
    """
    left = [plan for plan in plans if plan.missing]
    if not left:
        return "time: none, all results are there."
    trials = [try_pair(settings, plan.encoder, plan.task) for plan in left]
    seconds = sum(trial.seconds(plan, settings) for trial, plan in zip(trials, left, strict=True))
    each = [trial.encoding for trial in trials]
    sequence = f"{1000 * min(each):.3g}" + f" to {1000 * max(each):.3g}" * (len(each) > 1)
    steps = [trial.step for trial in trials if trial.step]
    probes = f", {1000 * steps[0]:.3g} ms a step of {len(settings.seeds)} probes" if steps else ""
    return (
        f"time: about {duration(seconds)} with one worker on this machine, from a trial on up to {ROWS} training rows "
        f"({sequence} ms a sequence through an encoder{probes})."
    )


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours.

    Example:
        >>> duration(8), duration(200), duration(9000), duration(400000)
        ('8 seconds', '3.3 minutes', '2.5 hours', '111 hours')
    """
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    hours = seconds / 3600
    return (
        f"{seconds / 60:.2g} minutes"
        if seconds < 5400
        else f"{hours:.2g} hours"
        if hours < 99
        else f"{hours:,.0f} hours"
    )
