"""Training of many probes as one module: several seeds on several sets of features, in the memory of their device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from papa_lightning.study.draws import draw_kept, draw_orders, generators
from papa_lightning.study.features.features import ResidentFeatures
from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.probes import LayerwiseProbe, Probe
from papa_lightning.tasks.scores import LabelledCrossEntropy

if TYPE_CHECKING:
    from papa_lightning.study.training import ProbeSettings

#: Bytes of the dropout masks that are drawn at once, while the device works with those before them.
_DRAWN = 2**26
#: Steps before a CUDA graph is captured, in which libraries set themselves up and the optimizer makes its moments.
_EAGER = 3


class StackedProbes(nn.Module):
    """S probes as one module; an optimizer that works number by number changes them as it would each.

    Args:
        probes: The probes, of a task for which :func:`can_stack` holds.
    """

    def __init__(self, probes: Sequence[Probe]) -> None:
        super().__init__()
        views = [self.views(probe) for probe in probes]
        for name in views[0]:
            stacked = torch.stack([own[name].detach() for own in views])
            self.register_parameter(name, nn.Parameter(stacked))

    @staticmethod
    def views(probe: Probe) -> dict[str, Tensor]:
        """The parameters of a probe as they are stacked: weights transposed, so that they can be cut in pieces."""
        views = {
            "dense_weight": probe.dense.weight.T,
            "dense_bias": probe.dense.bias[None],
            "classifier_weight": probe.classifier.weight.T,
            "classifier_bias": probe.classifier.bias[None],
        }
        return views | {"position_weights": probe.position_weights} if isinstance(probe, LayerwiseProbe) else views

    def forward(self, inputs: Tensor, kept: Tensor | None) -> Tensor:
        """Logits (S, n, C) of inputs (S, pieces, n, F / pieces); `kept` (S, n, d) is 0 for what dropout drops.

        A product of some 16 rows with one long sum would leave most of a GPU idle: each piece has a sum of its own.
        """
        seeds, pieces, number, size = inputs.shape
        weights = self.get_parameter("dense_weight").view(seeds * pieces, size, -1)
        sums = torch.bmm(inputs.flatten(0, 1), weights).view(seeds, pieces, number, -1).sum(dim=1)
        hidden = torch.tanh(sums + self.get_parameter("dense_bias"))
        hidden = hidden if kept is None else hidden * kept
        classifier = self.get_parameter("classifier_weight")
        return torch.baddbmm(self.get_parameter("classifier_bias"), hidden, classifier)

    def put(self, probes: Sequence[Probe]) -> None:
        """Write the parameters into the probes."""
        for number, probe in enumerate(probes):
            for name, view in self.views(probe).items():
                view.detach().copy_(self.get_parameter(name)[number])


def can_stack(task: EncoderTask) -> bool:
    """Whether the probe and the loss of a task are those that this module computes."""
    probe = task.probe
    if not isinstance(probe, Probe) or type(probe).classify is not Probe.classify:
        return False
    return type(task.loss) is LabelledCrossEntropy and len(list(probe.parameters())) == len(StackedProbes.views(probe))


def train_stacked(
    probes: Sequence[Probe], trains: Sequence[ResidentFeatures], seeds: Sequence[int], settings: ProbeSettings
) -> Iterator[tuple[int, list[float] | None]]:
    """Train probes in place: those of all seeds on the first features, then those on the second, and so on.

    All features are of the same sequences. Yields numbers of steps that were given to the device; after an epoch, when
    the probes have their weights, with the sum of the losses of each.
    """
    module = StackedProbes(probes)
    tables = _Tables(trains[0], seeds, settings, (len(probes), probes[0].dense.out_features))
    step: Callable[[], None] = _Step(module, trains, tables, settings)
    if tables.device.type == "cuda":
        step = _Graphed(step, tables.device)
    for steps, ends in tables.stretches():
        for _ in range(steps):
            step()
        if ends:
            module.put(probes)
        yield steps, tables.take_losses() if ends else None


class _Tables:
    """What the steps of a training read and add to, on the device, always in the same place; for a stretch of steps.

    `sizes`: the number of probes, and of the features that dropout drops.
    """

    def __init__(
        self, train: ResidentFeatures, seeds: Sequence[int], settings: ProbeSettings, sizes: tuple[int, int]
    ) -> None:
        self._train, self._dropout, self.device = train, settings.dropout, train.table.device
        orders, self._drawn_by = zip(*map(generators, seeds), strict=True)
        drawn = draw_orders(orders, len(train), settings.max_epochs, settings.batch_size)
        self._sizes = train.reading.sizes(drawn, train.index.counts)
        self._orders = drawn.to(self.device)
        self._rates = settings.learning_rates(len(train)).to(self.device, torch.float32).view(self._orders.shape[:2])
        shape = (len(seeds), int(self._sizes.max()), sizes[1])
        self._length = max(1, min(self._orders.shape[1], _DRAWN // (shape[0] * shape[1] * shape[2])))
        self.at = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.losses = torch.zeros(sizes[0], device=self.device)
        self.rates = torch.zeros(self._length, device=self.device)
        self.units = torch.zeros(self._length, *shape[:2], dtype=torch.int64, device=self.device)
        self.kept: Tensor | None = None
        if self._dropout > 0:
            self.kept = torch.zeros(self._length, *shape, dtype=torch.uint8, device=self.device)

    def stretches(self) -> Iterator[tuple[int, bool]]:
        """Fill the tables again and again; yields the number of their steps, and whether the epoch ends with them."""
        steps = self._orders.shape[1]
        parts = [
            (epoch, slice(first, min(first + self._length, steps)))
            for epoch in range(len(self._orders))
            for first in range(0, steps, self._length)
        ]
        for (epoch, part), _ in zip(parts, self._masks(parts), strict=True):
            orders = self._orders[epoch, part]
            self.units[: len(orders)] = self._train.reading.units(orders, self._train.counts, self.units.shape[2])
            self.rates[: len(orders)] = self._rates[epoch, part]
            self.at.zero_()
            yield len(orders), part.stop == steps

    def take_losses(self) -> list[float]:
        """The sum of the losses of each probe since the last call; waits for the device."""
        found: list[float] = self.losses.tolist()
        self.losses.zero_()
        return found

    def _masks(self, parts: Sequence[tuple[int, slice]]) -> Iterator[None]:
        """Fill the dropout masks for each part of the training; threads draw the next while a GPU works."""
        kept = self.kept
        if kept is None:
            yield from [None] * len(parts)
            return
        cuda = self.device.type == "cuda"
        ahead = [torch.zeros(kept.shape, dtype=torch.uint8, pin_memory=cuda) for _ in range(2)]
        copied = [torch.cuda.Event() for _ in ahead] if cuda else []  # type: ignore[no-untyped-call]

        def draw(number: int, seed: int) -> None:
            epoch, part = parts[number]
            sizes = self._sizes[epoch, part, seed]
            draw_kept(ahead[number % 2][: len(sizes), seed], sizes, self._dropout, self._drawn_by[seed])

        seeds = range(len(self._drawn_by))
        with ThreadPoolExecutor(min(len(seeds), os.cpu_count() or 1)) as pool:
            waiting = [pool.submit(draw, 0, seed) for seed in seeds]
            for number, (_, part) in enumerate(parts):
                for one in waiting:
                    one.result()
                if number + 1 < len(parts):
                    if number > 0 and cuda:  # before its memory is drawn into
                        copied[(number + 1) % 2].synchronize()
                    waiting = [pool.submit(draw, number + 1, seed) for seed in seeds]
                steps = part.stop - part.start
                kept[:steps].copy_(ahead[number % 2][:steps], non_blocking=True)
                if cuda:
                    copied[number % 2].record(torch.cuda.current_stream(self.device))
                yield None


class _Step:
    """A step of all probes, without arguments: it reads its number, and all else, from the tables."""

    def __init__(
        self, module: StackedProbes, trains: Sequence[ResidentFeatures], tables: _Tables, settings: ProbeSettings
    ) -> None:
        self._module, self._trains, self._tables, self._loss = module, trains, tables, LabelledCrossEntropy()
        self._divisor = 1 - settings.dropout
        self._rate = torch.zeros((), device=tables.device)
        # One kernel for all weights; a rate on the device can change inside a graph.
        fused = tables.device.type in ("cpu", "cuda") or None
        self._optimizer = settings.make_optimizer(module, fused)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate

    def __call__(self) -> None:
        """Do the next step of the tables."""
        tables, first, sets = self._tables, self._trains[0], len(self._trains)
        units = tables.units.index_select(0, tables.at)[0]
        inputs = self._inputs(first.rows.index_select(0, units.flatten()).view(*units.shape, -1))
        kept = None
        if tables.kept is not None:
            kept = tables.kept.index_select(0, tables.at)[0].float().div_(self._divisor).repeat(sets, 1, 1)
        labels = first.labels.index_select(0, units.flatten()).view(units.shape).repeat(sets, 1)
        losses = self._loss.of_each(self._module(inputs, kept), labels)
        self._rate.copy_(tables.rates.index_select(0, tables.at)[0])
        for group in self._optimizer.param_groups:  # which warns of steps outside of a graph that could be in one
            group["capturable"] = tables.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        self._optimizer.zero_grad()
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        tables.losses += losses.detach()
        tables.at += 1

    def _inputs(self, rows: Tensor) -> Tensor:
        """The inputs of all probes from rows (seeds, n, K), which are the same in all tables."""
        sets, weights = len(self._trains), getattr(self._module, "position_weights", None)
        own = [None] * sets if weights is None else weights.view(sets, -1, *weights.shape[1:]).unbind()
        read = [one.reading.stacked_inputs(one.table, rows, part) for one, part in zip(self._trains, own, strict=True)]
        return torch.cat(read)


class _Graphed:
    """A function without arguments on a GPU, whose kernels are launched together from the fourth call on."""

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self._function, self._graph, self._device = function, torch.cuda.CUDAGraph(), device
        self._stream, self._calls = torch.cuda.Stream(device), 0  # type: ignore[no-untyped-call]

    def __call__(self) -> None:
        """Call the function, or launch its kernels again."""
        if self._calls < _EAGER:
            self._calls += 1
            outside = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(outside)
            with torch.cuda.stream(self._stream):
                self._function()
            outside.wait_stream(self._stream)
            return
        if self._calls == _EAGER:
            self._calls += 1
            # Other threads may go on to use the GPU: nothing here depends on what they do.
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                self._function()
        self._graph.replay()
