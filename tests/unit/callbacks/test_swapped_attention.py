"""Other kinds of attention in the Lightning project of a user."""

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from projects import LENGTH, Classifier, loaders, trainer

from papa_lightning import PapaError, calibrate, swap_attention
from papa_lightning.callbacks import SwappedAttention
from papa_lightning.encoders import is_calibrated, swapped_layers

LOCAL = {"window": 4, "init": "from_constants"}


def test_a_start_from_the_train_data() -> None:
    """The pass comes first, and every added parameter learns from there."""
    module, callback = Classifier(), SwappedAttention("aft_local", LOCAL, max_length=LENGTH)
    constants = calibrate(module.bert, loaders()["train_dataloaders"], LENGTH)
    other = swap_attention(Classifier().bert, "aft_local", constants=constants, options={"window": 4})
    trainer(callback).fit(module, **loaders())
    assert callback.calibration_seconds is not None
    for layer, start in zip(swapped_layers(module.bert), swapped_layers(other), strict=True):
        assert layer.calibrated
        for one, before in zip(layer.parameters(), start.parameters(), strict=True):
            assert 0 < (one - before).abs().max() < 0.01


def test_kinds_without_constants_need_no_pass() -> None:
    module, callback = Classifier(), SwappedAttention(["additive", "shared"], max_length=LENGTH)
    trainer(callback).fit(module, **loaders())
    assert callback.calibration_seconds is None
    assert [layer.kind for layer in swapped_layers(module.bert)] == ["additive", "shared"]
    assert is_calibrated(module.bert)


def test_a_constants_file_means_a_start_from_it(tmp_path: Any) -> None:
    module = Classifier()
    path = str(calibrate(module.bert, loaders()["val_dataloaders"], LENGTH).save(tmp_path / "c.safetensors"))
    callback = SwappedAttention(["aft_full", "shared"], constants=path)
    trainer(callback, max_epochs=0).fit(module, **loaders())
    first, second = swapped_layers(module.bert)
    assert first.options()["init"] == "from_constants"
    assert second.options() == {"matrix": "constant"}
    assert not module.bert.encoder.layer[1].attention.self.query.weight.requires_grad  # DDP waits for no dead weights
    with pytest.raises(PapaError, match=r"constants is .*, but kind 'additive' with options None needs none"):
        trainer(SwappedAttention("additive", constants=path)).fit(Classifier(), **loaders())


def test_what_was_added_learns_at_a_rate_of_its_own() -> None:
    module, callback = Classifier(), SwappedAttention("aft_simple", learning_rate=0.25, max_length=LENGTH)
    module.bert.requires_grad_(False)
    run = trainer(callback)
    run.fit(module, **loaders())
    rates = {id(one): group["lr"] for group in run.optimizers[0].param_groups for one in group["params"]}
    added = [one for layer in swapped_layers(module.bert) for one in layer.parameters()]
    assert len(added) == 6
    assert all(rates[id(one)] == 0.25 for one in added)
    assert all(rates[id(one)] == 1e-3 for one in module.classifier.parameters())
    assert "configure_optimizers" not in module.__dict__
    with pytest.raises(PapaError, match=r"learning_rate is 0\.0"):
        SwappedAttention("aft_simple", learning_rate=0.0)


def test_checkpoints_carry_everything(tmp_path: Any) -> None:
    module, checkpoint = Classifier(), ModelCheckpoint(tmp_path, save_last=True)
    made = {"kind": "aft_local", "options": LOCAL, "max_length": LENGTH}
    trainer(SwappedAttention(**made), checkpoint, enable_checkpointing=True).fit(module, **loaders())
    other, again = Classifier(seed=3), SwappedAttention(**made)
    batch = next(iter(loaders()["val_dataloaders"]))
    last = tmp_path / "last.ckpt"
    trainer(again).validate(other, loaders()["val_dataloaders"], ckpt_path=last, weights_only=True)
    assert again.calibration_seconds == pytest.approx(
        float(torch.load(last, weights_only=True)["callbacks"][again.state_key]["calibration_seconds"])
    )
    assert torch.equal(other.eval()(batch), module.eval()(batch))


def test_no_start_from_constants_outside_fit() -> None:
    with pytest.raises(PapaError, match="the encoder waits for constants, and only fit calibrates"):
        trainer(SwappedAttention("aft_full", {"init": "from_constants"}, max_length=LENGTH)).validate(
            Classifier(), loaders()["val_dataloaders"]
        )
