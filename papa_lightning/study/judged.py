"""Tasks of embeddings in a study: what takes the place of a probe, and what they cannot have."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from papa_lightning.calibration import AttentionConstants
from papa_lightning.criteria import RankingInputs, check_for_embeddings, criterion_from, embedding_inputs
from papa_lightning.embeddings import Answers
from papa_lightning.errors import StudyError
from papa_lightning.study.settings import RECOVERED
from papa_lightning.study.workbench import Bench
from papa_lightning.tasks.recovery import distil


def check_pair(bench: Bench) -> None:
    """Refuse criteria that a task of embeddings cannot have, and a recovery where there is a probe."""
    settings = bench.settings
    if bench.judgements is None:
        if RECOVERED in settings.constants:
            raise StudyError(
                f"constants has {RECOVERED!r}, which trains encoders to the embeddings of the original, but task "
                f"{bench.name!r} has a probe: leave it out, or study tasks of embeddings by themselves."
            )
        return
    for criterion in settings.criteria:
        check_for_embeddings(criterion)


def ranking_inputs(bench: Bench, criterion: str, constants: AttentionConstants | None) -> RankingInputs:
    """Inputs of a criterion for a task of embeddings, whose loss is their change."""
    encoder, batches, embed, packing = bench.task.encoder, bench.batches(), bench.embedder.embed, bench.settings.packs
    if "loss" in criterion_from(criterion).needs:
        return embedding_inputs(encoder, constants, batches, embed, packing)
    return RankingInputs(encoder, constants, batches, packing=packing, embed=embed)


def copy_of(bench: Bench) -> Bench:
    """A bench whose encoder may be trained, while that of the original stays as it is."""
    copied = copy.copy(bench)
    copied.task = copy.deepcopy(bench.task)
    vars(copied).pop("embedder", None)
    return copied


def recover(bench: Bench, original: Tensor) -> None:
    """Train the encoder, in whose heads are constants, to the embeddings (N, d) of the original on training texts."""
    with bench.watch.part("recovery"):
        settings = bench.settings
        distil(
            bench.task.encoder,
            bench.batches(),
            teacher=original,
            pooling=bench.embedder.pooling,
            settings=settings.recovery,
            packing=settings.packs,
        )


def judge(bench: Bench) -> dict[str, Answers]:
    """The answers by the encoder in its present state, by evaluation set: one pass over the texts."""
    assert bench.judgements is not None
    with bench.watch.part("encoder"):
        embeddings = bench.embedder.embed_rows(bench.batches(bench.evaluations[""]))
    with bench.watch.part("judging"):
        answers = bench.judgements.answers(embeddings)
    if bench.units is None:
        return {"": answers}
    return {name: subset(answers, units) for name, units in bench.units.items()}


def subset(answers: Answers, units: Tensor) -> Answers:
    """The answers of some pairs or queries, by their numbers."""
    return replace(answers, columns={name: values[units] for name, values in answers.columns.items()})


def scores_of(sets: Mapping[str, Answers]) -> dict[str, float]:
    """Every metric by name, ``spearman/NAME`` for another set than the first."""
    return {
        f"{metric}/{name}" if name else metric: score
        for name, answers in sets.items()
        for metric, score in answers.scores().items()
    }
