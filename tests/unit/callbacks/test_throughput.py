"""Speed, memory and size of a fit."""

import lightning as L
import pytest
import torch

from papa_lightning import PapaError
from papa_lightning.callbacks import Throughput


class Allocating(L.LightningModule):
    """A tiny model that needs 4 MB in each training step but the first, which needs 40."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.failing = False

    def training_step(self, batch, batch_idx):
        large = torch.ones(10**7 if batch_idx == 0 else 10**6)
        if self.failing and batch_idx == 1:
            raise RuntimeError("broken")
        return self.layer(batch).mean() + 0 * large[0]

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def fit(callback, model, **settings):
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], **quiet, **settings)
    trainer.fit(model, torch.utils.data.DataLoader(torch.ones(12, 2), batch_size=2))


def test_facts_of_a_fit():
    callback = Throughput()
    fit(callback, Allocating())
    assert callback.facts["parameters"] == 3
    assert callback.facts["steps_per_second"] > 0
    assert 4e6 <= callback.facts["step_memory_bytes"] < 4.1e6
    assert callback.facts["peak_memory_bytes"] > 4e6
    fit(callback, Allocating(), limit_train_batches=1)
    assert callback.facts.keys() == {"parameters", "peak_memory_bytes"}, "one step is too few for the others"


def test_gradients_count():
    """A step of 4 MB whose gradients have 8 MB, made while the 4 MB are there."""
    callback, model = Throughput(), Allocating()
    model.table = torch.nn.Parameter(torch.zeros(2 * 10**6))
    step = model.training_step
    model.training_step = lambda batch, batch_idx: step(batch, batch_idx) + model.table.sum()
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.1)
    fit(callback, model)
    assert 8e6 <= callback.facts["step_memory_bytes"] < 1.7e7


def test_memory_with_accumulated_gradients():
    callback = Throughput()
    fit(callback, Allocating(), accumulate_grad_batches=2)
    assert 4e6 <= callback.facts["step_memory_bytes"] < 4.1e6


def test_no_profiler_is_left_or_disturbed():
    callback, model = Throughput(), Allocating()
    model.failing = True
    with pytest.raises(RuntimeError, match="broken"):
        fit(callback, model)
    assert not torch.autograd._profiler_enabled()
    with torch.autograd.profiler.profile():
        fit(callback, Allocating())
    assert "step_memory_bytes" not in callback.facts
    assert callback.facts["steps_per_second"] > 0


def test_bad_warmup():
    with pytest.raises(PapaError, match="warmup_steps is 1, but must be at least 2"):
        Throughput(warmup_steps=1)
