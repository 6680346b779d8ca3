"""Probes on a GPU: features that stay there, all seeds in one graph, the same numbers as each by itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from unit.study import feature_cases as cases

from papa_lightning.encoders import Packer
from papa_lightning.study import training
from papa_lightning.study.features import features
from papa_lightning.study.features.features import LiveFeatures, ResidentFeatures, store_features
from papa_lightning.study.training import FeatureSet, ProbeSettings, train_probes, train_sets

SEEDS = [2, 0, 1]
KINDS = ["layerwise", "mean", "class_token", "tokens"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return cases.save_encoder(str(tmp_path_factory.mktemp("gpu_encoder")))


def settings(**changes: Any) -> ProbeSettings:
    return ProbeSettings(**({"max_epochs": 3, "learning_rate": 3e-4, "batch_size": 4} | changes))


def resident(task: Any, count: int, kind: str, layout: str = "segment") -> ResidentFeatures:
    found = features.resident_features(task, cases.make_rows(count, kind, layout, seed=count))
    assert found is not None
    assert found.table.device.type == "cuda"
    return found


@pytest.mark.parametrize(
    "recipe",
    [
        {"dropout": 0.0},
        {"dropout": 0.3, "schedule": "linear", "warmup_share": 0.25},
        {"dropout": 0.0, "best_epoch": True},
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_stacked_is_each_by_itself(encoder: str, device: torch.device, kind: str, recipe: dict[str, Any]) -> None:
    task = cases.make_task(encoder, kind).to(device)
    train, evaluation = resident(task, 26, kind), resident(task, 9, kind)
    each = training._train_each(task, train, {"": evaluation}, SEEDS, settings(**recipe), list[int]().append)
    together = train_probes(task, train, {"": evaluation}, SEEDS, settings(**recipe))
    again = train_probes(task, train, {"": evaluation}, SEEDS, settings(**recipe))
    for (probe, evaluated), one, other in zip(each, together, again, strict=True):
        torch.testing.assert_close(dict(probe.state_dict()), dict(one.probe.state_dict()), atol=1e-5, rtol=0)
        torch.testing.assert_close(evaluated.scores, one.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(dict(one.probe.state_dict()), dict(other.probe.state_dict()), atol=0, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_several_choices_of_heads_are_each_by_itself(encoder: str, device: torch.device, kind: str) -> None:
    tasks = [cases.make_task(encoder, kind, heads).to(device) for heads in (None, [(0, 0), (1, 2)])]
    sets = [FeatureSet(resident(task, 26, kind), {}) for task in tasks]
    for one, together in zip(sets, train_sets(tasks[0], sets, SEEDS, settings()), strict=True):
        for each, other in zip(train_probes(tasks[0], one.train, {}, SEEDS, settings()), together, strict=True):
            torch.testing.assert_close(dict(each.probe.state_dict()), dict(other.probe.state_dict()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_cpu(encoder: str, device: torch.device, tmp_path: Path, kind: str) -> None:
    rows = cases.make_rows(26, kind, "segment", seed=26)
    on_cpu = store_features(cases.make_task(encoder, kind), rows, tmp_path / "f", budget_bytes=10**9)
    task = cases.make_task(encoder, kind).to(device)
    numbers = torch.tensor([4, 0, 25, 7])
    expected = on_cpu.batch(numbers, torch.device("cpu"))
    for found in (resident(task, 26, kind), on_cpu.near(device), LiveFeatures(task, rows)):
        batch = found.batch(numbers, device)
        assert batch.vectors.device.type == "cuda"
        torch.testing.assert_close(
            batch.vectors[batch.rows].cpu(), expected.vectors[expected.rows], atol=1e-4, rtol=1e-4
        )
        assert torch.equal(batch.labels.cpu(), expected.labels)


def test_packed_batches_wait_for_nothing(encoder: str, device: torch.device) -> None:
    task = cases.make_task(encoder, "layerwise", [(0, 1), (1, 2)]).to(device)
    batch = cases.as_batch(cases.make_rows(12, "layerwise", "segment"))
    packed = Packer.of(task.encoder).pack({name: batch[name] for name in ("input_ids", "attention_mask")})
    assert packed is not None
    moved = packed.to(device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for group in moved.groups(20):
            with moved.batch(group).prepared(device) as arguments:
                assert all(held.device.type == "cuda" for held in arguments.values() if isinstance(held, torch.Tensor))
    finally:
        torch.cuda.set_sync_debug_mode("default")
