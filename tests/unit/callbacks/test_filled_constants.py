"""Which runs fill constants where calibration saw nothing: by their presets, or as fill_unseen says."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from projects import LENGTH, Classifier, Sentences, loaders, trainer
from torch.utils.data import DataLoader

from papa_lightning import AttentionConstants, ConstantAttention, HeadGates, calibrate
from papa_lightning.attention import ZeroMassWarning
from papa_lightning.calibration import control_constants
from papa_lightning.callbacks import CalibrationRun, SwappedAttention
from papa_lightning.criteria import RankingRun, rank_heads
from papa_lightning.encoders import swapped_layers

#: Two positions more than any sentence of the train data has.
LONGER = LENGTH + 2


class Own(Classifier):
    def __init__(self, preset: str | None) -> None:
        super().__init__()
        self.save_hyperparameters()


class Data(L.LightningDataModule):
    def __init__(self, preset: str) -> None:
        super().__init__()
        self.preset = preset

    def train_dataloader(self) -> Any:
        return loaders()["train_dataloaders"]


def average_of(module: Classifier) -> AttentionConstants:
    return calibrate(module.bert, DataLoader(Sentences(8), batch_size=4), max_length=LONGER)


def fit(module: Classifier, data: str | None, *callbacks: L.Callback, **arguments: Any) -> L.Trainer:
    run = trainer(*callbacks, limit_val_batches=0, num_sanity_val_steps=0, **arguments)
    given: Any = {"train_dataloaders": loaders()["train_dataloaders"]} if data is None else {"datamodule": Data(data)}
    run.fit(module, **given)
    return run


def assert_constants(module: Classifier, expected: AttentionConstants) -> None:
    for layer, values in zip(swapped_layers(module.bert), expected.values, strict=True):
        torch.testing.assert_close(layer.constants.detach(), values, atol=1e-6, rtol=0)


RULE = pytest.mark.parametrize(
    ("module", "data", "fill_unseen", "filled"),
    [
        ("default", None, None, True),
        (None, "default", None, True),
        ("default", "default", None, True),
        ("reference", None, None, False),
        ("default", "reference", None, False),
        ("reference", "default", None, False),
        (None, None, None, False),
        (None, None, True, True),
        ("reference", None, True, True),
        ("default", "default", False, False),
    ],
)


@RULE
def test_a_calibration_is_filled_by_preset(module: Any, data: Any, fill_unseen: Any, filled: bool) -> None:
    own = Own(module) if module else Classifier()
    average = average_of(own)
    fit(own, data, ConstantAttention(max_length=LONGER, fill_unseen=fill_unseen))
    assert (average.values[..., LENGTH:] == 0).all()
    assert_constants(own, average.filled() if filled else average)


@RULE
@pytest.mark.parametrize("kind", [ConstantAttention, HeadGates, SwappedAttention])
def test_a_file_is_filled_by_preset(
    kind: Any, module: Any, data: Any, fill_unseen: Any, filled: bool, tmp_path: Path
) -> None:
    own = Own(module) if module else Classifier()
    average = average_of(own)
    path = str(average.save(tmp_path / "constants.safetensors"))
    given = {"kind": "shared"} if kind is SwappedAttention else {}
    fit(own, data, kind(**given, constants=path, fill_unseen=fill_unseen), max_epochs=0)
    expected = average.filled() if filled else average
    if kind is SwappedAttention:
        mean = expected.values.mean(dim=1, keepdim=True)
        expected = AttentionConstants(mean, average.pair_counts)
    assert_constants(own, expected)


def test_the_file_has_the_average_and_the_checkpoint_what_was_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    own, callback = Own("default"), ConstantAttention(max_length=LONGER)
    average = average_of(own)
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    logged = {"logger": CSVLogger(tmp_path), "enable_checkpointing": True, "default_root_dir": tmp_path}
    fit(own, None, callback, checkpoint, **logged)
    written = AttentionConstants.load(callback.constants_path or "")
    torch.testing.assert_close(written.values, average.values, atol=1e-6, rtol=0)
    assert "filled" not in written.metadata
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    (kept,) = [value for name, value in state.items() if "layer.0" in name and name.endswith("papa.constants")]
    torch.testing.assert_close(kept, average.filled().values[0], atol=1e-6, rtol=0)
    lines = [line for line in caplog.messages if "never saw" in line]
    assert lines == [f"Constants: filled {LONGER**2 - LENGTH**2} of 196 position pairs, which calibration never saw."]


def test_controls_and_constants_of_ones_own_are_not_smoothed(tmp_path: Path) -> None:
    """Their pair counts are no measurement, and what they are 0 for is meant."""
    own = Own("default")
    control = control_constants("previous", average_of(own))
    fit(own, None, ConstantAttention(constants=str(control.save(tmp_path / "c.safetensors"))), max_epochs=0)
    assert_constants(own, control)


def test_a_foreign_project_is_told_of_the_argument() -> None:
    module = Classifier()
    short = [
        {name: value[:, :6] for name, value in batch.items() if value.dim() == 2}
        for batch in loaders()["train_dataloaders"]
    ]
    batch = next(iter(DataLoader(Sentences(4), batch_size=4)))
    callback = ConstantAttention(max_length=LENGTH)
    callback.calibration_batches = lambda *_: short
    fit(module, None, callback, limit_train_batches=0)
    callback.calibrate(module.trainer, module)
    with torch.no_grad(), pytest.warns(ZeroMassWarning, match="fill_unseen=True of a callback"):
        module(batch)


def test_calibrate_writes_the_average_whatever_the_preset(tmp_path: Path) -> None:
    own, output = Own("default"), str(tmp_path / "out.safetensors")
    average = average_of(own)
    fit(own, None, CalibrationRun(ConstantAttention(max_length=LONGER), output))
    torch.testing.assert_close(AttentionConstants.load(output).values, average.values, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("preset", "filled"), [("default", True), ("reference", False)])
def test_criteria_compare_with_what_will_be_swapped_in(
    preset: str, filled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[AttentionConstants] = []

    def noted(criterion: str, inputs: Any) -> Any:
        seen.append(inputs.constants)
        return rank_heads(criterion, inputs)

    monkeypatch.setattr("papa_lightning.criteria.run.rank_heads", noted)
    own = Own(preset)
    run = RankingRun("divergence", str(tmp_path / "r.json"), ConstantAttention(max_length=LONGER), None, False)
    fit(own, None, run)
    assert ["filled" in constants.metadata for constants in seen] == [filled]
