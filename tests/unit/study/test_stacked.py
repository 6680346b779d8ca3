"""Training of the probes of all seeds as one module: the numbers of each seed by itself."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from unit.study import feature_cases as cases

from papa_lightning.errors import PapaError
from papa_lightning.study import stacked, training
from papa_lightning.study.draws import SeededDropout, draw_kept, draw_orders
from papa_lightning.study.features import features
from papa_lightning.study.features.features import ResidentFeatures, StoredFeatures, store_features
from papa_lightning.study.features.folder import table_bytes
from papa_lightning.study.training import FeatureSet, ProbeSettings, TrainedProbe, train_probes, train_sets

CPU = torch.device("cpu")
SEEDS = [2, 0, 1]
RECIPES: list[dict[str, Any]] = [
    {"dropout": 0.0},
    {"dropout": 0.3, "schedule": "linear", "warmup_share": 0.25},
    {"dropout": 0.1, "schedule": "cosine", "weight_decay": 0.5},
    {"dropout": 0.5, "schedule": "constant", "warmup_share": 0.5, "batch_size": 13},
    {"dropout": 0.2, "batch_size": 50},
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return cases.save_encoder(str(tmp_path_factory.mktemp("stacked_encoder")))


def store(task: Any, count: int, kind: str, folder: Path, layout: str = "plain") -> StoredFeatures:
    rows = cases.make_rows(count, kind, layout, seed=count)
    return store_features(task, rows, folder / str(count), budget_bytes=10**9)


def settings(**changes: Any) -> ProbeSettings:
    return ProbeSettings(**({"max_epochs": 3, "learning_rate": 3e-4, "batch_size": 4} | changes))


def assert_close(one: TrainedProbe, other: TrainedProbe) -> None:
    assert (one.seed, one.scores.keys()) == (other.seed, other.scores.keys())
    torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.probe.state_dict(), other.probe.state_dict(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_all_seeds_at_once_are_each_by_itself(encoder: str, tmp_path: Path, kind: str, recipe: dict[str, Any]) -> None:
    task = cases.make_task(encoder, kind)
    train, first, second = (store(task, count, kind, tmp_path, "segment") for count in (26, 9, 7))
    each, together = (
        train_probes(task, one, {"": two, "other": three}, SEEDS, settings(**recipe))
        for one, two, three in ((train, first, second), (train.on(CPU), first.on(CPU), second.on(CPU)))
    )
    for one, other in zip(each, together, strict=True):
        assert_close(one, other)
    assert (together[0].probe.dense.weight - together[1].probe.dense.weight).abs().max() > 1e-3


@pytest.mark.parametrize("kind", cases.KINDS)
def test_all_choices_of_heads_at_once_are_each_by_itself(encoder: str, tmp_path: Path, kind: str) -> None:
    tasks = [cases.make_task(encoder, kind, heads) for heads in (None, [(0, 0), (1, 2)], "all")]
    stored = [store(task, 14, kind, tmp_path / str(number)) for number, task in enumerate(tasks)]
    stored.append(store(tasks[0], 13, kind, tmp_path))
    sets = [FeatureSet(one.on(CPU), {"": one.on(CPU)}) for one in stored]
    done = list[int]()
    found = train_sets(tasks[0], sets, SEEDS, settings(dropout=0.2), progress=done.append)
    assert len(done) == 6  # three epochs of what is of the same rows, and of the last
    for one, together in zip(stored, found, strict=True):
        for each, other in zip(
            train_probes(tasks[0], one, {"": one}, SEEDS, settings(dropout=0.2)), together, strict=True
        ):
            assert_close(each, other)
    assert (found[0][0].probe.dense.weight - found[1][0].probe.dense.weight).abs().max() > 1e-5


def test_no_more_probes_at_once_than_fit(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = cases.make_task(encoder, "mean")
    train = store(task, 10, "mean", tmp_path)
    sets = [FeatureSet(one, {}) for one in (train.on(CPU), train.on(CPU), train.on(CPU), train, train.on(CPU))]
    weights = sum(parameter.numel() for parameter in task.probe.parameters())
    monkeypatch.setattr(training, "_STACKED", 2 * len(SEEDS) * weights)
    assert [len(part) for part in training._parts(task, sets, len(SEEDS))] == [2, 1, 1, 1]
    assert len(train_sets(task, sets, SEEDS, settings())) == 5
    assert train_sets(task, sets[:1], [], settings()) == [[]]


def test_few_steps_at_once(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = cases.make_task(encoder, "tokens")
    train, found = store(task, 26, "tokens", tmp_path).on(CPU), []
    for size in (2**26, 3000, 1):
        monkeypatch.setattr(stacked, "_DRAWN", size)
        found.append(train_probes(task, train, {"": train}, SEEDS, settings(dropout=0.2)))
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            torch.testing.assert_close(dict(one.probe.state_dict()), dict(other.probe.state_dict()), atol=0, rtol=0)


def test_the_best_epoch_of_each_probe(encoder: str, tmp_path: Path) -> None:
    task, recipe = cases.make_task(encoder, "mean"), settings(max_epochs=5, best_epoch=True)
    sets = [store(task, count, "mean", tmp_path) for count in (20, 11)]
    each = train_probes(task, sets[0], {"": sets[1]}, SEEDS, recipe)
    together = train_probes(task, sets[0].on(CPU), {"": sets[1].on(CPU)}, SEEDS, recipe)
    for one, other in zip(each, together, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)
        torch.testing.assert_close(one.predictions["best"].logits, other.predictions["best"].logits, atol=1e-4, rtol=0)


def test_progress_counts_steps_of_all_seeds(encoder: str, tmp_path: Path) -> None:
    task, done = cases.make_task(encoder, "mean"), list[int]()
    train = store(task, 10, "mean", tmp_path).on(CPU)
    train_probes(task, train, {}, SEEDS, settings(), progress=done.append)
    assert done == [9, 18, 27]


def test_loss_that_is_not_finite_names_the_seed(encoder: str, tmp_path: Path) -> None:
    task = cases.make_task(encoder, "mean")
    train = store(task, 10, "mean", tmp_path).on(CPU)
    with pytest.raises(PapaError, match=r"loss of seed 2 is not finite in epoch 1 with learning_rate=1e\+38"):
        train_probes(task, train, {}, SEEDS, settings(learning_rate=1e38))


def test_another_probe_trains_by_itself(encoder: str, tmp_path: Path) -> None:
    class Doubled(type(cases.make_task(encoder, "mean").probe)):  # type: ignore[misc]
        def classify(self, features: torch.Tensor) -> torch.Tensor:
            return 2 * super().classify(features)

    task = cases.make_task(encoder, "mean")
    train = store(task, 10, "mean", tmp_path)
    assert stacked.can_stack(task)
    task.configure_probe = lambda: Doubled("mean", cases.HIDDEN, 3)
    task.probe = task.configure_probe()
    assert not stacked.can_stack(task)
    each, resident = (train_probes(task, one, {}, SEEDS, settings()) for one in (train, train.on(CPU)))
    for one, other in zip(each, resident, strict=True):
        assert_close(one, other)
    task = cases.make_task(encoder, "mean")
    task.loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    assert not stacked.can_stack(task)
    task = cases.make_task(encoder, "mean")
    task.probe = torch.nn.Linear(2, 2)
    assert not stacked.can_stack(task)


def test_draws_are_those_of_seeded_dropout() -> None:
    """Whatever the sizes of the batches; a draw depends on how many are drawn at once."""
    sizes = torch.tensor([[3, 5], [5, 1], [0, 2]])
    kept = torch.zeros(3, 2, 5, 20, dtype=torch.uint8)
    for number, seed in enumerate((1, 2)):
        draw_kept(kept[:, number], sizes[:, number], 0.3, torch.Generator().manual_seed(seed))
        dropout = SeededDropout(0.3, torch.Generator().manual_seed(seed))
        for step, size in enumerate(sizes[:, number].tolist()):
            expected = dropout(torch.ones(size, 20))
            assert torch.equal(kept[step, number, :size].float() / (1 - 0.3), expected)


def test_orders_are_permutations() -> None:
    orders = draw_orders([torch.Generator().manual_seed(seed) for seed in (1, 2)], 10, epochs=3, batch_size=4)
    assert orders.shape == (3, 3, 2, 4)
    by_seed = orders.transpose(1, 2).flatten(2)
    assert torch.equal(by_seed.sort(dim=2).values, torch.tensor([*range(10), 10, 10]).expand(3, 2, 12))
    assert torch.equal(by_seed[1, 1, :10], _second_permutation(2, 10))
    assert draw_orders([torch.Generator()], 3, epochs=1, batch_size=16).shape == (1, 1, 1, 3)


def _second_permutation(seed: int, examples: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    torch.randperm(examples, generator=generator)
    return torch.randperm(examples, generator=generator)


@pytest.mark.parametrize("kind", cases.KINDS)
def test_a_resident_table_ends_with_a_row_of_zeros(encoder: str, tmp_path: Path, kind: str) -> None:
    task = cases.make_task(encoder, kind)
    train = store(task, 7, kind, tmp_path)
    resident = train.on(CPU)
    assert isinstance(resident, ResidentFeatures)
    assert (resident.table[-1] == 0).all()
    assert torch.equal(resident.rows[-1].unique(), torch.tensor([len(resident.table) - 1]))
    assert resident.labels[-1] == -100
    one, other = (features.batch(torch.tensor([4, 0]), CPU) for features in (train, resident))
    for name in ("rows", "counts", "positions", "labels"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert torch.equal(one.vectors[one.rows], other.vectors[other.rows])


@pytest.mark.parametrize("kind", cases.KINDS)
def test_features_that_never_leave_the_device(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    task, rows = cases.make_task(encoder, kind), cases.make_rows(11, kind, "segment")
    stored = store_features(task, rows, tmp_path / "f", budget_bytes=10**9, dtype="float16")
    assert features.resident_features(task, rows) is None
    assert stored.near(CPU) is stored
    monkeypatch.setattr(features, "is_gpu", lambda device: True)
    monkeypatch.setattr(features, "free_bytes", lambda device: 10**6)
    found = features.resident_features(task, rows, dtype="float16", batch_size=3)
    assert found is not None
    moved = stored.near(CPU)
    assert isinstance(moved, ResidentFeatures)
    torch.testing.assert_close(found.table, moved.table, atol=2e-3, rtol=0)
    assert found.index == moved.index
    size = table_bytes(moved.reading, moved.index, "float32")
    for free, room in ((size / 0.31, False), (size / 0.29, True)):
        monkeypatch.setattr(features, "free_bytes", lambda device, free=free: free)
        assert moved.leaves_room == room
    assert not stored.leaves_room
    monkeypatch.setattr(features, "free_bytes", lambda device: 1000)
    assert features.resident_features(task, rows) is None
    assert stored.near(CPU) is stored


def test_every_call_of_a_graph_is_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capturing does nothing by itself: the call that captures also replays."""
    done = list[str]()

    class Graph:
        def replay(self) -> None:
            done.append("replayed")

    class Stream:
        def wait_stream(self, other: Any) -> None:
            done.append("waited")

    @contextmanager
    def captured(graph: Any, **how: Any) -> Iterator[None]:
        done.append("capturing")
        yield
        assert done.pop() == "called"

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", captured)
    step = stacked._Graphed(lambda: done.append("called"), CPU)
    for _ in range(5):
        step()
    assert done == ["waited", "called", "waited"] * 3 + ["capturing", "replayed", "replayed"]
