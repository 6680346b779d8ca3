"""Constants that learn inside a Lightning project that knows nothing of papa_lightning."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from projects import LENGTH, Classifier, loaders, trainer

from papa_lightning import (
    ConstantAttention,
    HeadGates,
    LearnedConstants,
    PapaError,
    SwappedAttention,
    calibrate,
    swap_attention,
)
from papa_lightning.callbacks.learned_constants import project_rows
from papa_lightning.encoders import swapped_layers


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("learning_rate", "expected"), [(0.05, 0.05), (None, 1e-3)])
def test_constants_learn_from_the_average_and_stay_distributions(
    learning_rate: float | None, expected: float, first: bool
) -> None:
    module, sums = Classifier(), list[torch.Tensor]()
    start = calibrate(module.bert, loaders()["train_dataloaders"], LENGTH)

    class Watch(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            for layer in swapped_layers(module.bert):
                assert (layer.constants >= 0).all()
                sums.append(layer.constants.detach().sum(dim=-1))

    callbacks = [LearnedConstants(learning_rate), ConstantAttention(LENGTH)][:: 1 if first else -1]
    run = trainer(Watch(), *callbacks, max_epochs=2, gradient_clip_val=1.0)
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
        callbacks = (ConstantAttention(LENGTH), LearnedConstants(0.05), checkpoint)
        trainer(*callbacks, max_epochs=epochs, enable_checkpointing=True).fit(module, **data, **arguments)
        return module

    fit(1)
    whole, resumed = fit(2), fit(2, ckpt_path=tmp_path / "1" / "last.ckpt", weights_only=True)
    for one, other in zip(swapped_layers(whole.bert), swapped_layers(resumed.bert), strict=True):
        assert torch.equal(one.constants, other.constants)
    other, batch = Classifier(seed=3), next(iter(loaders()["val_dataloaders"]))
    last = tmp_path / "2" / "last.ckpt"
    run = trainer(LearnedConstants(), ConstantAttention(LENGTH))
    run.validate(other, loaders()["val_dataloaders"], ckpt_path=last, weights_only=True)
    assert torch.equal(other.eval()(batch), whole.eval()(batch))


def test_constants_of_other_kinds_and_of_the_project_itself_learn() -> None:
    module, start = Classifier(), calibrate(Classifier().bert, loaders()["train_dataloaders"], LENGTH)
    swap_attention(module.bert, "constant", constants=start)
    gates = HeadGates(0.1, max_length=LENGTH)
    shared = SwappedAttention("shared", {"matrix": "constant"}, 0.1, LENGTH)
    for one, callbacks in ((Classifier(), [gates]), (Classifier(), [shared]), (module, [])):
        run = trainer(LearnedConstants(0.05), *callbacks, max_epochs=1)
        run.fit(one, **loaders())
        rates = {group["lr"]: len(group["params"]) for group in run.optimizers[0].param_groups[1:]}
        assert rates == ({0.05: 2, 0.1: 2} if gates in callbacks else {0.05: 2})
        for layer, values in zip(swapped_layers(one.bert), start.values.float(), strict=True):
            assert not torch.allclose(layer.constants, project_rows(values), atol=1e-4)
        assert not any(optimizer._optimizer_step_post_hooks for optimizer in run.optimizers)


def test_averaged_copies_have_constants_that_are_distributions() -> None:
    module, averaging = Classifier(), EMAWeightAveraging(decay=0.5)
    trainer(averaging, ConstantAttention(LENGTH), LearnedConstants(0.5), max_epochs=2).fit(module, **loaders())
    for layer in swapped_layers(module.bert):  # the averaged values, when the fit has ended
        assert (layer.constants >= 0).all()
        torch.testing.assert_close(layer.constants.detach().sum(dim=-1), torch.ones(2, LENGTH))


def test_projection_in_half_precision_and_of_fallen_rows() -> None:
    rows = torch.tensor([[-1.0, -2.0, 0.0], [0.5, 1.5, 0.0]], dtype=torch.bfloat16)
    expected = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]], dtype=torch.bfloat16)
    assert torch.equal(project_rows(rows), expected)
    assert torch.equal(project_rows(expected), expected)


def test_refusals() -> None:
    with pytest.raises(PapaError, match=r"learning_rate is 0\.0, but must be above 0"):
        LearnedConstants(learning_rate=0.0)
    for others in ([], [ConstantAttention(LENGTH, heads=[])]):
        with pytest.raises(PapaError, match="no constants that LearnedConstants could train"):
            trainer(LearnedConstants(), *others).fit(Classifier(), **loaders())
    run = trainer()
    run.strategy.__class__ = type("Sharded", (FSDPStrategy,), {})
    with pytest.raises(PapaError, match="strategy is Sharded, which shards the constants"):
        LearnedConstants().setup(run, Classifier(), "fit")
