"""Gates that learn inside somebody else's Lightning project."""

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

from papa_lightning import HeadGates, HeadRanking, PapaError, calibrate, gate_logits
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


@pytest.mark.parametrize(("by_group", "rate"), [(True, 0.1), (False, 1e-3)])
def test_a_schedule_with_a_maximum_overrides_the_rate_of_the_gates_unless_it_has_one_a_group(
    by_group: bool, rate: float
) -> None:
    """docs/callbacks.md has the remedy."""

    class Cycle(FrozenEncoder):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            most: Any = [group["lr"] for group in optimizer.param_groups] if by_group else 1e-3
            return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=most, total_steps=100)]

    module = Cycle()
    run = trainer(HeadGates(max_length=LENGTH, learning_rate=0.1))
    run.fit(module, **loaders())
    (group,) = groups_of_gates(run, module)
    assert group["max_lr"] == rate


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


def test_schedulers_multiply_the_rate_of_the_gates_too() -> None:
    class Scheduled(FrozenEncoder):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    module = Scheduled()
    run = trainer(HeadGates(0.08, max_length=LENGTH))
    run.fit(module, **loaders())
    assert run.global_step == 2
    rates = [group["lr"] for group in run.optimizers[0].param_groups]
    assert rates == pytest.approx([1e-3 / 4, 0.08 / 4])


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
