"""Validation data that would fail after an epoch are reported before the calibration."""

from typing import Any

import lightning as L
import pytest
import torch
from projects import LENGTH, Classifier, Sentences, loaders, trainer
from torch import Tensor
from torch.utils.data import DataLoader

from papa_lightning import ConstantAttention, HeadGates, PapaError
from papa_lightning.encoders import is_calibrated


def rows(*lengths: int, token: int = 5) -> list[dict[str, Tensor]]:
    return [
        {
            "input_ids": torch.full((length,), token),
            "attention_mask": torch.ones(length, dtype=torch.long),
            "label": torch.tensor(0),
        }
        for length in lengths
    ]


class Counting(ConstantAttention):
    asked = 0

    def calibration_batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
        self.asked += 1
        return super().calibration_batches(trainer, pl_module)


class Project(Classifier):
    """Validates with what its class says."""

    def __init__(self, use: Any = None) -> None:
        super().__init__()
        self.use = use
        self.scores: list[Tensor] = []

    def on_validation_epoch_start(self) -> None:
        self.rounds = getattr(self, "rounds", 0) + 1

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.scores.append(self.use(self, batch) if self.use else self(batch).sum())
        assert self.rounds


def fit(module: Any, validation: Any, callback: Any = None, **arguments: Any) -> None:
    run = trainer(callback or Counting(max_length=LENGTH), **{"num_sanity_val_steps": 0, **arguments})
    run.fit(module, loaders()["train_dataloaders"], validation)


def without_mask(module: Any, batch: Any) -> Tensor:
    return module.bert(batch["input_ids"]).last_hidden_state.sum()


LATE = [DataLoader(rows(4, 9, 4, 15, 4))]
CASES: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "late": (None, LATE, {}, "in the validation data, batch 3 has sequences of 15 tokens, but max_length is 12"),
    "second": (None, [DataLoader(rows(4)), *LATE], {}, "in the validation data, batch 3 has sequences of 15 tokens"),
    "by name": (None, {"a": DataLoader(rows(4)), "b": LATE[0]}, {}, "in the validation data, batch 3 has sequences of"),
    "after the sanity check": (
        None,
        LATE,
        {"num_sanity_val_steps": 2},
        "in the validation data, batch 3 has sequences",
    ),
    "no mask": (without_mask, DataLoader(rows(4, 4)), {}, "in the validation data, batch 0 has no attention_mask"),
    "another tokenizer": (
        None,
        DataLoader(rows(4, token=99)),
        {},
        "in the validation data, batch 0: input_ids has the value 99",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_found_before_the_pass(case: str) -> None:
    use, validation, arguments, message = CASES[case]
    module, callback = Project(use), Counting(max_length=LENGTH)
    with pytest.raises(PapaError, match=message):
        fit(module, validation, callback, **arguments)
    assert callback.asked == 0
    assert not is_calibrated(module.bert)


def test_constants_from_a_file_are_checked_too(tmp_path: Any) -> None:
    from papa_lightning import calibrate

    path = str(calibrate(Classifier().bert, DataLoader(Sentences(4)), LENGTH).save(tmp_path / "c.safetensors"))
    with pytest.raises(PapaError, match="in the validation data, batch 3 has sequences of 15"):
        fit(Project(), LATE, ConstantAttention(constants=path))
    with pytest.raises(PapaError, match="in the validation data, batch 3 has sequences of 15"):
        fit(Project(), LATE, HeadGates(constants=path))


@pytest.mark.parametrize(
    ("use", "validation", "arguments"),
    [
        (lambda m, b: m({name: b[name][:, :8] for name in ("input_ids", "attention_mask")}).sum(), LATE, {}),
        (None, LATE, {"limit_val_batches": 2}),
        (None, LATE, {"limit_val_batches": 0}),
        (None, None, {}),
    ],
    ids=["cut in the step", "beyond the limit", "no validation", "no loader"],
)
def test_what_validation_does_not_stumble_over_is_no_fault(use: Any, validation: Any, arguments: Any) -> None:
    module = Project(use)
    fit(module, validation, **arguments)
    assert is_calibrated(module.bert)


def test_observing_allows_longer_rows_in_validation() -> None:
    fit(Project(), LATE, ConstantAttention(max_length=LENGTH, heads=[]))


def test_the_look_leaves_no_trace() -> None:
    module = Project()
    fit(module, DataLoader(rows(4, 9)))
    assert (len(module.scores), module.rounds) == (2, 1)


def test_a_validation_step_that_cannot_run_alone_is_left_to_validation() -> None:
    def needs_epoch(module: Any, batch: Any) -> Tensor:
        return module.trainer.callback_metrics["loss"] + 0

    module = Project(needs_epoch)
    fit(module, DataLoader(rows(4)))
    assert is_calibrated(module.bert)
