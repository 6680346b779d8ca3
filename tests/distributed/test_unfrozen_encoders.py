"""Somebody unfreezes all of a swapped encoder before DDP wraps it: nothing idle is waited for, and constants stay."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from distributed.processes import in_two_processes
from projects import LENGTH, Classifier, Sentences, trainer
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import MPNetConfig, MPNetModel

from papa_lightning import ConstantAttention, calibrate, restore_attention, swap_attention
from papa_lightning.encoders import leave_out_of_ddp, swapped_layers

pytestmark = pytest.mark.distributed


class Unfreezing(Classifier):
    """Unfreezes its encoder in a hook of its own, and trains all that it has."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        self.hook = hook

    def setup(self, stage: str) -> None:
        self._thaw("setup")

    def on_train_start(self) -> None:
        self._thaw("on_train_start")

    def on_train_epoch_start(self) -> None:
        self._thaw("on_train_epoch_start")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self._thaw("configure_optimizers")
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def _thaw(self, hook: str) -> None:
        if hook == self.hook:
            for parameter in self.parameters():
                parameter.requires_grad = True


class OtherCallback(L.Callback):
    """Unfreezes everything in its setup."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        pl_module.requires_grad_(True)


HOOKS = ["setup", "configure_optimizers", "on_train_start", "on_train_epoch_start"]


def fit(module: Classifier, *callbacks: Any) -> dict[str, Any]:
    rows = Sentences(8)
    expected = calibrate(module.bert, [batch(rows)], LENGTH).values
    idle = module.bert.encoder.layer[0].attention.self.query.weight.detach().clone()
    run = trainer(*callbacks, devices=2, strategy="ddp", max_epochs=2)
    run.fit(module, DataLoader(rows, batch_size=2), DataLoader(Sentences(4, seed=1), batch_size=2))
    found = torch.stack([layer.constants.detach() for layer in swapped_layers(module.bert)])
    query = restore_attention(module.bert).encoder.layer[0].attention.self.query.weight
    return {"constants": float((found - expected).abs().max()), "idle": bool(torch.equal(query, idle))}


def batch(rows: Sentences) -> dict[str, torch.Tensor]:
    return next(iter(DataLoader(rows, batch_size=len(rows))))


def by_hand() -> dict[str, Any]:
    """DistributedDataParallel without Lightning, around the encoder and around a module that holds it."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = MPNetModel(MPNetConfig(**sizes, intermediate_size=8, max_position_embeddings=24), add_pooling_layer=False)
    inputs = batch(Sentences(4))
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    swap_attention(encoder, "constant", constants=calibrate(encoder, [inputs], LENGTH))
    before = swapped_layers(encoder)[0].constants.clone()
    whole = torch.nn.ModuleDict({"encoder": encoder})
    leave_out_of_ddp(whole)
    whole.forward = lambda **given: whole["encoder"](**given).last_hidden_state
    for model in (encoder, whole):
        model.requires_grad_(True)
        wrapped = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        for _ in range(3):
            output = wrapped(**inputs)
            (output if model is whole else output.last_hidden_state).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return {"constants": float((swapped_layers(encoder)[0].constants - before).abs().max()), "idle": True}


def run(folder: Path) -> dict[str, Any]:
    results = {hook: fit(Unfreezing(hook), ConstantAttention(max_length=LENGTH)) for hook in HOOKS}
    for name, order in (("before", 1), ("behind", -1)):
        others = [OtherCallback(), ConstantAttention(max_length=LENGTH)][::order]
        results[name] = fit(Unfreezing(""), *others)
    results["by hand"] = by_hand()
    return results


def test_whoever_unfreezes_all(tmp_path: Path) -> None:
    for results in in_two_processes(run, tmp_path):
        assert {name: found["constants"] < 1e-6 for name, found in results.items()} == dict.fromkeys(results, True)
        assert all(found["idle"] for found in results.values())
