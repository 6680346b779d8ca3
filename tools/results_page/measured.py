"""Blocks on the measurement itself: settings, data, cost, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import pandas as pd

from papa_lightning.study.settings import RECOVERED
from papa_lightning.text import counted
from results_page.data import Part, Results
from results_page.words import grouped, listed, tables

_PARTS = {"pretrained encoders on tasks": "tasks", "graded encoders": "graded", "embedding models": "embeddings"}


def state(results: Results) -> str:
    """What the page rests on, in one line, and what is not measured yet, in another."""
    part, missing = results.tasks, _missing(results)
    lines = []
    if part:
        sizes = [counted(len(part.encoders), "encoder"), counted(len(part.tasks), "task")]
        seeds = counted(int(part.own["n"].max()), "seed")
        if part.own["n"].min() < part.own["n"].max():
            seeds = f"{part.own['n'].min()} to {seeds}"
        lines.append(
            f"{', '.join([*sizes, seeds])}; in brackets 95 % intervals, of tasks over examples and seeds; all "
            "changes are paired over both. Means are over the tasks that beat chance."
        )
    return "\n\n".join([*lines, *[f"Not measured yet: {'; '.join(missing)}."] * bool(missing)])


def _missing(results: Results) -> list[str]:
    """What the settings of the studies ask for and the file does not have, and parts without any study."""
    found = [name for name, part in _PARTS.items() if not getattr(results, part)]
    for part in _parts(results).values():
        left = dict[str, dict[str, list[str]]]()
        for settings in (run for study in part.studies.values() for run in study["runs"]):
            for encoder, task in product(settings["encoders"], settings["tasks"]):
                if said := _left(part, settings, encoder, task):
                    left.setdefault(said, {}).setdefault(encoder, []).append(task)
        found += [
            f"{said} for {listed(f'{encoder} on {listed(dict.fromkeys(tasks))}' for encoder, tasks in pairs.items())}"
            for said, pairs in left.items()
        ]
    return found


def _left(part: Part, settings: Mapping[str, Any], encoder: str, task: str) -> str:
    """What is missing of an encoder on a task."""
    if part.row(encoder, task, 0.0) is None:
        return "everything"
    inner = [share for share in settings["shares"] if 0 < share < 1]
    criteria = list(dict.fromkeys("random" if one.startswith("random") else one for one in settings["criteria"]))
    known = {one: [share for share in inner if part.row(encoder, task, share, one) is not None] for one in criteria}
    parts = [f"`{one}`" for one, shares in known.items() if inner and not shares]
    begun = [share for shares in known.values() if shares for share in inner if share not in shares]
    begun += [1.0] * (1 in settings["shares"] and part.row(encoder, task, 1.0) is None)
    if begun:
        shares = [f"{100 * share:g} %" for share in sorted(set(begun))]
        parts.append(f"share{'s' * (len(shares) > 1)} {listed(shares)}")
    if orders := _orders_left(part, encoder, task, settings):
        parts.append(counted(orders, "random order"))
    kinds = [kind for kind in settings["constants"] if kind not in ("average", f"other:{task}")]
    lacking = [
        kind
        for kind in kinds
        if any(part.row(encoder, task, share, part.first, constants=kind) is None for share in _at(settings, kind))
    ]
    parts += ["other constants"] if len(lacking) == len(kinds) > 1 else [f"`{kind}`" for kind in lacking]
    return listed(parts) if parts else ""


def _orders_left(part: Part, encoder: str, task: str, settings: Mapping[str, Any]) -> int:
    """How many random orders the settings have more than the measured ones; 0 when none was measured at all."""
    own = _random(part)
    found = own.loc[(own["encoder"] == encoder) & (own["task"] == task), "rankings"]
    planned = sum(one.startswith("random") for one in settings["criteria"])
    return max(0, planned - int(found.min())) if len(found) else 0


def _random(part: Part) -> pd.DataFrame:
    """The rows of random orders with averages as constants."""
    return part.own[(part.own["criterion"] == "random") & (part.own["constants"] == "average")]


def _at(settings: Mapping[str, Any], kind: str) -> list[float]:
    """The shares above 0 at which a kind of constants is measured."""
    shares = settings["shares"] if kind == RECOVERED else settings["control_shares"]
    return [share for share in shares if share > 0]


def conditions(results: Results) -> str:
    """How probes were trained, on what data, on which machine, with which versions and weights."""
    blocks = [f"**{name[0].upper()}{name[1:]}.** {_settings(part)}" for name, part in _parts(results).items()]
    blocks.append(_data(results))
    blocks.append(_weights(results))
    return "\n\n".join(blocks)


def _parts(results: Results) -> dict[str, Part]:
    return {name: part for name, place in _PARTS.items() if (part := getattr(results, place))}


def _settings(part: Part) -> str:
    """Sentences about each way of measuring, once for studies that share it, and the number of random orders."""
    said = dict.fromkeys(_of_study(study) for study in part.studies.values())
    counts = _random(part).groupby(["encoder", "task"], sort=False)["rankings"].max().astype(int)
    pairs = {f"{encoder} on {task}": f"{number}" for (encoder, task), number in counts.items()}
    if pairs:
        numbers = list(dict.fromkeys(pairs.values()))
        told = f"{numbers[0]}" if len(numbers) == 1 else grouped(pairs, sorted(numbers, key=int))
        said[f"Random orders: {told}."] = None
    return " ".join(said)


def _of_study(study: Mapping[str, Any]) -> str:
    about, settings = study["about"], study["runs"][0]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    machine = (
        f"{about['dtype']} on {about['device']} ({about['cpu']}, {counted(about['cores'], 'core')}, "
        f"{counted(about['threads'], 'thread')}); {versions}."
    )
    probe = about.get("probe")
    if not probe:
        return f"No probe, no seeds; intervals over pairs or queries; {machine}"
    seeds = settings["seeds"]
    return (
        f"Frozen encoder; {probe['pooling']} probe (sentences) or token probe, AdamW, {probe['max_epochs']} epochs, "
        f"batch {probe['batch_size']}, learning rate {probe['learning_rate']:g}{_own(settings)}, {probe['schedule']} "
        f"schedule with {100 * probe['warmup_share']:g} % warm-up, weight decay {probe['weight_decay']:g}, dropout "
        f"{probe['dropout']:g}; {counted(len(seeds), 'seed')} ({seeds[0]} to {seeds[-1]}); {machine}"
    )


def _own(settings: Mapping[str, Any]) -> str:
    """What tasks with a recipe of their own have instead."""
    own = {
        name: listed(f"{key.replace('_', ' ')} {value:g}" for key, value in task["probe"].items())
        for name, task in settings["tasks"].items()
        if task.get("probe")
    }
    return f" ({grouped(own, dict.fromkeys(own.values()))})" if own else ""


def _data(results: Results) -> str:
    """Examples, length, metric and chance of each task."""
    rows = dict[str, tuple[str, ...]]()
    for part in _parts(results).values():
        for (encoder, task), fact in part.facts().items():
            row = part.row(encoder, task, 0.0)
            if row is not None:
                unit = "" if row["unit"] == "examples" else f" {row['unit']}"
                sizes = f"{fact['sequences']:,}{' texts' if unit else ''}", f"{row['examples']:,}{unit}"
                level = f"{row['chance']:.3f}" if math.isfinite(row["chance"]) else ""
                line = (fact["data"], *sizes, f"{fact['max_length']}", row["metric"].replace("_", " "), level)
                rows.setdefault(fact["data"], line)
    columns = ("data", "training", "validation", "T", "metric", "chance")
    return tables(columns, list(rows.values()))


def _weights(results: Results) -> str:
    """SHA-256 of the weights of each encoder, shortened."""
    models = {one["encoder"]: one["model"] for study in results.studies.values() for one in study["pairs"]}
    told = ", ".join(f"{name} `{models[name]['weights'][:12]}`" for name in sorted(models))
    return f"SHA-256 of the weights, whole in the file: {told}." if told else ""


def cost(results: Results) -> str:
    """Numbers of results and the time of their probes, by part and encoder."""
    rows = []
    for name, part in _parts(results).items():
        for encoder in part.encoders:
            own = part.own[part.own["encoder"] == encoder]
            number, minutes = int((own["n"] * own["rankings"]).sum()), own["seconds"].sum() / 60
            rows.append((name, encoder, f"{own['task'].nunique()}", f"{number:,}", f"{minutes:,.1f}"))
    return tables(("part", "encoder", "tasks", "results", "minutes"), rows) if rows else ""
