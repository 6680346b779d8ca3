"""Study folders made of invented numbers, in any shape."""

import json
import random
from dataclasses import dataclass, replace

import torch

from papa_lightning import AttentionConstants, HeadRanking
from papa_lightning.study.results import CellResult, results_table, save_table

COSTS = {"gate": 0.03, "variance": 0.05, "random": 0.08}


@dataclass(frozen=True)
class Shape:
    """Dimensions of a synthetic study."""

    encoders: tuple = ("mini",)
    tasks: tuple = ("sst2",)
    criteria: tuple = ("gate", "random")
    shares: tuple = (0.0, 0.25, 0.5, 0.75, 1.0)
    seeds: tuple = (0, 1, 2)
    controls: tuple = ()
    baseline: float = 0.8
    metric: str = "accuracy"
    layers: int = 2
    heads: int = 4
    length: int = 16


def make_cells(shape):
    """Scores fall with the share, with a little noise of the seed."""
    noise = random.Random(0)
    cells = []
    for e, encoder in enumerate(shape.encoders):
        for t, task in enumerate(shape.tasks):
            kinds = [("average", criterion, shape.shares) for criterion in shape.criteria]
            kinds += [(kind, shape.criteria[0], (0.0, 0.5, 1.0)) for kind in shape.controls]
            level = shape.baseline * (1 + 0.02 * e - 0.03 * t)
            for seed in shape.seeds:
                start = level + noise.gauss(0, 0.004)
                last = {kind: start * (0.92 - 0.02 * e) + noise.gauss(0, 0.004) for kind, _, _ in kinds}
                for kind, criterion, shares in kinds:
                    for share in shares:
                        cost = COSTS.get(criterion, 0.04) * share**2 * (1.0 if kind == "average" else 1.5)
                        score = start * (1 - cost) + noise.gauss(0, 0.004)
                        score = {0.0: start, 1.0: last[kind]}.get(share, score)
                        cells.append(_cell(shape, (encoder, task), (criterion, share, kind), seed, score))
    return cells


def _cell(shape, pair, choice, seed, score):
    criterion, share, kind = choice
    total = shape.layers * shape.heads
    ranked, made = criterion if 0 < share < 1 else "", kind if share else ""
    key = "".join(character if character.isalnum() else "_" for character in f"{pair}{share}{ranked}{made}{seed}")
    return CellResult(
        encoder=pair[0],
        task=pair[1],
        criterion=criterion,
        share=share,
        constant_heads=round(share * total),
        total_heads=total,
        seed=seed,
        constants=kind,
        metric=shape.metric,
        scores={shape.metric: score, "loss": 1.2 - score},
        seconds=1.0,
        versions={"torch": "2.13"},
        hash=key,
        level_weights=[0.015 + 0.001 * level * (1 + share) + 1e-4 * seed for level in range(shape.layers + 1)],
    )


def make_table(**shape):
    return results_table(make_cells(Shape(**shape)))


def make_constants(layers=2, heads=4, length=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(layers, heads, length, length, generator=generator) ** 4
    values += 3 * torch.eye(length) * torch.rand(layers, heads, 1, 1, generator=generator)
    values /= values.sum(-1, keepdim=True)
    real = 500 * torch.exp(-torch.arange(length) / (0.4 * length))
    return AttentionConstants(values, torch.minimum(real[:, None], real[None, :]).round())


def make_ranking(layers=2, heads=4, criterion="gate", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return HeadRanking.from_scores(torch.randn(layers, heads, generator=generator).tolist(), criterion)


def write_study(folder, maps=True, weights=True, about=True, **shape):
    """Write the folder of a study; parts can be left out."""
    shape = Shape(**shape)
    cells = make_cells(shape)
    for cell in cells:
        (cell if weights else replace(cell, level_weights=None)).save(folder / "cells" / f"{cell.hash}.json")
    save_table(results_table(cells), folder)
    files = {"constants": [], "rankings": []}
    pairs = [(encoder, task) for encoder in shape.encoders for task in shape.tasks] if maps else []
    for number, (encoder, task) in enumerate(pairs):
        named = {"encoder": encoder, "task": task}
        path = f"constants/{number}.safetensors"
        make_constants(shape.layers, shape.heads, shape.length, number).save(folder / path)
        files["constants"].append({**named, "kind": "average", "path": path})
        for criterion in shape.criteria:
            path = f"rankings/{number}-{criterion.replace(':', '_')}.json"
            make_ranking(shape.layers, shape.heads, criterion, number).save(folder / path)
            files["rankings"].append({**named, "criterion": criterion, "path": path})
    content = {"format": "papa_lightning.study/1", "settings": {}, "files": files}
    content["about"] = describe(shape) if about else {}
    (folder / "study.json").write_text(json.dumps(content))
    return folder


def describe(shape):
    pairs = [
        {"encoder": encoder, "task": task, "train_examples": 2000, "validation_examples": {"validation": 500}}
        | {"max_length": shape.length, "layout": "aligned", "preset": "default", "metric": shape.metric}
        for encoder in shape.encoders
        for task in shape.tasks
    ]
    return {
        "versions": {"torch": "2.13", "papa_lightning": "0.1"},
        "device": "cpu (x86_64)",
        "threads": 1,
        "dtype": "float32",
        "probe": {"learning_rate": 2e-5, "max_epochs": 15},
        "seeds": list(shape.seeds),
        "pairs": pairs,
    }
