"""Constants that learn inside a Lightning project that knows nothing of papa_lightning."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from projects import LENGTH, Classifier, loaders, trainer

from papa_lightning import ConstantAttention, LearnedConstants, PapaError, calibrate
from papa_lightning.encoders import swapped_layers
from papa_lightning.tasks.regimes import project_rows


@pytest.mark.parametrize(("learning_rate", "expected"), [(0.05, 0.05), (None, 1e-3)])
def test_constants_learn_from_the_average_and_stay_distributions(learning_rate: float | None, expected: float) -> None:
    module, sums = Classifier(), list[torch.Tensor]()
    start = calibrate(module.bert, loaders()["train_dataloaders"], LENGTH)

    class Watch(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            for layer in swapped_layers(module.bert):
                assert (layer.constants >= 0).all()
                sums.append(layer.constants.detach().sum(dim=-1))

    run = trainer(Watch(), LearnedConstants(LENGTH, learning_rate=learning_rate), max_epochs=2, gradient_clip_val=1.0)
    run.fit(module, **loaders())
    assert len(sums) == 8
    for one in sums:
        torch.testing.assert_close(one, torch.ones(2, LENGTH))
    for layer, values in zip(swapped_layers(module.bert), start.values.float(), strict=True):
        assert not torch.allclose(layer.constants, project_rows(values), atol=1e-4)
    group = run.optimizers[0].param_groups[-1]
    assert {id(one) for one in group["params"]} == {id(layer.constants) for layer in swapped_layers(module.bert)}
    assert (group["lr"], group["weight_decay"]) == (expected, 0.0)


def test_they_travel_in_the_checkpoint(tmp_path: Path) -> None:
    def fit(epochs: int, **arguments: Any) -> Classifier:
        torch.manual_seed(0)
        module, checkpoint = Classifier(), ModelCheckpoint(tmp_path / str(epochs), save_last=True)
        module.bert.eval()
        data = {name: torch.utils.data.DataLoader(one.dataset, batch_size=4) for name, one in loaders().items()}
        callbacks = (LearnedConstants(LENGTH, learning_rate=0.05), checkpoint)
        trainer(*callbacks, max_epochs=epochs, enable_checkpointing=True).fit(module, **data, **arguments)
        return module

    fit(1)
    whole, resumed = fit(2), fit(2, ckpt_path=tmp_path / "1" / "last.ckpt", weights_only=True)
    for one, other in zip(swapped_layers(whole.bert), swapped_layers(resumed.bert), strict=True):
        assert torch.equal(one.constants, other.constants)
    other, batch = Classifier(seed=3), next(iter(loaders()["val_dataloaders"]))
    last = tmp_path / "2" / "last.ckpt"
    trainer(LearnedConstants(LENGTH)).validate(other, loaders()["val_dataloaders"], ckpt_path=last, weights_only=True)
    assert torch.equal(other.eval()(batch), whole.eval()(batch))


def test_refusals() -> None:
    with pytest.raises(PapaError, match=r"learning_rate is 0\.0, but must be above 0"):
        LearnedConstants(learning_rate=0.0)
    with pytest.raises(PapaError, match=r"heads is \[\], so there are no constants that could learn"):
        trainer(LearnedConstants(LENGTH, heads=[])).fit(Classifier(), **loaders())
    with pytest.raises(PapaError, match="a LearnedConstants and a ConstantAttention for the same"):
        trainer(LearnedConstants(LENGTH), ConstantAttention(LENGTH)).fit(Classifier(), **loaders())
    run = trainer()
    run.strategy.__class__ = type("Sharded", (FSDPStrategy,), {})
    with pytest.raises(PapaError, match="strategy is Sharded, which shards the constants"):
        LearnedConstants(LENGTH).setup(run, Classifier(), "fit")
