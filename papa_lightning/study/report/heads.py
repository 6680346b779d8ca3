"""Sections of the report with figures of heads, constants and the probe."""

import torch
from torch import Tensor

from papa_lightning.atlas import make_atlas
from papa_lightning.calibration import AttentionConstants
from papa_lightning.criteria import CRITERIA
from papa_lightning.errors import PapaError
from papa_lightning.figures.curves import level_curves
from papa_lightning.figures.heads import head_maps
from papa_lightning.ranking import HeadRanking
from papa_lightning.study.report.answer import Proposal, proposals
from papa_lightning.study.report.atlas import overview
from papa_lightning.study.report.data import StudyData
from papa_lightning.study.report.findings import seeds_in_words
from papa_lightning.study.report.sections import SECTIONS, Block, Cell, Drawings, Figures, Folded, Map, Text, noted

#: Largest map of heads.
_MOST_CELLS = 10**6


@SECTIONS.section("heads", "Which heads become constant first", place=60, needs=["rankings"])
def ranking_section(data: StudyData, figures: Figures) -> list[Block]:
    """The order of the heads with its cut, and the scores by the other criteria that measure something."""
    blocks: list[Block] = [_cut_map(one) for one in proposals(data) if one.ranking is not None]
    cut = {one.ranking for one in proposals(data)}
    maps: dict[tuple[str, str], dict[str, Tensor]] = {}
    for file in data.rankings:
        name = file.name.partition(":")[0]
        if file.path not in cut and (name not in CRITERIA or CRITERIA[name].measures):
            ranking = HeadRanking.load(file.path)
            if ranking.heads:
                maps.setdefault((file.encoder, file.task), {})[file.name] = head_scores(ranking)
    drawn = []
    for (encoder, task), scores in maps.items():
        caption = (
            f"{encoder}, {task}: scores of the heads by the other criteria, from the training examples. The heads with "
            "the lowest scores become constant first. Each panel has its own scale."
        )
        drawn.append(figures.add(head_maps(scores, f"{encoder} · {task}"), ["heads", encoder, task], caption))
    return [*blocks, *([Drawings(drawn, wide=True)] if drawn else [])]


def _cut_map(proposal: Proposal) -> Map:
    """The place of every head in a ranking, with the heads before the cut marked."""
    assert proposal.ranking is not None
    ranking = HeadRanking.load(proposal.ranking)
    scores, places = head_scores(ranking), {head: place for place, head in enumerate(ranking.heads)}
    chosen, total = set(ranking.heads[: proposal.heads]), max(len(ranking.heads) - 1, 1)

    def cell(layer: int, head: int) -> Cell:
        place = places.get((layer, head))
        if place is None:
            return Cell("", f"head {layer}.{head}: not ranked", 0.0, False)
        state = "constant" if (layer, head) in chosen else "dynamic"
        title = f"head {layer}.{head}: {ranking.criterion} {float(scores[layer, head]):.4g}, {state}"
        return Cell(str(place + 1), title, 1.0 - place / total, (layer, head) in chosen)

    cells = [[cell(layer, head) for head in range(scores.shape[1])] for layer in range(scores.shape[0])]
    caption = (
        f"{proposal.encoder}, {proposal.task}: place of each head in the order by {ranking.criterion}; 1 becomes "
        f"constant first. The {proposal.heads} framed ones are before the cut."
    )
    return Map("layer", "head", cells, caption)


def head_scores(ranking: HeadRanking) -> Tensor:
    """The scores (L, H) of a ranking, NaN for heads that it lacks; without scores, the places in the order."""
    layers, heads = (1 + max(head[part] for head in ranking.heads) for part in (0, 1))
    if layers * heads > _MOST_CELLS:
        raise PapaError(f"a ranking has heads up to {(layers - 1, heads - 1)}, more than any encoder: make it anew.")
    scores = torch.full((layers, heads), torch.nan, dtype=torch.float64)
    for (layer, head), score in zip(ranking.heads, ranking.scores or range(len(ranking.heads)), strict=True):
        scores[layer, head] = score
    return scores


@SECTIONS.section("atlas", "What each head does", place=70, needs=["constants"])
def atlas_section(data: StudyData, figures: Figures) -> list[Block]:
    """The atlas of the heads of each encoder, from its averages on the first task."""
    blocks: list[Block] = []
    for encoder in dict.fromkeys(file.encoder for file in data.constants):
        file = next(one for one in data.constants if one.encoder == encoder)
        atlas = make_atlas(AttentionConstants.load(file.path))
        title = f"{encoder}, {file.task}: all heads" if len(data.constants) > 1 else "All heads"
        counts, *rest = overview(atlas)
        blocks += [counts, Folded(title, rest)]
    note = "papa atlas with the encoder adds entropy and output norms, and a page for each layer."
    return [*blocks, Text(note, "soft")] if blocks else []


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
