"""Coverage of the intervals of a study by simulation: how often a 95 % interval holds the true difference.

    python tools/simulate_intervals.py --runs 1000

An example has a label, and a margin z by which a probe gets it right or wrong:

    z = sign * (separation + seed) + of the example, for both probes + of the example, for one probe + noise + bias

"seed", "noise" and "bias" are drawn for each probe, so that seeds differ in how good they are, in single examples, and
in how often they choose class 1. The second probe of a pair has a smaller separation, as with constant heads. The true
difference is that of all examples and all seeds.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from papa_lightning.study.intervals import Estimate, Sample, estimate, mean_interval, resampled_sums
from papa_lightning.tasks.metrics import METRICS, Labels
from papa_lightning.text import Table, tell

SCORES = ("accuracy", "f1", "matthews_corrcoef")
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """Standard deviations of the parts of the margin, the share of class 1, and the separations of both probes."""

    seeds: float = 0.0
    shared: float = 1.0
    own: float = 0.4
    noise: float = 0.2
    positive: float = 0.5
    separations: tuple[float, float] = (0.9, 0.8)

    def effects(self, generator: np.random.Generator, seeds: int) -> tuple[Numbers, Numbers]:
        """Separations and biases (2, S) of the probes of S seeds."""
        shared, own, bias = generator.normal(0, 1, (3, 2, seeds)) * self.seeds
        return np.array(self.separations)[:, None] + shared[:1] + own, bias

    def draw(self, generator: np.random.Generator, examples: int, seeds: int) -> tuple[NDArray[np.int64], Numbers]:
        """Labels (N,) and predictions (2, S, N), 0 or 1."""
        labels = (generator.random(examples) < self.positive).astype(np.int64)
        good, bias = self.effects(generator, seeds)
        margin = (2 * labels - 1) * good[..., None] + bias[..., None] + generator.normal(0, self.shared, examples)
        margin += generator.normal(0, self.own, (2, 1, examples))
        margin += generator.normal(0, self.noise, (2, seeds, examples))
        return labels, (margin > 0).astype(np.float64)

    def true_differences(self, seeds: int = 1_000_000) -> dict[str, float]:
        """The difference of the second probe to the first in each metric, for all examples and many seeds."""
        good, bias = self.effects(np.random.default_rng(1), seeds)
        size, one = math.sqrt(self.shared**2 + self.own**2 + self.noise**2), self.positive
        right = one * stats.norm.cdf((good + bias) / size)  # examples of class 1 that are found
        wrong = (1 - one) * stats.norm.cdf((bias - good) / size)  # examples of class 0 that are taken for class 1
        found = right + wrong
        spread = np.sqrt(one * (1 - one) * found * (1 - found))
        scores = (right + 1 - one - wrong, 2 * right / (found + one), (right - one * found) / spread)
        return {name: float((score[1] - score[0]).mean()) for name, score in zip(SCORES, scores, strict=True)}


#: What is simulated, by its name in the table.
WORLDS = {
    "seeds alike": World(),
    "seeds differ a little": World(seeds=0.03),
    "seeds differ": World(seeds=0.1),
    "seeds differ much": World(seeds=0.25),
    "noisy probes": World(noise=0.8, seeds=0.02),
    "one label in five": World(positive=0.2, seeds=0.05),
}


def samples(
    labels: NDArray[np.int64], predicted: Numbers, resamples: int, seed: int
) -> Iterator[tuple[str, tuple[Sample, Sample]]]:
    """Each metric of both probes, on all examples and in resamples."""
    true = torch.from_numpy(labels)[:, None]
    probes = [torch.from_numpy(one).long()[:, None] for one in predicted.reshape(-1, len(labels))]
    counting = {name: one for name in SCORES if (one := METRICS[name].counts(Labels(2))) is not None}
    counts = {
        name: [one.of_examples(probe, true).double().numpy() for probe in probes] for name, one in counting.items()
    }
    every = np.concatenate([part for parts in counts.values() for part in parts], axis=1)
    sums = resampled_sums(every, resamples, seed)
    for name, parts in counts.items():
        one, width = counting[name], parts[0].shape[1]
        own, sums = np.split(sums, [len(parts) * width], axis=1)
        full = np.array([one.score(part.sum(axis=0)) for part in parts]).reshape(2, -1)
        drawn = one.score(own.reshape(len(own), len(parts), width)).reshape(len(own), 2, -1)
        first, second = (Sample(full[place], drawn[:, place], len(labels)) for place in (0, 1))
        yield name, (first, second)


def plainly_resampled(change: Sample, seed: int) -> tuple[float, float]:
    """The interval of drawing examples and seeds again, both with replacement."""
    assert change.resampled is not None
    drawn, seeds = change.resampled.shape
    chosen = np.random.default_rng(seed).integers(0, seeds, (drawn, seeds))
    low, high = np.percentile(np.take_along_axis(change.resampled, chosen, axis=1).mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def coverage(
    world: World, examples: int, seeds: int = 3, runs: int = 400, resamples: int = 400
) -> dict[str, dict[str, float]]:
    """The share of the runs whose interval holds the true difference: of each metric, by sort of interval."""
    truth, held = world.true_differences(), {name: dict[str, int]() for name in SCORES}
    for run in range(runs):
        labels, predicted = world.draw(np.random.default_rng(1000 + run), examples, seeds)
        for name, (before, after) in samples(labels, predicted, resamples, run):
            change = after.minus(before)
            found: Estimate = estimate(change)
            ends = {"this": (found.low, found.high), "t": mean_interval(change.seeds)[1:]}
            ends["resampled"] = plainly_resampled(change, run)
            for sort, (low, high) in ends.items():
                held[name][sort] = held[name].get(sort, 0) + (low <= truth[name] <= high)
    return {name: {sort: count / runs for sort, count in counts.items()} for name, counts in held.items()}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Coverage of 95 % intervals of differences by simulation.")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, nargs="+", default=[200, 500, 2000])
    args = parser.parse_args()
    lines = []
    for name, world in WORLDS.items():
        for examples in args.examples:
            found = coverage(world, examples, args.seeds, args.runs)
            own = [f"{100 * found[score]['this']:.1f}" for score in SCORES]
            others = [" / ".join(f"{100 * found[score][sort]:.0f}" for score in SCORES) for sort in ("t", "resampled")]
            lines.append((name, f"{examples:,}", *own, *others))
            tell(" ".join(lines[-1]))
    tell(Table(("world", "examples", *SCORES, "t over seeds", "both drawn again"), lines).markdown())


if __name__ == "__main__":
    main()
