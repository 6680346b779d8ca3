"""Training of probes on features: what a seed gives, and that it is what the Trainer's path gives."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import get_scheduler
from unit.study import feature_cases as cases

from papa_lightning.errors import PapaError
from papa_lightning.runtime import threads_of_torch
from papa_lightning.study import training
from papa_lightning.study.draws import SeededDropout
from papa_lightning.study.features.features import LiveFeatures, StoredFeatures, store_features
from papa_lightning.study.training import ProbeSettings, TrainedProbe, initial_probe, train_probes

HALF = [(0, 0), (0, 1), (1, 2), (1, 3)]
FAST = {"max_epochs": 3, "learning_rate": 1e-2, "batch_size": 4}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return cases.save_encoder(str(tmp_path_factory.mktemp("training_encoder")))


def store(task: Any, rows: Any, folder: Path, **arguments: Any) -> StoredFeatures:
    return store_features(task, rows, folder, budget_bytes=10**9, **arguments)


def settings(**changes: Any) -> ProbeSettings:
    return ProbeSettings(**(FAST | changes))


def assert_same(one: TrainedProbe, other: TrainedProbe, exactly: bool = True) -> None:
    tolerance = {"atol": 0, "rtol": 0} if exactly else {"atol": 1e-5, "rtol": 0}
    assert (one.seed, one.scores.keys()) == (other.seed, other.scores.keys())
    torch.testing.assert_close(one.scores, other.scores, **tolerance)
    torch.testing.assert_close(one.probe.state_dict(), other.probe.state_dict(), **tolerance)


class Recorded:
    """Features that note which sequences were asked for."""

    def __init__(self, features: Any) -> None:
        self.features, self.reading, self.index = features, features.reading, features.index
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, sequences: Tensor, device: torch.device) -> Any:
        self.asked.append(sequences.tolist())
        return self.features.batch(sequences, device)


@pytest.mark.parametrize("heads", [None, HALF, "all"])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_stored_is_live(encoder: str, tmp_path: Path, kind: str, layout: str, heads: Any) -> None:
    task = cases.make_task(encoder, kind, heads)
    train, evaluation = cases.make_rows(13, kind, layout), cases.make_rows(7, kind, layout, seed=1)
    live = [LiveFeatures(task, rows) for rows in (train, evaluation)]
    stored = [store(task, rows, tmp_path / str(len(rows)), batch_size=3) for rows in (train, evaluation)]
    (one,), (other,) = (
        train_probes(task, features[0], {"": features[1]}, [5], settings(dropout=0.3, learning_rate=1e-3))
        for features in (live, stored)
    )
    assert_same(one, other, exactly=False)


@pytest.mark.parametrize("schedule", [{}, {"schedule": "linear", "warmup_share": 0.25}])
@pytest.mark.parametrize("kind", cases.KINDS)
def test_equals_a_plain_loop_over_padded_hidden_states(
    encoder: str, tmp_path: Path, kind: str, schedule: dict[str, Any]
) -> None:
    task, rows = cases.make_task(encoder, kind, HALF), cases.make_rows(10, kind, "segment")
    train = Recorded(store(task, rows, tmp_path / "f"))
    (trained,) = train_probes(task, train, {}, [3], settings(dropout=0.0, weight_decay=0.1, **schedule))
    torch.manual_seed(3)
    probe = task.configure_probe().train()
    probe.dropout = nn.Identity()
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2, weight_decay=0.1)
    moves = get_scheduler("linear" if schedule else "constant", optimizer, round(0.25 * 9), 9)
    assert len(train.asked) == 9
    for numbers in train.asked:
        batch = cases.as_batch(rows, numbers)
        logits = cases.padded_logits(task, probe, batch)
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), batch["labels"].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moves.step()
    for name, value in trained.probe.state_dict().items():
        torch.testing.assert_close(value, probe.state_dict()[name], atol=1e-5, rtol=1e-5)
    start = initial_probe(task, 3).state_dict()
    assert (trained.probe.state_dict()["dense.weight"] - start["dense.weight"]).abs().max() > 1e-3


def test_every_example_once_an_epoch_in_an_order_of_the_seed(encoder: str) -> None:
    task = cases.make_task(encoder, "mean")
    features = LiveFeatures(task, cases.make_rows(10, "mean"))
    orders = {}
    for seed, dropout in ((1, 0.0), (1, 0.5), (2, 0.0)):
        train = Recorded(features)
        train_probes(task, train, {}, [seed], settings(max_epochs=2, dropout=dropout))
        assert [len(numbers) for numbers in train.asked] == [4, 4, 2] * 2
        epochs = [[one for batch in half for one in batch] for half in (train.asked[:3], train.asked[3:])]
        assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
        assert epochs[0] != epochs[1]
        orders[seed, dropout] = epochs
    assert orders[1, 0.0] == orders[1, 0.5] != orders[2, 0.0]


@pytest.mark.parametrize("kind", cases.KINDS)
def test_a_seed_gives_the_same_bits_alone_and_together(encoder: str, tmp_path: Path, kind: str) -> None:
    task = cases.make_task(encoder, kind)
    train, evaluation = store(task, cases.make_rows(13, kind), tmp_path / "t"), cases.make_rows(7, kind, seed=1)
    evaluations = {"": store(task, evaluation, tmp_path / "e")}
    together = train_probes(task, train, evaluations, [2, 0, 1], settings())
    torch.manual_seed(99)
    torch.rand(7)
    again = train_probes(task, StoredFeatures(tmp_path / "t"), evaluations, [1, 2], settings())
    assert_same(again[0], together[2])
    assert_same(again[1], together[0])
    weights = [trained.probe.dense.weight for trained in together]
    assert not torch.equal(weights[0], weights[1])


@pytest.fixture
def two_threads() -> Iterator[None]:
    with threads_of_torch(2):
        yield


def test_numbers_do_not_depend_on_the_number_of_threads(encoder: str, tmp_path: Path) -> None:
    task = cases.make_task(encoder, "layerwise")
    train = store(task, cases.make_rows(13, "layerwise"), tmp_path / "f")
    several = []
    for number in (1, 2, 3):
        with threads_of_torch(number):
            several.append(train_probes(task, train, {"": train}, [0, 1, 2], settings()))
            assert torch.get_num_threads() == number
    for found in several[1:]:
        for one, other in zip(several[0], found, strict=True):
            assert_same(one, other)


@pytest.mark.usefixtures("two_threads")
def test_small_probes_on_stored_features_train_side_by_side(encoder: str, tmp_path: Path) -> None:
    task = cases.make_task(encoder, "mean")
    rows = cases.make_rows(8, "mean")
    stored, live = store(task, rows, tmp_path / "f"), LiveFeatures(task, rows)
    seen: list[tuple[int, int]] = []

    def note(done: int) -> None:
        seen.append((threading.get_ident(), torch.get_num_threads()))

    train_probes(task, stored, {}, [0, 1, 2], settings(), progress=note)
    assert threading.get_ident() not in {thread for thread, _ in seen}
    assert {number for _, number in seen} == {1}
    seen.clear()
    train_probes(task, live, {}, [0, 1, 2], settings(), progress=note)
    assert set(seen) == {(threading.get_ident(), 2)}


@pytest.mark.usefixtures("two_threads")
def test_seeds_take_turns_and_no_more_begin_than_fit(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = cases.make_task(encoder, "mean")
    train = store(task, cases.make_rows(8, "mean"), tmp_path / "f")
    weights = sum(parameter.numel() for parameter in task.probe.parameters())
    begun: list[int] = []
    make = training.initial_probe
    monkeypatch.setattr(training, "_AT_ONCE", 2 * weights)
    monkeypatch.setattr(training, "initial_probe", lambda task, seed: begun.append(seed) or make(task, seed))
    at_step: list[int] = []
    found = train_probes(task, train, {}, [3, 1, 2], settings(), progress=lambda done: at_step.append(len(begun)))
    assert [one.seed for one in found] == [3, 1, 2]
    assert sorted(begun) == [1, 2, 3]
    assert max(at_step[: 2 * settings().steps(8)]) == 2


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, also where the tests run in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("two_threads", "ctrl_c")
def test_an_interruption_ends_all_seeds_at_once(encoder: str, tmp_path: Path) -> None:
    task = cases.make_task(encoder, "mean")
    train = store(task, cases.make_rows(8, "mean"), tmp_path / "f")
    done: list[int] = []

    def interrupt(number: int) -> None:
        done.append(number)
        if number == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_probes(task, train, {}, [0, 1, 2], settings(max_epochs=10_000), progress=interrupt)
    assert len(done) < 20_000
    assert torch.get_num_threads() == 2


def test_random_numbers_and_the_probe_of_the_task_are_left_alone(encoder: str) -> None:
    task = cases.make_task(encoder, "layerwise")
    before, state = {name: value.clone() for name, value in task.state_dict().items()}, torch.get_rng_state()
    train = LiveFeatures(task, cases.make_rows(6, "layerwise"))
    (trained,) = train_probes(task, train, {"": train}, [0], settings())
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(dict(task.state_dict()), before, atol=0, rtol=0)
    assert not trained.probe.training
    assert [type(module) for module in trained.probe.children()] == [nn.Linear, nn.Dropout, nn.Linear]
    assert trained.probe.dropout.p == 0.1
    task.probe.load_state_dict(trained.probe.state_dict())
    assert trained.seconds > 0


def test_dropout_of_the_settings_is_applied(encoder: str) -> None:
    task = cases.make_task(encoder, "mean")
    train = LiveFeatures(task, cases.make_rows(8, "mean"))
    with_dropout, without = (train_probes(task, train, {}, [0], settings(dropout=p))[0].probe for p in (0.5, 0.0))
    assert not torch.allclose(with_dropout.dense.weight, without.dense.weight, atol=1e-3)


def test_seeded_dropout() -> None:
    dropout = SeededDropout(0.25, torch.Generator().manual_seed(0))
    dropped = dropout(torch.ones(100, 100))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert not torch.equal(dropout(torch.ones(100, 100)), dropped)


@pytest.mark.parametrize("kind", cases.KINDS)
def test_learns(encoder: str, tmp_path: Path, kind: str) -> None:
    task = cases.make_task(encoder, kind)
    train = store(task, cases.make_rows(40, kind), tmp_path / "f")
    (trained,) = train_probes(task, train, {"": train}, [0], settings(max_epochs=40, dropout=0.0))
    assert trained.scores["token_accuracy" if kind == "tokens" else "accuracy"] > 0.8


class Data(L.LightningDataModule):
    validation_names = ("matched", "mismatched")

    def __init__(self, *splits: Any) -> None:
        super().__init__()
        self.splits = splits

    def val_dataloader(self) -> list[DataLoader[Any]]:
        return [DataLoader(rows.with_format("torch"), batch_size=5) for rows in self.splits]


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_scores_are_those_of_the_trainer(encoder: str, tmp_path: Path, kind: str, layout: str) -> None:
    task = cases.make_task(encoder, kind, HALF)
    splits = [cases.make_rows(count, kind, layout, seed=count) for count in (9, 7)]
    first, second = (store(task, rows, tmp_path / str(number)) for number, rows in enumerate(splits))
    (trained,) = train_probes(task, first, {"": first, "mismatched": second}, [0], settings())
    task.probe.load_state_dict(trained.probe.state_dict())
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = L.Trainer(accelerator="cpu", devices=1, **dict.fromkeys(quiet, False))
    trainer.validate(task, datamodule=Data(*splits), verbose=False)
    expected = {name.removeprefix("val/"): float(value) for name, value in trainer.callback_metrics.items()}
    assert trained.scores == pytest.approx(expected, abs=1e-6)
    assert len(expected) == 6
    assert {"loss", "loss/mismatched"} <= expected.keys()


@pytest.mark.parametrize("kind", ["layerwise", "tokens"])
def test_the_best_epoch_is_the_highest_score_of_shorter_trainings(encoder: str, tmp_path: Path, kind: str) -> None:
    task = cases.make_task(encoder, kind)
    train, first, second = (store(task, cases.make_rows(n, kind, seed=n), tmp_path / str(n)) for n in (20, 9, 7))
    sets, score = {"": first, "mismatched": second}, task.score_name.removeprefix("val/")
    # Without a schedule, a training of k epochs begins like one of more.
    shorter = [train_probes(task, train, sets, [4], settings(max_epochs=epochs))[0] for epochs in range(1, 6)]
    (trained,) = train_probes(task, train, sets, [4], settings(max_epochs=5, best_epoch=True))
    scores = [one.scores[score] for one in shorter]
    best = shorter[scores.index(max(scores))]
    assert len(set(scores)) > 1
    extra = {"epoch/best": 1.0 + scores.index(max(scores))}
    extra |= {f"{name}/best": value for name, value in best.scores.items() if "/" not in name}
    assert trained.scores == pytest.approx(shorter[-1].scores | extra, abs=1e-6)
    assert list(trained.predictions) == ["", "mismatched", "best"]
    torch.testing.assert_close(trained.predictions["best"].logits, best.predictions[""].logits)
    torch.testing.assert_close(trained.probe.state_dict(), shorter[-1].probe.state_dict(), atol=0, rtol=0)


def test_progress_counts_steps_of_all_seeds(encoder: str) -> None:
    task, done = cases.make_task(encoder, "mean"), []
    train = LiveFeatures(task, cases.make_rows(10, "mean"))
    assert train_probes(task, train, {"": train}, [0, 1], settings(), progress=done.append)[0].scores
    assert done == list(range(1, 2 * settings().steps(10) + 1))
    assert settings().steps(10) == 9


def test_loss_that_is_not_finite_names_epoch_and_learning_rate(encoder: str) -> None:
    task = cases.make_task(encoder, "mean")
    train = LiveFeatures(task, cases.make_rows(10, "mean"))
    with pytest.raises(PapaError, match=r"loss of seed 7 is not finite in epoch 1 with learning_rate=1e\+38"):
        train_probes(task, train, {}, [7], settings(learning_rate=1e38))


def test_features_of_another_probe_are_refused(encoder: str) -> None:
    task, rows = cases.make_task(encoder, "layerwise"), cases.make_rows(4, "layerwise")
    other = LiveFeatures(cases.make_task(encoder, "mean"), rows)
    with pytest.raises(PapaError, match="train holds features as PooledReading"):
        train_probes(task, other, {}, [0], settings())
    with pytest.raises(PapaError, match=r"evaluations\[''\] holds features as PooledReading"):
        train_probes(task, LiveFeatures(task, rows), {"": other}, [0], settings())


def test_first_evaluation_has_no_name(encoder: str) -> None:
    task = cases.make_task(encoder, "mean")
    train = LiveFeatures(task, cases.make_rows(4, "mean"))
    with pytest.raises(PapaError, match="evaluations starts with 'validation'"):
        train_probes(task, train, {"validation": train}, [0], settings())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_epochs": 0}, "max_epochs is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"schedule": "step"}, "schedule is 'step'"),
        ({"warmup_share": 1.5}, "warmup_share is 1.5"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    build: Callable[..., ProbeSettings] = ProbeSettings
    with pytest.raises(PapaError, match=f"probe.{message}"):
        build(**changes)
