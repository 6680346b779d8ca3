"""Lightning's own callbacks beside ours, before and after them in the list."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from projects import LENGTH, Classifier, Sentences, loaders, trainer
from torch.utils.data import DataLoader

from papa_lightning import AttentionConstants, ConstantAttention, HeadGates, LearnedConstants, PapaError, calibrate
from papa_lightning.callbacks import ranking_of_gates
from papa_lightning.encoders import gate_logits, is_calibrated, swapped_layers

EVERY_ORDER = pytest.mark.parametrize("ours_first", [True, False], ids=["ours-first", "ours-last"])
AVERAGES: dict[str, Any] = {
    "mean": WeightAveraging,
    "ema": lambda: EMAWeightAveraging(decay=0.5),
    "ema-later": lambda: EMAWeightAveraging(decay=0.5, update_starting_at_step=100),
    "swa": lambda: StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1),
}


def ordered(ours: L.Callback, others: list[L.Callback], ours_first: bool) -> list[L.Callback]:
    return [ours, *others] if ours_first else [*others, ours]


def expected_constants() -> AttentionConstants:
    return calibrate(Classifier().bert, DataLoader(Sentences(8), batch_size=3), max_length=LENGTH)


def assert_calibrated(module: Classifier, heads: list[tuple[int, ...]]) -> None:
    assert is_calibrated(module.bert)
    assert [layer.constant_heads for layer in swapped_layers(module.bert)] == heads
    for layer, values in zip(swapped_layers(module.bert), expected_constants().values, strict=True):
        chosen = values[list(layer.constant_heads)]
        torch.testing.assert_close(layer.constants.detach(), chosen, atol=1e-6, rtol=0)


@EVERY_ORDER
@pytest.mark.parametrize("average", AVERAGES)
def test_averages_of_weights(average: str, ours_first: bool, tmp_path: Path) -> None:
    """The copy that is averaged has the layers and the constants of the module, and so has its checkpoint."""
    ours, checkpoint = ConstantAttention(max_length=LENGTH, heads=[(0, 1)]), ModelCheckpoint(tmp_path, save_last=True)
    module, other = Classifier(), AVERAGES[average]()
    callbacks = [*ordered(ours, [other], ours_first), checkpoint]
    trainer(*callbacks, max_epochs=2, enable_checkpointing=True).fit(module, **loaders())
    assert_calibrated(module, [(1,), ()])

    fresh = Classifier(seed=1)
    again = trainer(ConstantAttention(max_length=LENGTH, heads=[(0, 1)]))
    again.validate(fresh, loaders()["val_dataloaders"], ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert_calibrated(fresh, [(1,), ()])


@EVERY_ORDER
def test_an_average_is_that_of_the_weights_on_the_way(ours_first: bool) -> None:
    """Every parameter for itself: an average of a copy with other layers would mix them up."""
    seen: list[dict[str, torch.Tensor]] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            seen.append({name: one.detach().clone() for name, one in pl_module.named_parameters()})

    module = Classifier()
    callbacks = ordered(ConstantAttention(max_length=LENGTH), [WeightAveraging()], ours_first)
    trainer(*callbacks, Watch(), limit_val_batches=0).fit(module, loaders()["train_dataloaders"])
    assert len(seen) == 2
    for name, value in module.named_parameters():
        torch.testing.assert_close(value.detach(), (seen[0][name] + seen[1][name]) / 2, msg=name)


@EVERY_ORDER
def test_a_resumed_average(ours_first: bool, tmp_path: Path) -> None:
    def fit(module: Classifier, epochs: int, **arguments: Any) -> None:
        ours, checkpoint = ConstantAttention(max_length=LENGTH), ModelCheckpoint(tmp_path, save_last=True)
        callbacks = [*ordered(ours, [EMAWeightAveraging(decay=0.5)], ours_first), checkpoint]
        run = trainer(*callbacks, max_epochs=epochs, enable_checkpointing=True)
        data = DataLoader(Sentences(8), batch_size=4)
        run.fit(module, data, loaders()["val_dataloaders"], **arguments)

    torch.manual_seed(0)
    fit(Classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), 1)
    resumed, whole = (Classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0) for _ in range(2))
    fit(resumed, 2, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    fit(whole, 2)
    for (name, one), other in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


@EVERY_ORDER
@pytest.mark.parametrize("average", [name for name in AVERAGES if name != "ema-later"])
def test_averaged_gates(average: str, ours_first: bool) -> None:
    """The ranking is that of the gates that the module has in the end."""
    ours, module = HeadGates(0.05, max_length=LENGTH), Classifier()
    trainer(*ordered(ours, [AVERAGES[average]()], ours_first), max_epochs=3).fit(module, **loaders())
    gates = torch.cat([layer.detach() for layer in gate_logits(module.bert)])
    assert (gates != 0).all()
    assert gates.abs().max() < 0.3
    assert ours.ranking == ranking_of_gates(module.bert)


class Gradual(Classifier):
    """Its encoder is frozen at first, as BackboneFinetuning wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = self.bert

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.classifier.parameters(), lr=1e-3)


class Thawing(Gradual):
    """Does it by itself."""

    def on_train_epoch_start(self) -> None:
        self.bert.requires_grad_(self.current_epoch > 0)
        if self.current_epoch == 1:
            self.optimizers().add_param_group({"params": list(self.bert.parameters())})


@EVERY_ORDER
@pytest.mark.parametrize("kind", [Gradual, Thawing])
def test_constants_stay_while_the_encoder_is_unfrozen(kind: Any, ours_first: bool) -> None:
    module, weight = kind(), Classifier().bert.encoder.layer[0].output.dense.weight
    others: list[L.Callback] = []
    if kind is Gradual:
        others = [BackboneFinetuning(unfreeze_backbone_at_epoch=1, lambda_func=lambda epoch: 1.0)]
    ours = ConstantAttention(max_length=LENGTH)
    trainer(*ordered(ours, others, ours_first), max_epochs=3).fit(module, **loaders())
    assert_calibrated(module, [(0, 1), (0, 1)])
    assert not torch.equal(module.bert.encoder.layer[0].output.dense.weight, weight)
    assert not any(isinstance(one, torch.nn.Module) for one in vars(ours).values())


class Tunable(Classifier):
    """With what the finders change."""

    def __init__(self) -> None:
        super().__init__()
        self.lr, self.batch_size = 1e-3, 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Sentences(8), batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Sentences(4, seed=1), batch_size=4)


def test_learned_constants_that_a_later_callback_freezes_are_refused() -> None:
    later = BackboneFinetuning(unfreeze_backbone_at_epoch=1, lambda_func=lambda epoch: 1.0)
    ours = [ConstantAttention(max_length=LENGTH), LearnedConstants()]
    with pytest.raises(PapaError, match=r"constants were frozen after setup, so they cannot learn.*LearnedConstants"):
        trainer(*ours, later).fit(Gradual(), **loaders())
    module = Gradual()
    trainer(later, *ours).fit(module, **loaders())
    assert not torch.equal(swapped_layers(module.bert)[0].constants.detach(), expected_constants().values[0])


@EVERY_ORDER
def test_a_checkpoint_of_a_crash_inside_calibration(ours_first: bool, tmp_path: Path) -> None:
    """It has no constants, so the run that goes on from it starts the pass again."""

    class Breaking(ConstantAttention):
        def calibration_batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
            batches = iter(super().calibration_batches(trainer, pl_module))
            yield next(batches)
            raise RuntimeError("the power is gone")

    crash = OnExceptionCheckpoint(tmp_path, "crash")
    run = trainer(*ordered(Breaking(max_length=LENGTH), [crash], ours_first), enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="power"):
        run.fit(Classifier(), **loaders())
    module = Classifier(seed=1)
    run = trainer(ConstantAttention(max_length=LENGTH))
    run.fit(module, **loaders(), ckpt_path=tmp_path / "crash.ckpt", weights_only=True)
    assert run.global_step == 2
    assert_calibrated(module, [(0, 1), (0, 1)])


FINDERS: dict[str, Any] = {
    "rate": lambda: LearningRateFinder(num_training_steps=4, early_stop_threshold=None),
    "size": lambda: BatchSizeFinder(steps_per_trial=1, max_trials=2),
    "stop": lambda: EarlyStopping("accuracy", patience=5),
}


@pytest.mark.parametrize(
    ("names", "ours_first"), [(list(FINDERS), True), (list(FINDERS)[::-1], False)], ids=["ours-first", "ours-last"]
)
def test_finders_and_early_stopping(names: list[str], ours_first: bool, tmp_path: Path) -> None:
    """They fit a little of their own and put everything back: the calibration is of the weights as they were."""
    module, ours = Tunable(), ConstantAttention(max_length=LENGTH)
    others = [FINDERS[name]() for name in names]
    run = trainer(*ordered(ours, others, ours_first), default_root_dir=tmp_path)
    run.fit(module)
    assert_calibrated(module, [(0, 1), (0, 1)])
    assert module.batch_size == 4
    assert run.global_step == 2
    assert not list(tmp_path.glob(".*"))


@EVERY_ORDER
def test_a_finder_beside_gates(ours_first: bool, tmp_path: Path) -> None:
    module, ours = Tunable(), HeadGates(0.05, max_length=LENGTH)
    run = trainer(*ordered(ours, [FINDERS["rate"](), FINDERS["size"]()], ours_first), default_root_dir=tmp_path)
    run.fit(module)
    assert ours.ranking is not None
    assert all((gates != 0).all() for gates in gate_logits(module.bert))
