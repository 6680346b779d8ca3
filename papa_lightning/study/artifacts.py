"""The work of a study: constants, rankings, features and results, read where they exist and made where they do not.

Functions that any process can run take plain values: the settings as JSON, the path of the folder.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import groupby
from multiprocessing import parent_process
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from papa_lightning.attention import ZeroMassWarning
from papa_lightning.calibration import AttentionConstants, calibrate, control_constants, without_path
from papa_lightning.criteria import HeadCriterion, RankingInputs, criterion_from, rank_heads
from papa_lightning.embeddings import Embedder
from papa_lightning.encoders import HeadSelection, encoder_shape, restore_attention, swap_attention
from papa_lightning.errors import StudyError
from papa_lightning.ranking import HeadRanking
from papa_lightning.runtime import versions
from papa_lightning.study.cells import Choice, Group, choices
from papa_lightning.study.features.features import Features, LiveFeatures, is_gpu, resident_features, store_features
from papa_lightning.study.judged import copy_of, judge, ranking_inputs, recover, scores_of
from papa_lightning.study.predictions import Evaluation, save_predictions
from papa_lightning.study.results import CellResult
from papa_lightning.study.settings import RECOVERED, kind_of, settings_from
from papa_lightning.study.store import StudyFolder, digest
from papa_lightning.study.timing import Part
from papa_lightning.study.training import FeatureSet, initial_probe, train_probes, train_sets
from papa_lightning.study.workbench import Bench


def average_key(bench: Bench, kind: str) -> str:
    """Hash of everything that an average of the attention depends on."""
    return digest([bench.seen, kind])


def average_of(folder: StudyFolder, bench: Bench, sequences: int | None = None) -> AttentionConstants:
    """The average attention of an encoder on some random training rows of a task (seed 0); None for all rows."""
    kind = "average" if sequences is None else f"sequences:{sequences}"
    path = folder.constants(bench.encoder, bench.name, kind, average_key(bench, kind))
    if path.exists():
        return AttentionConstants.load(path, bench.task.encoder, bench.data.max_length)
    rows = bench.train if sequences is None else bench.random_rows(sequences)
    noted = {"tokenizer": without_path(bench.data.tokenizer_name), "data": bench.data.description, "kind": kind}
    noted |= {"layout": bench.data.layout, "preset": bench.data.preset}
    packs = bench.settings.packs
    with bench.watch.part("encoder"):
        made = calibrate(
            bench.task.encoder,
            bench.batches(rows),
            bench.data.max_length,
            metadata=noted,
            packing=packs.enabled,
            tokens_per_batch=packs.tokens_per_batch,
        )
    made.save(path)
    return AttentionConstants.load(path)


def constants_of(folder: StudyFolder, bench: Bench, kind: str = "average") -> AttentionConstants:
    """The constants of a kind, as in the settings, as heads use them: averages are filled, controls made from those."""
    return bench.constants((str(folder.path), kind), lambda: _make_constants(folder, bench, kind))


def _make_constants(folder: StudyFolder, bench: Bench, kind: str) -> AttentionConstants:
    parsed = kind_of("average" if kind == RECOVERED else kind)
    if parsed.sequences is not None:
        return average_of(folder, bench, parsed.sequences).filled()
    if parsed.other_task is not None:
        return average_of(folder, bench.of_task(parsed.other_task)).filled()
    return control_constants(parsed.name, average_of(folder, bench).filled())


def check_constants(bench: Bench) -> None:
    """Refuse kinds of constants that the data of a task cannot give."""
    for kind in bench.settings.constants:
        wanted, rows = kind_of(kind).sequences or 0, len(bench.train)
        if wanted > rows:
            raise StudyError(f"constants has {kind!r}, but task {bench.name!r} has {rows} training rows: pass fewer.")
        if (task := kind_of(kind).other_task) is not None:
            own, other = bench.data.max_length, bench.other(task)[1]
            if own != other:
                raise StudyError(
                    f"constants has {kind!r}, but task {task!r} has max_length {other}, and task {bench.name!r} has "
                    f"{own}: give both the same."
                )


def ranking_key(bench: Bench, criterion: str) -> str:
    """Hash of everything that a ranking depends on; labels and probe count only for criteria that use them."""
    ranks, settings = criterion_from(criterion), bench.settings
    if bench.judgements is not None:
        return digest([bench.seen, criterion, None if {"loss", "embed"}.isdisjoint(ranks.needs) else bench.identity])
    learned = [asdict(settings.probe), settings.pooling, settings.seeds[0], settings.features.storage == "float16"]
    order = ["random order"] if ranks.ordered else []
    return digest([bench.seen, criterion, [bench.identity, learned] if _asks_labels(ranks) else None, *order])


def _asks_labels(criterion: HeadCriterion) -> bool:
    """Whether a criterion reads the labels of batches."""
    return not {"loss", "task"}.isdisjoint(criterion.needs)


def ranking_of(folder: StudyFolder, bench: Bench, criterion: str) -> HeadRanking:
    """The ranking of an encoder's heads on a task by a criterion, as in the settings."""
    path = folder.ranking(bench.encoder, bench.name, criterion, ranking_key(bench, criterion))
    if path.exists():
        return HeadRanking.load(path)
    constants = constants_of(folder, bench) if "constants" in criterion_from(criterion).needs else None
    judged = bench.judgements is not None
    inputs = (ranking_inputs if judged else partial(_probe_inputs, folder))(bench, criterion, constants)
    with bench.watch.part("encoder"):
        rank_heads(criterion, inputs).save(path)
    return HeadRanking.load(path)


def _probe_inputs(
    folder: StudyFolder, bench: Bench, criterion: str, constants: AttentionConstants | None
) -> RankingInputs:
    """Inputs of a criterion for a task with a probe."""
    ranks = criterion_from(criterion)
    rows = bench.random_rows() if ranks.ordered else None
    # Criteria that learn start from the same probe in every process, whatever was ranked before.
    bench.probed.probe.load_state_dict(initial_probe(bench.probed, bench.settings.seeds[0]).state_dict())
    return RankingInputs(
        encoder=bench.task.encoder,
        constants=constants,
        batches=bench.padded_batches(rows) if _asks_labels(ranks) else bench.batches(rows),
        loss=probe_loss(folder, bench) if "loss" in ranks.needs else None,
        task=bench.probed,
        packing=bench.settings.packs,
        embed=Embedder(bench.task.encoder, packing=bench.settings.packs).embed,
    )


@contextmanager
def chosen_heads(folder: StudyFolder, bench: Bench, choice: Choice) -> Iterator[int]:
    """Make the chosen heads of the encoder constant inside a ``with`` block, which gets their number."""
    layers, heads = encoder_shape(bench.task.encoder)
    if choice.kind is None:
        yield 0
        return
    constants = constants_of(folder, bench, choice.kind)
    every = [(layer, head) for layer in range(layers) for head in range(heads)]
    chosen = every if choice.criterion is None else ranking_of(folder, bench, choice.criterion).first(choice.share)
    with swapped(bench, constants, chosen):
        yield len(chosen)


@contextmanager
def swapped(bench: Bench, constants: AttentionConstants, heads: HeadSelection) -> Iterator[None]:
    """Make heads of the encoder constant inside a ``with`` block."""
    swap_attention(bench.task.encoder, "constant", constants=constants, heads=heads, watch=bench.zero_mass)
    try:
        yield
    finally:
        restore_attention(bench.task.encoder)


def warn_of_zero_mass(texts: Iterable[str]) -> None:
    """Give the first warning that benches kept, if any did."""
    if text := next(filter(None, texts), None):
        warnings.warn(text, ZeroMassWarning, stacklevel=3)


@contextmanager
def features_of(
    folder: StudyFolder, bench: Bench, key: str, evaluations: Mapping[str, Dataset]
) -> Iterator[tuple[Features, Mapping[str, Features]]]:
    """The hidden states of the encoder in its present state, for training and evaluation; `key` identifies them."""
    settings, splits = bench.settings.features, {"train": bench.train}
    splits |= {f"evaluation-{name}": rows for name, rows in evaluations.items()}
    if settings.storage == "none":
        live = [LiveFeatures(bench.probed, bench.looked_through(rows), bench.watch) for rows in splits.values()]
        yield live[0], dict(zip(evaluations, live[1:], strict=True))
        return
    left, found, packs = int(settings.budget_gigabytes * 1e9), list[Features](), bench.settings.packs
    how: dict[str, Any] = {
        "dtype": settings.storage,
        "batch_size": bench.settings.calibration_batch_size,
        "tokens_per_batch": packs.tokens_per_batch,
        "watch": bench.watch,
    }
    # Two processes may need the same hidden states, and must not remove each other's.
    with nullcontext(folder.features(key)) if settings.keep else folder.temporary_features() as place:
        for name, rows in splits.items():
            with bench.watch.part("storing"):
                read = bench.looked_through(rows)
                new: Features | None = None if settings.keep else resident_features(bench.probed, read, **how)
                if new is None:
                    stored = store_features(
                        bench.probed, read, place / name, budget_bytes=left, kept=settings.keep, **how
                    )
                    left -= stored.nbytes
                    new = stored.near(bench.task.device)
            found.append(new)
        yield found[0], dict(zip(evaluations, found[1:], strict=True))


def probe_loss(folder: StudyFolder, bench: Bench) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Function from a labelled batch to its mean loss with a probe that was trained with all heads dynamic."""
    settings = bench.settings
    half = settings.features.storage == "float16"
    key = digest([bench.identity, "loss", half])
    with features_of(folder, bench, key, {}) as (train, _), bench.watch.part("probes"):
        (trained,) = train_probes(bench.probed, train, {}, settings.seeds[:1], settings.probe)
    bench.probed.probe.load_state_dict(trained.probe.state_dict())

    def loss(batch: Mapping[str, Tensor]) -> Tensor:
        on_device = {name: values.to(bench.task.device) for name, values in batch.items()}
        return bench.probed.score(on_device, batch_idx=0).loss

    return loss


@lru_cache(maxsize=1)  # groups of a pair follow each other, and loading an encoder takes seconds
def open_bench(settings: str, encoder: str, task: str) -> Bench:
    """Load an encoder and a task. Plans start, and runs end, with an empty cache: files may change in between."""
    with warnings.catch_warnings():
        if parent_process() is not None:  # what loading warns of was shown by the process that planned
            warnings.simplefilter("ignore")
        return Bench(settings_from(json.loads(settings)), encoder, task)


def features_key(bench: Bench, choice: Choice) -> str:
    """Hash of everything that the hidden states of a choice of heads depend on."""
    ranked = None if choice.criterion is None else ranking_key(bench, choice.criterion)
    other = None if choice.kind is None else kind_of(choice.kind).other_task
    elsewhere = None if other is None else bench.other(other)[0]
    half = bench.settings.features.storage == "float16"
    return digest([bench.identity, choice.share, choice.kind, elsewhere, ranked, half])


def cell_key(bench: Bench, choice: Choice, seed: int) -> str:
    """Hash of everything that the result of one probe, or of embeddings, depends on."""
    settings = bench.settings
    if bench.judgements is not None:
        recovery = asdict(settings.recovery) if choice.kind == RECOVERED else None
        return digest([features_key(bench, choice), recovery, seed])
    return digest([features_key(bench, choice), asdict(settings.probe), settings.pooling, seed])


def prepare(settings: str, output: str, pair: tuple[str, str]) -> dict[Part, float]:
    """Calibrate an encoder on a task and make its rankings, where they do not exist; returns the seconds by part."""
    bench, folder = open_bench(settings, *pair), StudyFolder(output)
    # Other parts of the study may need the same.
    with bench.watch.part("other"), folder.turn("--".join(pair)):
        average_of(folder, bench)
        for criterion in dict.fromkeys(choice.criterion for choice in choices(bench.settings)):
            if criterion is not None:
                ranking_of(folder, bench, criterion)
    return bench.watch.take()


def pieces_of(groups: Sequence[Group], device: torch.device, at_least: int = 1) -> list[tuple[Group, ...]]:
    """The groups of a pair that are worked on together: on a GPU those with the same seeds, elsewhere each.

    Args:
        groups: The groups.
        device: Device of the study.
        at_least: Number of pieces on GPUs for groups with the same seeds, as far as there are as many.
    """
    if not is_gpu(device):
        return [(group,) for group in groups]
    pieces = []
    for _, found in groupby(groups, lambda group: group.seeds):
        same = list(found)
        size = -(-len(same) // at_least)
        pieces += [tuple(same[start : start + size]) for start in range(0, len(same), size)]
    return pieces


def run_group(settings: str, output: str, group: Group) -> tuple[dict[Part, float], str]:
    """Train the probes of one choice of heads by themselves; see :func:`run_groups`."""
    return run_groups(settings, output, (group,))


def run_groups(settings: str, output: str, groups: Sequence[Group]) -> tuple[dict[Part, float], str]:
    """Train the probes of some choices of heads for one encoder, task and list of seeds, and write their results.

    Where the task has embeddings and no probe, these are judged instead.

    Returns:
        The seconds by part, and the text of the zero mass warning or "".
    """
    start, waiting = time.perf_counter(), list[_Encoded]()
    bench, folder = open_bench(settings, groups[0].encoder, groups[0].task), StudyFolder(output)
    with bench.watch.part("other"):
        for number, group in enumerate(groups):
            if bench.judgements is not None:
                _judge(folder, bench, group)
                continue
            with chosen_heads(folder, bench, group.choice) as constant:
                key = features_key(bench, group.choice)
                with features_of(folder, bench, key, bench.evaluations) as found:
                    waiting.append(_Encoded(group, constant, FeatureSet(*found), time.perf_counter() - start))
                    # What is in the memory of a device stays there until there is no room for more of the same size.
                    if number + 1 == len(groups) or not found[0].leaves_room:
                        _train(folder, bench, waiting)
                        waiting.clear()
            start = time.perf_counter()
    return bench.watch.take(), bench.zero_mass.text


def _judge(folder: StudyFolder, bench: Bench, group: Group) -> None:
    """Judge the embeddings with one choice of heads, after a training of a copy of the encoder if asked."""
    start, choice = time.perf_counter(), group.choice
    used = bench if choice.kind != RECOVERED else copy_of(bench)
    with chosen_heads(folder, used, choice) as constant:
        if used is not bench:
            recover(used, bench.original)
        found = judge(used)
    layers, heads = encoder_shape(bench.task.encoder)
    for seed in group.seeds:
        key, seconds = cell_key(bench, choice, seed), time.perf_counter() - start
        made = (constant, layers * heads)
        save_cell(folder, cell_result(bench, choice, made, seed, scores_of(found), seconds, key), found)


@dataclass(frozen=True, eq=False)
class _Encoded:
    """The hidden states with one choice of heads: number of constant heads, features, and the seconds they took."""

    group: Group
    constant: int
    features: FeatureSet
    seconds: float


def _train(folder: StudyFolder, bench: Bench, waiting: Sequence[_Encoded]) -> None:
    """Train the probes on all hidden states that are waiting, and write their results."""
    layers, heads = encoder_shape(bench.task.encoder)
    with bench.watch.part("probes"):
        sets = [one.features for one in waiting]
        found = train_sets(bench.probed, sets, waiting[0].group.seeds, bench.settings.probe)
    for one, trained in zip(waiting, found, strict=True):
        choice = one.group.choice
        for probe in trained:
            key, seconds = cell_key(bench, choice, probe.seed), one.seconds / len(trained) + probe.seconds
            made = (one.constant, layers * heads)
            result = cell_result(bench, choice, made, probe.seed, probe.scores, seconds, key)
            save_cell(folder, replace(result, level_weights=probe.level_weights), probe.predictions)


def save_cell(folder: StudyFolder, result: CellResult, predictions: Mapping[str, Evaluation]) -> None:
    """Write predictions and then their result, which marks them as finished."""
    if predictions:
        save_predictions(folder.predictions(result.hash), predictions)
    result.save(folder.cell(result.hash))


def cell_result(
    bench: Bench,
    choice: Choice,
    heads: tuple[int, int],
    seed: int,
    scores: Mapping[str, float],
    seconds: float,
    key: str,
) -> CellResult:
    """The result of a choice of heads, with the numbers of constant heads and of all `heads`."""
    return CellResult(
        encoder=bench.encoder,
        task=bench.name,
        criterion=choice.criterion or bench.settings.criteria[0],
        share=choice.share,
        constant_heads=heads[0],
        total_heads=heads[1],
        seed=seed,
        constants=choice.kind or "average",
        metric=bench.metrics[0],
        scores=scores,
        seconds=seconds,
        versions=versions(),
        hash=key,
    )
