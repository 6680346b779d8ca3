"""Every precision of the Trainer, and compiled modules."""

from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from projects import LENGTH, Classifier, Sentences, loaders, trainer
from torch import Tensor
from torch.utils.data import DataLoader

from papa_lightning import AttentionConstants, ConstantAttention, HeadGates, calibrate
from papa_lightning.calibration import AttentionAverages
from papa_lightning.encoders import gate_logits, is_calibrated, swapped_layers

#: Precision -> dtype of the parameters, that of the constants in the file, and how far these may be from the exact.
PRECISIONS: dict[str, Any] = {
    "32-true": (torch.float32, torch.float32, 1e-6),
    "64-true": (torch.float64, torch.float64, 1e-12),
    "bf16-mixed": (torch.float32, torch.float32, 5e-3),
    "16-mixed": (torch.float32, torch.float32, 5e-3),  # on a CPU Lightning takes bfloat16 instead, and says so
    "bf16-true": (torch.bfloat16, torch.float32, 5e-3),
    "16-true": (torch.float16, torch.float32, 1e-3),
}


class Descending(Classifier):
    """AdamW ends in NaN under pure float16 by itself: its eps of 1e-8 is 0 there."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([one for one in self.parameters() if one.requires_grad], lr=1e-2)


class Quiet(Classifier):
    """Logs nothing: torch.compile of a LightningModule stumbles over Lightning's own self.log (2.6, torch 2.13)."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch), batch["label"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self(batch)


def compile_all(module: Classifier) -> Any:
    return torch.compile(module, backend="eager")


def compile_encoder(module: Classifier) -> Any:
    module.bert.compile(backend="eager")
    return module


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sums_are_float64_and_constants_never_half(precision: str) -> None:
    parameters, constants, tolerance = PRECISIONS[precision]
    seen: list[AttentionConstants] = []
    sums: list[AttentionAverages] = []

    class Keeping(ConstantAttention):
        def calibrate(self, *arguments: Any) -> AttentionConstants:
            seen.append(super().calibrate(*arguments))
            return seen[-1]

    def compute(averages: AttentionAverages, dtype: torch.dtype) -> torch.Tensor:
        sums.append(averages)
        return original(averages, dtype)

    original, module = AttentionAverages.compute, Descending()
    with mock.patch.object(AttentionAverages, "compute", compute):
        trainer(Keeping(max_length=LENGTH, heads=[(0, 1)]), precision=precision).fit(module, **loaders())
    assert [tensor.dtype for tensor in (sums[0].sums, sums[0].pair_counts, sums[0].squares)] == [torch.float64] * 3
    assert seen[0].values.dtype == constants
    assert module.bert.dtype == parameters
    assert swapped_layers(module.bert)[0].constants.dtype == parameters
    expected = calibrate(Classifier().double().bert, DataLoader(Sentences(8), batch_size=4), max_length=LENGTH)
    torch.testing.assert_close(seen[0].values.double(), expected.values, atol=tolerance, rtol=0)
    assert all(bool(one.isfinite().all()) for one in module.parameters())


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_gates_learn_in_every_precision(precision: str) -> None:
    module, callback = Classifier(), HeadGates(0.05, max_length=LENGTH)
    trainer(callback, precision=precision).fit(module, **loaders())
    assert callback.ranking is not None
    assert all((gates != 0).all() for gates in gate_logits(module.bert))


@pytest.mark.no_cover  # which doubles the time of torch's compiler; it runs no line of ours
@pytest.mark.parametrize(("compiled", "kind"), [(compile_all, Quiet), (compile_encoder, Classifier)])
def test_a_compiled_module(compiled: Any, kind: type[Classifier]) -> None:
    """The graphs of dynamic heads, from the sanity check, do not serve any more once the heads are constant."""
    plain, module = (kind(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0) for _ in range(2))
    data = [DataLoader(Sentences(8), batch_size=4), DataLoader(Sentences(4, seed=1), batch_size=4)]
    heads = [(0, 0), (0, 1), (1, 1)]
    trainer(ConstantAttention(max_length=LENGTH, heads=heads), max_epochs=2).fit(plain, *data)
    try:
        trainer(ConstantAttention(max_length=LENGTH, heads=heads), max_epochs=2).fit(compiled(module), *data)
    finally:
        torch._dynamo.reset()
    assert is_calibrated(module.bert)
    for (name, one), other in zip(module.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name, atol=1e-5, rtol=1e-4)


def test_a_module_that_is_compiled_after_calibration() -> None:
    module = Classifier().eval()
    trainer(ConstantAttention(max_length=LENGTH)).fit(module, **loaders())
    batch = next(iter(DataLoader(Sentences(4), batch_size=4)))
    module.eval()
    try:
        with torch.no_grad():
            torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(batch), module(batch))
    finally:
        torch._dynamo.reset()
