"""Trained gates in the Lightning project of a user."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from projects import LENGTH, Classifier, loaders, trainer
from torch import nn
from torch.optim import lr_scheduler as schedules

from papa_lightning import HeadGates, HeadRanking, PapaError, calibrate, gate_logits, parameter_groups
from papa_lightning.encoders import is_calibrated


class FrozenEncoder(Classifier):
    """Only the classifier learns; the optimizer is made as `optimizer` says."""

    optimizer = "trainable"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.bert.requires_grad_(False)

    def configure_optimizers(self) -> Any:
        groups: dict[str, Any] = {
            "trainable": [one for one in self.parameters() if one.requires_grad],
            "everything": self.parameters(),
            "probe": self.classifier.parameters(),
            "named": self.classifier.named_parameters(),
            "two groups": [{"params": self.classifier.weight, "lr": 0.1}, {"params": [self.classifier.bias]}],
        }
        return torch.optim.AdamW(groups[self.optimizer], lr=1e-3, weight_decay=0.5)


def groups_of_gates(run: L.Trainer, module: nn.Module) -> list[dict[str, Any]]:
    (optimizer,) = run.optimizers
    gates = {id(gate) for gate in gate_logits(module)}
    found = [group for group in optimizer.param_groups if any(id(one) in gates for one in group["params"])]
    assert sum(len(group["params"]) for group in found) == len(gates)
    return found


SCHEDULES: dict[str, Any] = {
    "none": lambda optimizer: None,
    "cycle": lambda optimizer: schedules.OneCycleLR(optimizer, max_lr=1e-3, total_steps=100),
    "cycle by group": lambda optimizer: schedules.OneCycleLR(
        optimizer, max_lr=[group["lr"] for group in optimizer.param_groups], total_steps=100
    ),
    "there and back": lambda optimizer: schedules.CyclicLR(optimizer, 1e-3, 2e-3, cycle_momentum=False),
    "warm-up, then cosine": lambda optimizer: schedules.SequentialLR(
        optimizer, [schedules.LinearLR(optimizer, 0.1), schedules.CosineAnnealingLR(optimizer, 10)], [3]
    ),
    "lambdas": lambda optimizer: schedules.LambdaLR(optimizer, lambda step: 0.5**step),
    "plateau": lambda optimizer: schedules.ReduceLROnPlateau(optimizer, patience=0),
}


@pytest.mark.parametrize("helper", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_move_gates_in_proportion(schedule: str, helper: bool) -> None:
    """A hundred times the rate of the rest at every step, whether or not the project makes the groups itself."""

    class Scheduled(FrozenEncoder):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            if helper:
                optimizer = torch.optim.AdamW(parameter_groups(self, lr=1e-3, weight_decay=0.5))
            made = SCHEDULES[schedule](optimizer)
            both = {"scheduler": made, "interval": "step", "monitor": "loss"}
            return {"optimizer": optimizer} | ({"lr_scheduler": both} if made else {})

    rates: list[list[float]] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, run: L.Trainer, *_: Any) -> None:
            rates.append([group["lr"] for group in run.optimizers[0].param_groups])

    module = Scheduled()
    run = trainer(HeadGates(0.1, max_length=LENGTH), Watch(), max_epochs=3)
    run.fit(module, **loaders())
    (group,) = groups_of_gates(run, module)
    assert group is run.optimizers[0].param_groups[-1]
    assert group["weight_decay"] == 0.0
    assert len(rates) == 6
    for rest, gates in rates:
        assert gates == pytest.approx(100 * rest)


def test_a_schedule_that_is_not_of_torch_brings_a_warning() -> None:
    class Own:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

        def step(self, *_: Any) -> None:
            pass

        def state_dict(self) -> dict[str, Any]:
            return {}

        load_state_dict = step

    class Scheduled(FrozenEncoder):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return {"optimizer": optimizer, "lr_scheduler": Own(optimizer)}

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            scheduler.step()

    with pytest.warns(UserWarning, match=r"Own is not a scheduler of torch.*use papa_lightning.parameter_groups"):
        trainer(HeadGates(0.1, max_length=LENGTH)).fit(Scheduled(), **loaders())


def test_optimizers_with_fixed_groups_are_refused() -> None:
    class Newton(FrozenEncoder):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.classifier.parameters())

    with pytest.raises(PapaError, match=r"optimizer is a LBFGS, to which no parameter group can be added"):
        trainer(HeadGates(0.1, max_length=LENGTH)).fit(Newton(), **loaders())


def test_gates_and_probe_learn_and_a_frozen_encoder_stays() -> None:
    module, callback = FrozenEncoder(), HeadGates(max_length=LENGTH, learning_rate=0.1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    expected = calibrate(module.bert, loaders()["val_dataloaders"], LENGTH)
    trainer(callback, max_epochs=2).fit(module, **loaders())
    assert is_calibrated(module.bert)
    assert expected.num_heads == 2
    for name, value in before.items():
        assert torch.equal(module.state_dict()[name], value) == name.startswith("bert."), name
    assert all(gate.abs().min() > 4e-3 for gate in gate_logits(module)), "at the rate of the rest, 4 steps are 0.004"
    scores = torch.stack([gate.detach().double() for gate in gate_logits(module)])
    assert callback.ranking == HeadRanking.from_scores(scores.tolist(), "gate")
    assert callback.ranking_path is None


@pytest.mark.parametrize("optimizer", ["trainable", "everything", "probe", "named", "two groups"])
@pytest.mark.parametrize(("learning_rate", "expected"), [(0.05, 0.05), (None, None)])
def test_gates_have_a_group_of_their_own_without_decay(
    optimizer: str, learning_rate: float | None, expected: float | None
) -> None:
    module = FrozenEncoder()
    module.optimizer = optimizer
    run = trainer(HeadGates(learning_rate, max_length=LENGTH))
    run.fit(module, **loaders())
    (group,) = groups_of_gates(run, module)
    assert len(group["params"]) == 2
    assert group["weight_decay"] == 0.0
    assert group["lr"] == (expected or (0.1 if optimizer == "two groups" else 1e-3))
    others = [one for other in run.optimizers[0].param_groups if other is not group for one in other["params"]]
    assert {id(one) for one in module.classifier.parameters()} <= {id(one) for one in others}
    assert "configure_optimizers" not in module.__dict__
    assert module.configure_optimizers().param_groups[0]["weight_decay"] == 0.5


def test_a_resumed_run_ends_as_one_that_was_never_stopped(tmp_path: Path) -> None:
    def fit(epochs: int, **arguments: Any) -> tuple[FrozenEncoder, HeadGates]:
        torch.manual_seed(0)
        module, callback = FrozenEncoder(), HeadGates(0.05, max_length=LENGTH)
        checkpoint = ModelCheckpoint(tmp_path / str(epochs), save_last=True)
        ordered = {name: torch.utils.data.DataLoader(one.dataset, batch_size=4) for name, one in loaders().items()}
        run = trainer(callback, checkpoint, max_epochs=epochs, enable_checkpointing=True, default_root_dir=tmp_path)
        module.bert.eval()
        run.fit(module, **ordered, **arguments)
        return module, callback

    _, first = fit(1)
    whole, callback = fit(2)
    resumed, again = fit(2, ckpt_path=tmp_path / "1" / "last.ckpt", weights_only=True)
    assert first.ranking is not None
    assert first.ranking.scores != callback.ranking.scores
    assert again.ranking == callback.ranking
    for one, other in zip(gate_logits(whole), gate_logits(resumed), strict=True):
        assert torch.equal(one, other)


def test_the_ranking_lands_in_the_folder_of_the_logs(tmp_path: Path) -> None:
    callback = HeadGates(0.1, max_length=LENGTH)
    trainer(callback, logger=CSVLogger(tmp_path)).fit(FrozenEncoder(), **loaders())
    (written,) = tmp_path.rglob("ranking.json")
    assert callback.ranking_path == str(written)
    assert HeadRanking.load(written) == callback.ranking
    assert len(list(tmp_path.rglob("constants.safetensors"))) == 1


def test_a_constants_file_and_an_output_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FrozenEncoder()
    constants = calibrate(module.bert, loaders()["val_dataloaders"], LENGTH)
    constants.save(tmp_path / "constants.safetensors")
    monkeypatch.setattr(HeadGates, "calibrate", lambda *_: pytest.fail("calibrated"))
    callback = HeadGates(
        0.1, output=str(tmp_path / "out" / "mine.json"), constants=str(tmp_path / "constants.safetensors")
    )
    trainer(callback).fit(module, **loaders())
    assert HeadRanking.load(tmp_path / "out" / "mine.json") == callback.ranking
    trainer(callback).test(module, loaders()["val_dataloaders"])


@pytest.mark.parametrize("learning_rate", [0.0, -0.1, float("inf"), float("nan")])
def test_learning_rates_that_are_none_are_refused(learning_rate: float) -> None:
    with pytest.raises(PapaError, match=r"learning_rate is .*, but must be above 0"):
        HeadGates(learning_rate)


def test_gates_that_no_loss_reaches_are_refused() -> None:
    class Detached(FrozenEncoder):
        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            with torch.no_grad():
                hidden = self.bert(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            return self.classifier(hidden.last_hidden_state[:, 0])

    module = Detached()
    with pytest.raises(PapaError, match=r"no gradient for the gates"):
        trainer(HeadGates(max_length=LENGTH)).fit(module, **loaders())
    assert "configure_optimizers" not in module.__dict__


class ByHand(FrozenEncoder):
    """Each batch has two losses, of which the first does not reach the encoder."""

    automatic_optimization = False
    detached = False

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.classifier.weight.square().sum())
        optimizer.step()
        loss = nn.functional.cross_entropy(self(batch), batch["label"])
        self.manual_backward(loss.detach() * self.classifier.bias.sum() if self.detached else loss)
        optimizer.step()


def test_a_first_loss_that_does_not_reach_the_gates_is_no_matter() -> None:
    callback, module = HeadGates(0.1, max_length=LENGTH), ByHand()
    trainer(callback).fit(module, **loaders())
    assert all((gates != 0).all() for gates in gate_logits(module))
    module = ByHand()
    module.detached = True
    with pytest.raises(PapaError, match=r"no gradient for the gates"):
        trainer(HeadGates(max_length=LENGTH)).fit(module, **loaders())


def test_a_head_on_an_earlier_layer_ranks_what_it_uses() -> None:
    class Earlier(FrozenEncoder):
        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            return self.classifier(self.bert(**inputs, output_hidden_states=True).hidden_states[-2][:, 0])

    callback, module = HeadGates(0.1, max_length=LENGTH), Earlier()
    trainer(callback).fit(module, **loaders())
    first, last = gate_logits(module)
    assert (first != 0).all()
    assert not last.any()
    assert callback.ranking is not None


def test_a_fit_without_a_step_ranks_nothing() -> None:
    callback, module = HeadGates(0.1, max_length=LENGTH), FrozenEncoder()
    trainer(callback, max_epochs=0).fit(module, **loaders())
    assert callback.ranking is None


def test_gates_that_did_not_move_bring_a_warning() -> None:
    class Unmoved(FrozenEncoder):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [schedules.LambdaLR(optimizer, lambda step: 0.0)]

    gates = HeadGates(max_length=LENGTH)
    with pytest.warns(UserWarning, match=r"no gate has moved.*ranked by layer and head.*learning rate"):
        trainer(gates).fit(Unmoved(), **loaders())
    assert gates.ranking is not None
    assert set(gates.ranking.scores or ()) == {0.0}


def test_gates_that_were_frozen_are_refused() -> None:
    class Freezes(FrozenEncoder):
        def setup(self, stage: str) -> None:
            self.bert.requires_grad_(False)

    with pytest.raises(PapaError, match=r"gates were frozen after setup"):
        trainer(HeadGates(max_length=LENGTH)).fit(Freezes(), **loaders())


def test_sharded_strategies_are_refused() -> None:
    run = trainer(HeadGates(max_length=LENGTH))
    run.strategy.__class__ = type("Sharded", (FSDPStrategy,), {})
    with pytest.raises(PapaError, match=r"strategy is Sharded, which shards the gates"):
        HeadGates(max_length=LENGTH).setup(run, FrozenEncoder(), "fit")
