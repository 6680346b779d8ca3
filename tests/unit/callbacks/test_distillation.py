"""Distillation inside a Lightning project that knows nothing of papa_lightning."""

import copy
from typing import Any

import lightning as L
import pytest
import torch
from projects import LENGTH, Classifier, loaders, trainer
from torch import Tensor

from papa_lightning import Distillation, PapaError, SwappedAttention
from papa_lightning.callbacks.distillation import hidden_state_distance


class Plain(Classifier):
    """One step of plain gradient descent; notes what the encoder returned."""

    def __init__(self, **options: Any) -> None:
        super().__init__(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.4)
        self.options, self.returned = options, list[Any]()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        output = self.bert(batch["input_ids"], attention_mask=batch["attention_mask"], **self.options)
        self.returned.append(output)
        return self.classifier(output[0][:, 0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([one for one in self.parameters() if one.requires_grad], lr=1e-2)


def fit(module: L.LightningModule, *callbacks: L.Callback, **arguments: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)
    run = trainer(*callbacks, **arguments)
    data = torch.utils.data.DataLoader(loaders(8)["train_dataloaders"].dataset, batch_size=8)
    run.fit(module, data)
    return run.callback_metrics


def swapped(**options: Any) -> SwappedAttention:
    return SwappedAttention("aft_full", max_length=LENGTH, **options)


def test_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 2, 4, 5, generator=generator)
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]])
    rows = [(level, *place) for level in range(3) for place in ((0, 0), (0, 1), (0, 3), (1, 0))]
    expected = torch.stack([(student[row] - teacher[row]).square().mean() for row in rows]).mean()
    torch.testing.assert_close(hidden_state_distance(list(student), list(teacher), mask), expected)
    whole = hidden_state_distance(list(student), list(teacher), None)
    torch.testing.assert_close(whole, (student - teacher).square().mean())


@pytest.mark.parametrize("first", [True, False])
def test_the_weight_counts_whatever_the_order_of_the_callbacks(first: bool) -> None:
    """After a step the weights differ by the weight times the gradient of the distance."""
    found = []
    for weight in (0.0, 1.0, 3.0):
        module = Plain()
        distilling = [Distillation(weight)] if weight else []
        metrics = fit(module, *([*distilling, swapped()] if first else [swapped(), *distilling]))
        assert ("train/distillation" in metrics) == (weight > 0)
        found.append(module.bert.encoder.layer[1].attention.self.papa.query_shift.detach().clone())
        assert "training_step" not in vars(module)
        assert all(hook.__module__ != Distillation.__module__ for hook in module.bert._forward_hooks.values())
        assert not any("teacher" in name for name in module.state_dict())
    assert (found[1] - found[0]).abs().max() > 1e-6
    torch.testing.assert_close(found[2] - found[0], 3 * (found[1] - found[0]), rtol=1e-2, atol=1e-7)


def test_the_distance_is_that_of_the_original() -> None:
    module, batch = Plain(), next(iter(torch.utils.data.DataLoader(loaders(8)["train_dataloaders"].dataset, 8)))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")} | {"output_hidden_states": True}
    original = copy.deepcopy(module.bert).eval()(**inputs).hidden_states
    logged = fit(module, swapped(), Distillation())["train/distillation"]
    again = Plain()
    torch.manual_seed(1)
    trainer(swapped(), max_epochs=0).fit(again, loaders()["train_dataloaders"])
    student = again.bert.train()(**inputs).hidden_states
    torch.testing.assert_close(logged, hidden_state_distance(student[1:], original[1:], batch["attention_mask"]))


def test_a_step_that_accumulates_and_returns_a_mapping_comes_nearer() -> None:
    class Mapped(Plain):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
            return {"loss": super().training_step(batch, batch_idx), "more": 1}

    first = fit(Mapped(), swapped(), Distillation())["train/distillation"]
    last = fit(Mapped(), swapped(learning_rate=0.5), Distillation(5.0), max_epochs=30)["train/distillation"]
    assert last < 0.8 * first


def test_a_skipped_step_leaves_nothing_behind() -> None:
    class Skipping(Plain):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 0 else loss

    class Leaving(Plain):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
            return None if batch_idx == 0 else super().training_step(batch, batch_idx)

    found = []
    for kind in (Skipping, Leaving):
        run = trainer(swapped(), Distillation())
        run.fit(kind(), torch.utils.data.DataLoader(loaders(8)["train_dataloaders"].dataset, batch_size=4))
        found.append(run.callback_metrics["train/distillation"])
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("options", [{}, {"return_dict": False}, {"output_hidden_states": True}])
def test_the_project_gets_what_it_asks_its_encoder_for(options: dict[str, Any]) -> None:
    plain, distilled = Plain(**options), Plain(**options)
    fit(plain, swapped())
    fit(distilled, swapped(), Distillation())
    one, other = plain.returned[-1], distilled.returned[-1]
    assert type(one) is type(other)
    assert len(one) == len(other)
    assert torch.equal(one[0], other[0])


def test_a_teacher_from_a_folder(tmp_path: Any) -> None:
    Plain().bert.save_pretrained(tmp_path)
    expected = fit(Plain(), swapped(), Distillation())["train/distillation"]
    found = fit(Plain(), swapped(), Distillation(teacher=str(tmp_path)))["train/distillation"]
    torch.testing.assert_close(found, expected)


def test_refusals() -> None:
    class Manual(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(PapaError, match=r"weight is 0\.0, but must be above 0"):
        Distillation(0.0)
    with pytest.raises(PapaError, match="automatic_optimization of Manual is False"):
        fit(Manual(), swapped(), Distillation())
    frozen = Plain()
    frozen.bert.requires_grad_(False)
    with pytest.raises(PapaError, match=r"the weight of distillation is 1\.0, but nothing in the encoder learns"):
        fit(frozen, Distillation(1.0))
    assert "training_step" not in vars(frozen)
