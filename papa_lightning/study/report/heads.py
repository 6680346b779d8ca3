"""Sections of the report with figures of heads, constants and the probe."""

import torch
from torch import Tensor

from papa_lightning.calibration import AttentionConstants, describe_filling
from papa_lightning.criteria import CRITERIA
from papa_lightning.errors import PapaError
from papa_lightning.figures.curves import level_curves
from papa_lightning.figures.heads import MOST_HEADS, constants_grid, coverage_histograms, head_maps, shown_layers
from papa_lightning.ranking import HeadRanking
from papa_lightning.study.report.data import StudyData
from papa_lightning.study.report.findings import seeds_in_words
from papa_lightning.study.report.sections import SECTIONS, Block, Drawings, Figures, noted

#: Largest map of heads.
_MOST_CELLS = 10**6


@SECTIONS.section("heads", "Which heads become constant first", place=60, needs=["rankings"])
def ranking_section(data: StudyData, figures: Figures) -> list[Block]:
    """Scores of the heads by criteria that measure something: maps of the others show how they are defined."""
    maps: dict[tuple[str, str], dict[str, Tensor]] = {}
    for file in data.rankings:
        name = file.name.partition(":")[0]
        if name not in CRITERIA or CRITERIA[name].measures:
            ranking = HeadRanking.load(file.path)
            if ranking.heads:
                maps.setdefault((file.encoder, file.task), {})[file.name] = head_scores(ranking)
    drawn = []
    for (encoder, task), scores in maps.items():
        caption = (
            f"{encoder}, {task}: scores of the heads, from the training examples. The heads with the lowest scores "
            "become constant first. Each panel has its own scale."
        )
        drawn.append(figures.add(head_maps(scores, f"{encoder} · {task}"), ["heads", encoder, task], caption))
    return [Drawings(drawn, wide=True)] if drawn else []


def head_scores(ranking: HeadRanking) -> Tensor:
    """The scores (L, H) of a ranking, NaN for heads that it lacks; without scores, the places in the order."""
    layers, heads = (1 + max(head[part] for head in ranking.heads) for part in (0, 1))
    if layers * heads > _MOST_CELLS:
        raise PapaError(f"a ranking has heads up to {(layers - 1, heads - 1)}, more than any encoder: make it anew.")
    scores = torch.full((layers, heads), torch.nan, dtype=torch.float64)
    for (layer, head), score in zip(ranking.heads, ranking.scores or range(len(ranking.heads)), strict=True):
        scores[layer, head] = score
    return scores


@SECTIONS.section("constants", "Averaged attention", place=70, needs=["constants"])
def constants_section(data: StudyData, figures: Figures) -> list[Block]:
    """The averaged attention matrices, and the number of sequences behind their entries."""
    grids, histograms = [], []
    for file in data.constants:
        if file.name != "average":
            continue
        constants, title = AttentionConstants.load(file.path), f"{file.encoder} · {file.task}"
        names = [file.encoder, file.task]
        about = f"{file.encoder}, {file.task}: attention averaged over the training examples"
        grid = constants_grid(constants.values, title)
        grids.append(figures.add(grid, ["constants", *names], _grid(about, constants)))
        caption = (
            f"{about}. Left: number of the T x T entries by the number of sequences that they average. Right: number "
            "of sequences in which a position holds a real token. Entries with few sequences are noisy, those with "
            "none are 0. Heads use entries that lean on a profile, the more the fewer their sequences"
        )
        line = describe_filling(constants.filled())
        caption += f"; {line}." if line else "."
        histogram = coverage_histograms(constants.pair_counts, title)
        histograms.append(figures.add(histogram, ["coverage", *names], caption))
    return [Drawings(grids, wide=True), Drawings(histograms)] if grids else []


@SECTIONS.section("levels", "What the probe reads", place=80)
def level_section(data: StudyData, figures: Figures) -> list[Block]:
    """The probe's weights by level, with all heads dynamic and with all heads constant."""
    drawn = []
    for encoder, task in data.pairs:
        weights = data.level_weights(encoder, task)
        if len(weights):
            baseline = data.baseline(encoder, task)
            seeds = "" if baseline is None else f" Means over {seeds_in_words(int(baseline['n']))} of the probe"
            bars = "; error bars are 95 % intervals over them." if weights["low"].notna().any() else "."
            caption = (
                f"{encoder}, {task}: mean absolute weight that the probe gives the positions of each level of hidden "
                f"states, all heads dynamic and all constant.{seeds}{bars if seeds else ''}"
            )
            figure = level_curves(weights, f"{encoder} · {task}")
            drawn.append(figures.add(figure, ["levels", encoder, task], caption))
    note = "All weights begin at 1/T, so small differences say that the probe has hardly moved them."
    return noted(note, drawn)


def _grid(about: str, constants: AttentionConstants) -> str:
    layers, heads = constants.num_layers, constants.num_heads
    shown = shown_layers(layers)
    parts = [f"{about}, one matrix for each head, T = {constants.max_length}."]
    if len(shown) < layers:
        parts.append(f"{len(shown)} of the {layers} layers are shown, at even distances.")
    if heads > MOST_HEADS:
        parts.append(f"The first {MOST_HEADS} of the {heads} heads are shown.")
    return " ".join(parts)
