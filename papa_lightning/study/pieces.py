"""The work of a study in pieces that any process can take: plain values in, files out."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch

from papa_lightning.calibration import constants_kind
from papa_lightning.encoders import encoder_shape
from papa_lightning.runtime import versions
from papa_lightning.study.artifacts import average_of, chosen_heads, features_of, ranking_key, ranking_of
from papa_lightning.study.cells import Choice, Group, choices
from papa_lightning.study.hashing import digest
from papa_lightning.study.results import CellResult
from papa_lightning.study.settings import settings_from
from papa_lightning.study.store import StudyFolder
from papa_lightning.study.training import TrainedProbe, train_probes
from papa_lightning.study.workbench import Bench


@lru_cache(maxsize=1)  # the pieces of one pair follow each other, and loading an encoder takes seconds
def open_bench(settings: str, encoder: str, task: str) -> Bench:
    """Load an encoder and a task. A plan begins, and a run ends, with an empty cache: the files may hold others then.

    Args:
        settings: Those of the study, as JSON.
        encoder: Name of the encoder.
        task: Name of the task.
    """
    return Bench(settings_from(json.loads(settings)), encoder, task)


def features_key(bench: Bench, choice: Choice) -> str:
    """What the hidden states of a choice of heads depend on."""
    ranked = None if choice.criterion is None else ranking_key(bench, choice.criterion)
    other = None if choice.kind is None else constants_kind(choice.kind).other_task
    elsewhere = None if other is None else bench.seen_on(other)
    half = bench.settings.features.storage == "float16"
    return digest([bench.identity, choice.share, choice.kind, elsewhere, ranked, half])


def cell_key(bench: Bench, choice: Choice, seed: int) -> str:
    """What the result of one probe depends on."""
    settings = bench.settings
    return digest([features_key(bench, choice), asdict(settings.probe), settings.pooling, seed])


def prepare(settings: str, output: str, encoder: str, task: str) -> float:
    """Calibrate an encoder on a task and make its rankings, where they do not exist.

    Args:
        settings: Those of the study, as JSON.
        output: Folder of the study.
        encoder: Name of the encoder.
        task: Name of the task.

    Returns:
        Seconds.
    """
    start, bench, folder = time.perf_counter(), open_bench(settings, encoder, task), StudyFolder(output)
    average_of(folder, bench)
    for criterion in dict.fromkeys(choice.criterion for choice in choices(bench.settings)):
        if criterion is not None:
            ranking_of(folder, bench, criterion)
    return time.perf_counter() - start


def run_group(settings: str, output: str, group: Group) -> float:
    """Train the probes of one choice of heads, and write their results.

    Args:
        settings: Those of the study, as JSON.
        output: Folder of the study.
        group: What to do.

    Returns:
        Seconds.
    """
    start, bench, folder = time.perf_counter(), open_bench(settings, group.encoder, group.task), StudyFolder(output)
    with chosen_heads(folder, bench, group.choice) as constant:
        key = features_key(bench, group.choice)
        with features_of(folder, bench, key, bench.evaluations) as (train, evaluations):
            shared = time.perf_counter() - start
            trained = train_probes(bench.task, train, evaluations, group.seeds, bench.settings.probe)
    for probe in trained:
        result = _result(bench, group, constant, probe, shared / len(trained) + probe.seconds)
        result.save(folder.cell(result.hash))
    return time.perf_counter() - start


def _result(bench: Bench, group: Group, constant: int, trained: TrainedProbe, seconds: float) -> CellResult:
    layers, heads = encoder_shape(bench.task.encoder)
    choice = group.choice
    return CellResult(
        encoder=group.encoder,
        task=group.task,
        criterion=choice.criterion or bench.settings.criteria[0],
        share=choice.share,
        constant_heads=constant,
        total_heads=layers * heads,
        seed=trained.seed,
        constants=choice.kind or "average",
        metric=bench.data.metrics[0],
        scores=trained.scores,
        seconds=seconds,
        versions=versions(),
        hash=cell_key(bench, choice, trained.seed),
        level_weights=_level_weights(trained),
    )


def _level_weights(trained: TrainedProbe) -> list[float] | None:
    """Mean absolute position weight of every level, for probes that have them."""
    weights = getattr(trained.probe, "position_weights", None)
    if not isinstance(weights, torch.Tensor):
        return None
    means: list[float] = weights.detach().abs().mean(dim=1).tolist()
    return means


def describe(bench: Bench) -> dict[str, Any]:
    """How the numbers of a pair are measured, for a report."""
    layers, heads = encoder_shape(bench.task.encoder)
    return bench.describe() | {"layers": layers, "heads": heads, "hidden_size": bench.task.encoder.config.hidden_size}
