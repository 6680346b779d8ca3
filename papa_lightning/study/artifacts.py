"""Constants and rankings of a study: read where they exist, made where they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict

import torch
from datasets import Dataset
from torch import Tensor

from papa_lightning.calibration import AttentionConstants, calibrate, constants_kind, control_constants, without_path
from papa_lightning.criteria import HeadCriterion, RankingInputs, criterion_from, rank_heads
from papa_lightning.encoders import encoder_shape, restore_attention, swap_attention
from papa_lightning.errors import StudyError
from papa_lightning.ranking import HeadRanking
from papa_lightning.study.cells import Choice
from papa_lightning.study.features.features import Features, LiveFeatures, StoredFeatures, store_features
from papa_lightning.study.hashing import digest
from papa_lightning.study.store import StudyFolder
from papa_lightning.study.training import initial_probe, train_probes
from papa_lightning.study.workbench import Bench


def average_key(bench: Bench, kind: str) -> str:
    """What an average of the attention depends on."""
    return digest([bench.seen, kind])


def average_of(folder: StudyFolder, bench: Bench, sequences: int | None = None) -> AttentionConstants:
    """The average attention of an encoder on the training rows of a task.

    Args:
        folder: The study's.
        bench: Encoder and task.
        sequences: So many training rows, drawn at random with seed 0; None takes all.

    Raises:
        StudyError: When there are fewer rows.
    """
    kind = "average" if sequences is None else f"sequences:{sequences}"
    path = folder.constants(bench.encoder, bench.name, kind, average_key(bench, kind))
    if path.exists():
        return AttentionConstants.load(path, bench.task.encoder, bench.data.max_length)
    rows = bench.train
    if sequences is not None:
        if sequences > len(rows):
            raise StudyError(f"constants has {kind!r}, but task {bench.name!r} has {len(rows)} training rows.")
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        rows = rows.select(order[:sequences].tolist())
    noted = {"tokenizer": without_path(bench.data.tokenizer_name), "data": bench.data.description, "kind": kind}
    noted |= {"layout": bench.data.layout, "preset": bench.data.preset}
    made = calibrate(bench.task.encoder, bench.batches(rows), bench.data.max_length, metadata=noted)
    made.save(path)
    return AttentionConstants.load(path)


def constants_of(folder: StudyFolder, bench: Bench, kind: str) -> AttentionConstants:
    """The constants of a kind.

    Args:
        folder: The study's.
        bench: Encoder and task.
        kind: As in the settings.

    Raises:
        StudyError: When another task has another length.
    """
    parsed = constants_kind(kind)
    if parsed.sequences is not None:
        return average_of(folder, bench, parsed.sequences)
    if parsed.other_task is not None:
        other = Bench(bench.settings, bench.encoder, parsed.other_task)
        if other.data.max_length != bench.data.max_length:
            raise StudyError(
                f"constants has {kind!r}, but task {parsed.other_task!r} has max_length {other.data.max_length}, and "
                f"task {bench.name!r} has {bench.data.max_length}: give both the same."
            )
        return average_of(folder, other)
    return control_constants(kind, average_of(folder, bench))


def ranking_key(bench: Bench, criterion: str) -> str:
    """What a ranking depends on. Criteria without labels depend on less than those that learn from them."""
    learns = not {"loss", "task"}.isdisjoint(criterion_from(criterion).needs)
    settings = bench.settings
    learned = [asdict(settings.probe), settings.pooling, settings.seeds[0], settings.features.storage == "float16"]
    return digest([bench.seen, criterion, [bench.identity, learned] if learns else None])


def ranking_of(folder: StudyFolder, bench: Bench, criterion: str) -> HeadRanking:
    """The ranking of an encoder's heads on a task.

    Args:
        folder: The study's.
        bench: Encoder and task.
        criterion: As in the settings.
    """
    path = folder.ranking(bench.encoder, bench.name, criterion, ranking_key(bench, criterion))
    if path.exists():
        return HeadRanking.load(path)
    wanted = criterion_from(criterion)
    # Criteria that learn begin with the same probe in every process, whatever was ranked before.
    bench.task.probe.load_state_dict(initial_probe(bench.task, bench.settings.seeds[0]).state_dict())
    inputs = RankingInputs(
        encoder=bench.task.encoder,
        constants=average_of(folder, bench) if "constants" in wanted.needs else None,
        batches=bench.batches() if {"loss", "task"}.isdisjoint(wanted.needs) else bench.padded_batches(),
        loss=probe_loss(folder, bench) if "loss" in wanted.needs else None,
        task=bench.task,
    )
    rank_heads(criterion, inputs).save(path)
    return HeadRanking.load(path)


@contextmanager
def chosen_heads(folder: StudyFolder, bench: Bench, choice: Choice) -> Iterator[int]:
    """Make the chosen heads of the encoder constant for a while.

    Args:
        folder: The study's.
        bench: Encoder and task.
        choice: The heads.

    Yields:
        The number of constant heads.
    """
    layers, heads = encoder_shape(bench.task.encoder)
    if choice.kind is None:
        yield 0
        return
    constants = constants_of(folder, bench, choice.kind)
    every = [(layer, head) for layer in range(layers) for head in range(heads)]
    chosen = every if choice.criterion is None else ranking_of(folder, bench, choice.criterion).first(choice.share)
    swap_attention(bench.task.encoder, "constant", constants=constants, heads=chosen)
    try:
        yield len(chosen)
    finally:
        restore_attention(bench.task.encoder)


@contextmanager
def features_of(
    folder: StudyFolder, bench: Bench, key: str, evaluations: Mapping[str, Dataset]
) -> Iterator[tuple[Features, Mapping[str, Features]]]:
    """The hidden states of the encoder as it is now, for training and for some evaluation sets.

    Args:
        folder: The study's.
        bench: Encoder and task; the encoder is swapped already.
        key: What the hidden states depend on.
        evaluations: The evaluation sets.
    """
    settings, splits = bench.settings.features, {"train": bench.train}
    splits |= {f"evaluation-{name}": rows for name, rows in evaluations.items()}
    if settings.storage == "none":
        live = [LiveFeatures(bench.task, rows) for rows in splits.values()]
        yield live[0], dict(zip(evaluations, live[1:], strict=True))
        return
    left, stored = int(settings.budget_gigabytes * 1e9), list[StoredFeatures]()
    size = bench.settings.calibration_batch_size
    # Two choices of two processes may come down to the same hidden states, and none may remove those of the other.
    with nullcontext(folder.features(key)) if settings.keep else folder.temporary_features() as place:
        for name, rows in splits.items():
            new = store_features(
                bench.task, rows, place / name, dtype=settings.storage, budget_bytes=left, batch_size=size
            )
            stored.append(new)
            left -= new.nbytes
        yield stored[0], dict(zip(evaluations, stored[1:], strict=True))


def probe_loss(folder: StudyFolder, bench: Bench) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """The loss of a probe that was trained with all heads dynamic, for criteria that ask what a head is worth to it.

    Args:
        folder: The study's.
        bench: Encoder and task; the task gets the probe.

    Returns:
        The mean loss of a labelled batch, as :meth:`Bench.padded_batches` gives them.
    """
    settings = bench.settings
    half = settings.features.storage == "float16"
    with features_of(folder, bench, digest([bench.identity, "loss", half]), {}) as (train, _):
        (trained,) = train_probes(bench.task, train, {}, settings.seeds[:1], settings.probe)
    bench.task.probe.load_state_dict(trained.probe.state_dict())

    def loss(batch: Mapping[str, Tensor]) -> Tensor:
        on_device = {name: values.to(bench.task.device) for name, values in batch.items()}
        return bench.task.score(on_device, batch_idx=0).loss

    return loss


def criterion_cost(criterion: str) -> float:
    """Estimated forward passes over the training rows that a ranking costs, beside calibration."""
    wanted: HeadCriterion = criterion_from(criterion)
    return wanted.passes + ("loss" in wanted.needs)
