"""Regimes: which of probe, encoder and constants are trained, and constants stay distributions."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from papa_lightning import AttentionConstants, ConstantAttention, SequenceClassificationTask
from papa_lightning.callbacks.learned_constants import learning_mixers, project_constants, project_rows
from papa_lightning.encoders import swapped_layers
from papa_lightning.errors import PapaError
from papa_lightning.tasks.evaluation import nth_loader, unrepeated_rows
from papa_lightning.tasks.regimes import REGIMES

LENGTH = 8
Make = Callable[..., L.Trainer]
WITH_CONSTANTS = [name for name, learners in REGIMES.items() if learners.constants]


@pytest.fixture(scope="module")
def constants_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    values = torch.rand(2, 4, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0))
    values[:, :, 5] = 0.0  # a query that calibration never saw
    values[:, :, 2, 3] = 0.0
    path = tmp_path_factory.mktemp("constants") / "constants.safetensors"
    AttentionConstants(values, torch.ones(LENGTH, LENGTH)).save(path)
    return str(path)


def make_task(encoder: str, **arguments: Any) -> SequenceClassificationTask:
    torch.manual_seed(1)
    return SequenceClassificationTask(encoder, **({"num_labels": 2, "max_length": LENGTH} | arguments))


def make_loader(count: int = 8, batch_size: int = 4) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    rows: list[dict[str, Tensor]] = []
    for number in range(count):
        ids = torch.randint(5, 40, (LENGTH,), generator=generator)
        mask = (torch.arange(LENGTH) < 5 + number % 3).long()
        rows.append(
            {"input_ids": ids, "attention_mask": mask, "labels": ids[1] % 2, "example_id": torch.tensor(number)}
        )
    return DataLoader(rows, batch_size=batch_size)


def learning(task: SequenceClassificationTask) -> set[str]:
    return {
        "constants" if name.endswith("papa.constants") else name.split(".")[0]
        for name, one in task.named_parameters()
        if one.requires_grad
    }


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("source", ["file", "callback"])
def test_what_learns(regime: str, source: str, letters_folder: str, constants_file: str, quiet_trainer: Make) -> None:
    """Constants that a callback calibrates are as those from a file: they exist before the optimizer is made."""
    arguments = {"constants": constants_file} if source == "file" else {}
    callbacks = [ConstantAttention(max_length=LENGTH)] if source == "callback" else []
    task = make_task(letters_folder, regime=regime, learning_rate=1e-2, **arguments)
    trainer = quiet_trainer(max_steps=1, callbacks=callbacks)
    before = {name: value.clone() for name, value in task.named_parameters()}
    trainer.fit(task, make_loader(), make_loader())
    wanted = {name for name, learns in REGIMES[regime]._asdict().items() if learns}
    assert learning(task) == wanted
    grouped = {id(one) for group in trainer.optimizers[0].param_groups for one in group["params"]}
    assert grouped == {id(one) for one in task.parameters() if one.requires_grad}
    changed = {
        name for name, value in task.named_parameters() if name in before and not torch.equal(value, before[name])
    }
    assert {name.split(".")[0] for name in changed if not name.endswith("papa.constants")} == wanted - {"constants"}
    unused = [name for name, one in task.named_parameters() if one.requires_grad and one.grad is None]
    assert unused == []


@pytest.mark.parametrize("regime", WITH_CONSTANTS)
def test_constants_stay_distributions(
    regime: str, letters_folder: str, constants_file: str, quiet_trainer: Make
) -> None:
    task = make_task(
        letters_folder, regime=regime, constants=constants_file, learning_rate=1e-3, constants_learning_rate=0.1
    )
    sums, start = [], [layer.constants.detach().clone() for layer in swapped_layers(task.encoder)]

    class Watch(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            for layer in swapped_layers(task.encoder):
                assert (layer.constants >= 0).all()
                sums.append(layer.constants.detach().sum(dim=-1))

        on_train_batch_end = on_train_batch_start

    quiet_trainer(max_epochs=3, callbacks=[Watch()], gradient_clip_val=1.0).fit(task, make_loader(), make_loader())
    expected = torch.ones(4, LENGTH)
    expected[:, 5] = 0.0  # nothing is known about it, so nothing is made up
    for one in sums:
        torch.testing.assert_close(one, expected)
    for layer, before in zip(swapped_layers(task.encoder), start, strict=True):
        assert not torch.allclose(layer.constants, project_rows(before), atol=1e-3)
        assert torch.isfinite(layer.constants).all()


def test_dividing_rows_by_their_sums_changes_nothing(letters_folder: str, constants_file: str) -> None:
    task = make_task(letters_folder, regime="constants", constants=constants_file)
    batch = next(iter(make_loader()))
    before = task.encode(batch)[-1]
    project_constants(learning_mixers(task.encoder))
    torch.testing.assert_close(task.encode(batch)[-1], before)


def test_trained_constants_travel_in_the_checkpoint(letters_folder: str, quiet_trainer: Make, tmp_path: Path) -> None:
    task = make_task(letters_folder, regime="probe_constants", constants_learning_rate=0.1)
    trainer = quiet_trainer(max_steps=2, callbacks=[ConstantAttention(max_length=LENGTH)])
    trainer.fit(task, make_loader())
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    loaded = SequenceClassificationTask.load_from_checkpoint(tmp_path / "task.ckpt", regime="constants")
    assert learning(loaded) == {"constants"}
    for one, other in zip(swapped_layers(task.encoder), swapped_layers(loaded.encoder), strict=True):
        assert torch.equal(one.constants, other.constants)
    quiet_trainer(max_steps=1).fit(loaded, make_loader())


def test_constants_have_a_group_of_their_own(letters_folder: str, constants_file: str) -> None:
    arguments = {"constants": constants_file, "learning_rate": 0.1, "weight_decay": 0.3}
    task = make_task(letters_folder, regime="probe_constants", constants_learning_rate=0.2, **arguments)
    rest, own = task.configure_optimizers().param_groups
    assert (rest["lr"], rest["weight_decay"], own["lr"], own["weight_decay"]) == (0.1, 0.3, 0.2, 0.0)
    (only,) = make_task(letters_folder, regime="constants", **arguments).configure_optimizers().param_groups
    assert (only["lr"], only["weight_decay"], len(only["params"])) == (0.1, 0.0, 2)


def test_the_callbacks_leave_the_trainer_with_their_task(
    letters_folder: str, constants_file: str, quiet_trainer: Make
) -> None:
    trainer = quiet_trainer(max_steps=1)
    for regime in ("probe_constants", "probe"):
        task = make_task(letters_folder, regime=regime, constants=constants_file)
        assert len(task.configure_callbacks()) == (regime == "probe_constants")
        before = list(vars(trainer)["callbacks"])
        trainer.fit(task, make_loader())
        assert vars(trainer)["callbacks"] == before


def test_layers_without_constant_heads_have_nothing_to_learn(letters_folder: str, constants_file: str) -> None:
    task = make_task(letters_folder, regime="constants", constants=constants_file, heads=[[1, 2]])
    assert [one.shape for one in task.parameters() if one.requires_grad] == [(1, LENGTH, LENGTH)]


@pytest.mark.parametrize("heads", [None, []])
def test_no_constants_to_learn(heads: list[int] | None, letters_folder: str, quiet_trainer: Make) -> None:
    callbacks = [] if heads is None else [ConstantAttention(max_length=LENGTH, heads=heads)]
    with pytest.raises(PapaError, match=r"regime is 'constants', but the encoder has no constant heads"):
        quiet_trainer(max_steps=1, callbacks=callbacks).fit(
            make_task(letters_folder, regime="constants"), make_loader()
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regime": "everything"}, "regime is 'everything': choose from probe, fine_tune"),
        ({"regime": "constants", "freeze_encoder": False}, "freeze_encoder is False, but regime='constants'"),
        ({"constants_learning_rate": 0.0}, "constants_learning_rate is 0.0"),
        ({"pooling": "max"}, "pooling is 'max', but must be one of 'layerwise', 'mean', 'class_token'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str, letters_folder: str) -> None:
    with pytest.raises(PapaError, match=message):
        make_task(letters_folder, **arguments)


def test_frozen_encoders_stay_in_eval_mode(letters_folder: str) -> None:
    for regime, learners in REGIMES.items():
        assert make_task(letters_folder, regime=regime).encoder.training == learners.encoder


@pytest.mark.parametrize("pooling", ["mean", "class_token"])
def test_other_poolings(pooling: str, letters_folder: str, quiet_trainer: Make) -> None:
    task, batch = make_task(letters_folder, pooling=pooling).eval(), next(iter(make_loader()))
    last, mask = task.encode(batch)[-1], batch["attention_mask"]
    vectors = torch.stack([row[real.bool()].mean(dim=0) for row, real in zip(last, mask, strict=True)])
    if pooling == "class_token":
        vectors = last[:, 0]
    expected = task.probe.classifier(torch.tanh(task.probe.dense(vectors)))
    torch.testing.assert_close(task(batch), expected)
    torch.testing.assert_close(task({name: value[:1] for name, value in batch.items()}), expected[:1])
    shorter = {name: value[:, :7] if value.dim() == 2 else value for name, value in batch.items()}
    torch.testing.assert_close(task(shorter), expected)  # only padding was cut off
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(task.train(), make_loader(3, 1), make_loader(3, 1))
    assert torch.isfinite(trainer.callback_metrics["val/loss"])


def test_mean_of_no_token_is_zero(letters_folder: str) -> None:
    task = make_task(letters_folder, pooling="mean").eval()
    batch = next(iter(make_loader())) | {"attention_mask": torch.zeros(4, LENGTH, dtype=torch.long)}
    assert torch.isfinite(task(batch)).all()


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("count", range(1, 14))
@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_every_example_counts_once(count: int, processes: int, batch_size: int, drop_last: bool) -> None:
    seen: list[int] = []
    for rank in range(processes):
        sampler = torch.utils.data.DistributedSampler(range(count), processes, rank, shuffle=False)
        loader = DataLoader(range(count), batch_size=batch_size, sampler=sampler, drop_last=drop_last)
        for number, batch in enumerate(loader):
            seen += batch[: unrepeated_rows(loader, number, len(batch))].tolist()
    assert len(set(seen)) == len(seen)
    assert drop_last or sorted(seen) == list(range(count))


def test_loaders_of_any_form() -> None:
    combined = L.pytorch.utilities.CombinedLoader({"a": [1], "b": [2]})
    assert [nth_loader(loaders, 1) for loaders in (combined, [[1], [2]], {"a": [1], "b": [2]})] == [[2]] * 3
    loader = DataLoader(range(3))
    assert nth_loader(loader, 0) is loader


def test_a_frozen_encoder_is_no_reason_to_warn_and_no_filter_says_so(letters_folder: str, quiet_trainer: Make) -> None:
    modes: list[bool] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            modes.append(pl_module.encoder.training)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        quiet_trainer(max_epochs=1, callbacks=[Watch()]).fit(make_task(letters_folder), make_loader(), make_loader())
        assert warnings.filters == before
    assert not [one for one in caught if "in eval mode" in str(one.message)]
    assert modes == [False, False]
