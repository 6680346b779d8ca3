"""Attention-free and shared layers under DDP: no dead parameters, and the same layers in both processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.processes import in_two_processes
from projects import LENGTH, Classifier, loaders, trainer

from papa_lightning import SwappedAttention
from papa_lightning.encoders import swapped_layers

pytestmark = pytest.mark.distributed
KINDS: dict[str, Any] = {
    "from constants": (["aft_local", "shared"], {"window": 4, "init": "from_constants", "matrix": "constant"}),
    "others": (["aft_conv", "additive"], {"window": 3}),
}


def run(folder: Path) -> dict[str, Any]:
    """DDP complains itself, at the second step, about a parameter that no loss reached at the first."""
    results: dict[str, Any] = {}
    for name, (kind, options) in KINDS.items():
        module = Classifier()
        callback = SwappedAttention(kind, options, learning_rate=0.05, max_length=LENGTH)
        trainer(callback, devices=2, strategy="ddp", max_epochs=2).fit(module, **loaders(batch_size=2))
        results[name] = [one.detach() for layer in swapped_layers(module.bert) for one in layer.parameters()]
    return results


def test_two_processes(tmp_path: Path) -> None:
    first, second = in_two_processes(run, tmp_path)
    for name in KINDS:
        assert len(first[name]) == {"from constants": 4, "others": 6 + 1}[name]  # no constant matrix
        assert all(torch.equal(*pair) for pair in zip(first[name], second[name], strict=True))
