"""Checkpoints of projects with a callback of ours, without one, and from one to the other."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from projects import LENGTH, Classifier, Sentences, loaders, trainer
from torch.utils.data import ConcatDataset, DataLoader

from papa_lightning import ConstantAttention, HeadGates, PapaError, calibrate
from papa_lightning.encoders import PlainStateWarning, is_calibrated, plain_state, swap_as_saved, swapped_layers


@pytest.fixture
def plain_checkpoint(tmp_path: Path) -> Path:
    """Of a run that knew nothing of us."""
    run = trainer()
    run.fit(Classifier(), **loaders())
    run.save_checkpoint(tmp_path / "plain.ckpt")
    return tmp_path / "plain.ckpt"


@pytest.fixture
def swapped_checkpoint(tmp_path: Path) -> Path:
    """Of a run with constant heads."""
    run = trainer(ConstantAttention(max_length=LENGTH, heads=[(0, 1)]))
    run.fit(Classifier(), **loaders())
    run.save_checkpoint(tmp_path / "swapped.ckpt")
    return tmp_path / "swapped.ckpt"


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_evaluating_a_plain_checkpoint_with_a_constants_file(verb: str, plain_checkpoint: Path, tmp_path: Path) -> None:
    constants = calibrate(Classifier().bert, DataLoader(Sentences(8), batch_size=4), max_length=LENGTH)
    path = str(constants.save(tmp_path / "constants.safetensors"))
    module, run = Classifier(seed=1), trainer(ConstantAttention(constants=path))
    with pytest.warns(PlainStateWarning, match="keeps the constants"):
        getattr(run, verb)(module, DataLoader(Sentences(4)), ckpt_path=plain_checkpoint, weights_only=True)
    assert torch.equal(swapped_layers(module.bert)[1].constants, constants.values[1])
    for name, value in weights(plain_checkpoint).items():
        assert torch.equal(module.state_dict()[name], value), name


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_evaluating_a_plain_checkpoint_without_constants_is_refused(verb: str, plain_checkpoint: Path) -> None:
    run = trainer(ConstantAttention(max_length=LENGTH))
    with pytest.warns(PlainStateWarning), pytest.raises(PapaError, match="waits for constants"):
        getattr(run, verb)(Classifier(), DataLoader(Sentences(4)), ckpt_path=plain_checkpoint)


@pytest.mark.parametrize("heads", [[], [(0, 1)]], ids=["none", "one"])
def test_going_on_from_a_plain_checkpoint_with_constant_heads(heads: Any, plain_checkpoint: Path) -> None:
    """The constants are the averages of the trained encoder, and the optimizer goes on where it was."""
    trained, module = Classifier(), Classifier(seed=1)
    trained.load_state_dict(weights(plain_checkpoint))
    expected = calibrate(trained.bert, DataLoader(Sentences(8), batch_size=4), max_length=LENGTH)
    run = trainer(ConstantAttention(max_length=LENGTH, heads=heads), max_epochs=2)
    with pytest.warns(PlainStateWarning, match="waits"):
        run.fit(module, **loaders(), ckpt_path=plain_checkpoint)
    assert run.global_step == 4
    for layer, values in zip(swapped_layers(module.bert), expected.values, strict=True):
        torch.testing.assert_close(layer.constants.detach(), values[list(layer.constant_heads)], atol=1e-6, rtol=0)


@pytest.mark.parametrize("callback", [ConstantAttention, HeadGates])
def test_an_optimizer_that_cannot_go_on_is_refused(callback: Any, plain_checkpoint: Path) -> None:
    """Queries and keys that no head uses left it, or gates joined: torch would say that sizes do not match."""
    ours, module = callback(max_length=LENGTH), Classifier(seed=1)
    with (
        pytest.warns(PlainStateWarning),
        pytest.raises(PapaError, match=r"optimizers hold other parameters.*fit without"),
    ):
        trainer(ours, max_epochs=2).fit(module, **loaders(), ckpt_path=plain_checkpoint)
    with pytest.warns(PlainStateWarning):
        module.load_state_dict(weights(plain_checkpoint))
    trainer(ours).fit(module, **loaders())
    assert is_calibrated(module.bert)


def test_a_checkpoint_with_constants_in_the_plain_module(swapped_checkpoint: Path) -> None:
    module = Classifier(seed=1)
    module.load_state_dict(plain_state(weights(swapped_checkpoint)), strict=True)
    assert swapped_layers(module.bert) == []


class Prepared(Classifier):
    """The one line that loads a checkpoint with its constants, without a callback."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        swap_as_saved(self, checkpoint["state_dict"])


def test_a_module_that_loads_its_constants_itself(swapped_checkpoint: Path, plain_checkpoint: Path) -> None:
    module = Prepared.load_from_checkpoint(swapped_checkpoint, strict=True, weights_only=True, seed=1)
    assert is_calibrated(module.bert)
    assert [layer.constant_heads for layer in swapped_layers(module.bert)] == [(1,), ()]
    for name, value in weights(swapped_checkpoint).items():
        assert torch.equal(module.state_dict()[name], value), name
    plain = Prepared.load_from_checkpoint(plain_checkpoint, strict=True, weights_only=True, seed=1)
    assert swapped_layers(plain.bert) == []
    trainer().test(Prepared(), DataLoader(Sentences(4)), ckpt_path=swapped_checkpoint)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConstantAttention(max_length=LENGTH, heads=[(0, 1)]),
        lambda: HeadGates(0.01, max_length=LENGTH, save_constants=False),
    ],
    ids=["constant", "gated"],
)
@pytest.mark.parametrize("step", [1, 3, 4])
def test_resuming_in_the_middle_ends_as_one_run(make: Any, step: int, tmp_path: Path) -> None:
    """Also in the middle of an epoch: of two equal batches, because torch's loader cannot start at the second."""
    data = ConcatDataset([Sentences(4), Sentences(4)])

    def fit(**arguments: Any) -> Classifier:
        module = Classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        keeping = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
        run = trainer(make(), keeping, max_epochs=3, enable_checkpointing=True, default_root_dir=tmp_path)
        run.fit(module, DataLoader(data, batch_size=4), loaders()["val_dataloaders"], **arguments)
        assert run.global_step == 6
        return module

    whole = fit()
    resumed = fit(ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
    for (name, value), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("callback", [ConstantAttention, HeadGates])
def test_a_crash_inside_the_pass_leaves_no_trace(callback: Any, tmp_path: Path) -> None:
    """The state is that of a module that waits, module by module; a new run calibrates from the start."""

    class Breaking(callback):  # type: ignore[misc]
        def calibration_batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
            batches = iter(super().calibration_batches(trainer, pl_module))
            yield next(batches)
            raise RuntimeError("killed")

    module = Classifier()
    module.bert.encoder.layer[0].eval()
    before = {name: part.training for name, part in module.named_modules()}
    with pytest.raises(RuntimeError, match="killed"):
        trainer(Breaking(max_length=LENGTH), default_root_dir=tmp_path).fit(module, **loaders())
    assert {name: module.get_submodule(name).training for name in before} == before
    assert not any((layer.constants != 0).any() for layer in swapped_layers(module.bert))
    assert not any(layer.heads.suspended for layer in swapped_layers(module.bert))
    assert not is_calibrated(module.bert)
    assert "configure_optimizers" not in vars(module)

    fresh = Classifier()
    for each in (module, fresh):
        trainer(callback(max_length=LENGTH), default_root_dir=tmp_path).fit(each, **loaders())
    for one, other in zip(swapped_layers(module.bert), swapped_layers(fresh.bert), strict=True):
        torch.testing.assert_close(one.constants, other.constants)
