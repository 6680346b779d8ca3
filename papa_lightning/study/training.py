"""Training and evaluation of probes on features."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, count, cycle
from threading import Event, Lock
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from papa_lightning.errors import PapaError
from papa_lightning.runtime import threads_of_torch
from papa_lightning.study.draws import SeededDropout, generators
from papa_lightning.study.evaluation import EpochReview, Evaluated
from papa_lightning.study.features.features import Features, ResidentFeatures, StoredFeatures
from papa_lightning.study.features.reading import reading_of
from papa_lightning.study.predictions import Predictions
from papa_lightning.study.stacked import can_stack, train_stacked
from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.probes import Probe
from papa_lightning.tasks.recipe import Recipe

#: Weights up to which a probe trains on one thread: a step takes 2 to 5 ms, in which threads wait more than they gain.
_ONE_THREAD = 2_000_000
#: Weights of all probes that train at the same time: 100 MB, as much as a batch takes in the encoder before them.
_AT_ONCE = 6_000_000
#: Weights of all probes that train as one module: 3.2 GB with gradients and moments.
_STACKED = 200_000_000


@dataclass(frozen=True)
class ProbeSettings(Recipe):
    """Recipe of a probe in a study, with the number of epochs and the batch size.

    Args:
        max_epochs: Passes over the training split.
        batch_size: Sequences of a step.
        best_epoch: Whether the probe is evaluated after every epoch, and the results of the best one, with the highest
            score on the first evaluation set, are kept as those of a further evaluation set named "best". They are
            chosen by the examples that they are measured on, and so a little too high.

    Raises:
        PapaError: If one is out of its range.

    Example:
        >>> ProbeSettings(max_epochs=0)
        Traceback (most recent call last):
        ...
        papa_lightning.errors.PapaError: probe.max_epochs is 0: pass a value that is at least 1.
    """

    max_epochs: int = 15
    batch_size: int = 16
    best_epoch: bool = False

    prefix: ClassVar[str] = "probe."

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("max_epochs", self.max_epochs >= 1, "at least 1")
        self._check("batch_size", self.batch_size >= 1, "at least 1")

    def steps(self, examples: int) -> int:
        """Number of steps of one probe for a number of training examples."""
        return self.max_epochs * -(-examples // self.batch_size)

    def learning_rates(self, examples: int) -> Tensor:
        """The learning rate (steps,) of every step of one probe, float64."""
        steps = self.steps(examples)
        if not self.has_schedule:
            return torch.full((steps,), self.learning_rate, dtype=torch.float64)
        (factor,) = self.make_schedule(self.make_optimizer(nn.Linear(1, 1)), steps).lr_lambdas
        return self.learning_rate * torch.tensor([factor(step) for step in range(steps)], dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class TrainedProbe:
    """A probe after its last epoch, with loss and metrics by name; ``accuracy/NAME`` for another set.

    `seconds` is its share of the time for all probes that were trained with it; `predictions` are those of each
    evaluation set.
    """

    seed: int
    scores: dict[str, float]
    probe: nn.Module
    seconds: float
    predictions: dict[str, Predictions] = field(default_factory=dict)

    @property
    def level_weights(self) -> list[float] | None:
        """Mean absolute position weight by level; None for a probe without such weights."""
        weights = getattr(self.probe, "position_weights", None)
        return weights.detach().abs().mean(dim=1).tolist() if isinstance(weights, Tensor) else None


def train_probes(
    task: EncoderTask,
    train: Features,
    evaluations: Mapping[str, Features],
    seeds: Sequence[int],
    settings: ProbeSettings,
    progress: Callable[[int], None] | None = None,
) -> list[TrainedProbe]:
    """Train a probe for each seed, which alone sets start, order and dropout, and evaluate it."""
    (trained,) = train_sets(task, [FeatureSet(train, evaluations)], seeds, settings, progress)
    return trained


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features to train on, and those of the evaluation sets, of which the first one is named ""."""

    train: Features
    evaluations: Mapping[str, Features]


def train_sets(
    task: EncoderTask,
    sets: Sequence[FeatureSet],
    seeds: Sequence[int],
    settings: ProbeSettings,
    progress: Callable[[int], None] | None = None,
) -> list[list[TrainedProbe]]:
    """Train a probe for each seed on each of several sets of features of the same rows, as :func:`train_probes`."""
    for one in sets:
        _check(task, one.train, one.evaluations)
    report, found = progress or (lambda done: None), list[list[TrainedProbe]]()
    for part in _parts(task, sets, len(seeds)):
        start = time.perf_counter()
        trains = [one.train for one in part if isinstance(one.train, ResidentFeatures)]
        # On a GPU a step of a probe is launches and waits: one module for all probes has as many as one probe alone.
        if seeds and trains and can_stack(task):
            pairs = _train_stacked(task, part, trains, seeds, settings, report)
        else:
            pairs = [_train_each(task, one.train, one.evaluations, seeds, settings, report) for one in part]
        seconds = (time.perf_counter() - start) / max(len(part) * len(seeds), 1)
        for own in pairs:
            trained = [
                TrainedProbe(seed, one.scores, probe, seconds, one.predictions)
                for seed, (probe, one) in zip(seeds, own, strict=True)
            ]
            found.append(trained)
    return found


def _parts(task: EncoderTask, sets: Sequence[FeatureSet], seeds: int) -> list[list[FeatureSet]]:
    """The sets that are trained together: those on a device, of the same rows, as many as fit; each other by itself."""
    weights = sum(parameter.numel() for parameter in task.probe.parameters())
    most, parts = max(1, _STACKED // (weights * max(seeds, 1))), list[list[FeatureSet]]()
    for one in sets:
        last = parts[-1] if parts else []
        resident = last and all(isinstance(other.train, ResidentFeatures) for other in (last[0], one))
        if resident and len(last) < most and last[0].train.index == one.train.index:
            last.append(one)
        else:
            parts.append([one])
    return parts


_Found = list[tuple[Probe, Evaluated]]


def _train_stacked(
    task: EncoderTask,
    sets: Sequence[FeatureSet],
    trains: Sequence[ResidentFeatures],
    seeds: Sequence[int],
    settings: ProbeSettings,
    report: Callable[[int], None],
) -> list[_Found]:
    """Train and evaluate all probes as one module; `report` gets the number of steps given to the device."""
    probes, done, epochs = [initial_probe(task, seed) for _ in sets for seed in seeds], 0, count()
    owns = [probes[first : first + len(seeds)] for first in range(0, len(probes), len(seeds))]
    reviews = [EpochReview(task, one.evaluations, settings) for one in sets]
    for steps, losses in train_stacked(probes, trains, seeds, settings):
        done += steps * len(probes)
        report(done)
        if losses is not None:
            epoch = next(epochs)
            for seed, loss in zip(cycle(seeds), losses, strict=False):
                _check_loss(loss, seed, epoch, settings)
            for own, review in zip(owns, reviews, strict=True):
                review.after(epoch, own)
    return [
        list(zip([probe.eval() for probe in own], review.evaluated, strict=True))
        for own, review in zip(owns, reviews, strict=True)
    ]


def _train_each(
    task: EncoderTask,
    train: Features,
    evaluations: Mapping[str, Features],
    seeds: Sequence[int],
    settings: ProbeSettings,
    report: Callable[[int], None],
) -> _Found:
    """Train and evaluate each probe by itself."""
    steps, lock, stopped = count(1), Lock(), Event()

    def step_done() -> None:
        if stopped.is_set():
            raise CancelledError
        with lock:
            report(next(steps))

    found: dict[int, tuple[Probe, Evaluated]] = {}

    def run(seed: int) -> Iterator[None]:
        with lock:  # it uses the global random state
            probe = initial_probe(task, seed)
        review = EpochReview(task, evaluations, settings)
        for epoch, _ in enumerate(_train(task, probe, train, seed, settings, step_done)):
            review.after(epoch, [probe])
            yield
        found[seed] = probe.eval(), review.evaluated[0]

    at_once = _number_at_once(task, [train, *evaluations.values()])
    if at_once == 0:
        deque(chain.from_iterable(map(run, seeds)), maxlen=0)
    else:
        _in_threads(list(map(run, seeds)), at_once, stopped)
    return [found[seed] for seed in seeds]


def _number_at_once(task: EncoderTask, features: Sequence[Features]) -> int:
    """Number of probes in training at the same time, on one thread each; 0: one after the other, on all threads."""
    # One module for all seeds would be no faster than one after the other: it has as much to multiply, and its weights,
    # gradients and moments (50 MB for three times a million weights) leave the cache.
    weights = sum(parameter.numel() for parameter in task.probe.parameters())
    stored = all(isinstance(one, StoredFeatures) for one in features)  # else the encoder runs, on all threads
    return _AT_ONCE // weights if task.device.type == "cpu" and stored and weights <= _ONE_THREAD else 0


def _in_threads(runs: Sequence[Iterator[None]], at_once: int, stopped: Event) -> None:
    """Do runs on a thread for each that torch may use, some runs at the same time."""
    workers = torch.get_num_threads()
    with threads_of_torch(1), ThreadPoolExecutor(workers) as pool:
        try:
            for first in range(0, len(runs), at_once):
                waiting = deque(runs[first : first + at_once])
                list(pool.map(_take_turns, [waiting] * min(workers, len(waiting))))
        except BaseException:
            stopped.set()
            raise


def _take_turns(waiting: deque[Iterator[None]]) -> None:
    """Go on with runs that threads share, an epoch each in turn: all threads have work until the last epoch."""
    while waiting:
        try:
            run = waiting.popleft()
        except IndexError:  # another thread was faster
            return
        if next(run, "ended") is None:
            waiting.append(run)


def initial_probe(task: EncoderTask, seed: int) -> Probe:
    """The initial probe of a seed, on the device of the task; the global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's only: torch.manual_seed would also seed accelerators
        return cast(Probe, task.configure_probe().to(task.device))


def _train(
    task: EncoderTask, probe: Probe, train: Features, seed: int, settings: ProbeSettings, step_done: Callable[[], None]
) -> Iterator[None]:
    """Train a probe in place; it pauses after every epoch."""
    device = task.device
    order, dropped = generators(seed)
    probe.dropout = SeededDropout(settings.dropout, dropped)
    probe.requires_grad_(True)
    # One kernel a step: 0.65 ms against 2.1 ms for a probe of a million weights, one thread.
    fused = device.type in ("cpu", "cuda") or None
    optimizer = settings.make_optimizer(probe, fused)
    schedule = settings.make_schedule(optimizer, settings.steps(len(train))) if settings.has_schedule else None
    for epoch in range(settings.max_epochs):
        total = torch.zeros((), device=device)
        probe.train()  # an evaluation may have been in between
        for sequences in torch.split(torch.randperm(len(train), generator=order), settings.batch_size):
            batch = train.batch(sequences, device)
            loss: Tensor = task.loss(probe.classify(train.reading.inputs(probe, batch)), batch.labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if schedule is not None:
                schedule.step()
            total += loss.detach()
            step_done()
        _check_loss(float(total), seed, epoch, settings)  # once an epoch, because reading makes an accelerator wait
        yield
    probe.dropout = nn.Dropout(settings.dropout)


def _check_loss(total: float, seed: int, epoch: int, settings: ProbeSettings) -> None:
    if not math.isfinite(total):
        raise PapaError(
            f"the loss of seed {seed} is not finite in epoch {epoch + 1} with learning_rate={settings.learning_rate}: "
            "pass a smaller one."
        )


def _check(task: EncoderTask, train: Features, evaluations: Mapping[str, Features]) -> None:
    wanted = reading_of(task)
    given = {"train": train} | {f"evaluations[{key!r}]": one for key, one in evaluations.items()}
    for name, features in given.items():
        if features.reading != wanted:
            raise PapaError(
                f"{name} holds features as {features.reading}, but the probe of the task reads {wanted}: make the "
                "features with this task."
            )
    if evaluations and next(iter(evaluations)) != "":
        raise PapaError(
            f'evaluations starts with {next(iter(evaluations))!r}, but the first one must be named "": its scores have '
            "plain names."
        )
