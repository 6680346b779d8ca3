"""Somebody else's project under DDP: exact constants, no dead parameters, one checkpoint, averages of weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.processes import in_two_processes
from lightning.pytorch.callbacks import EMAWeightAveraging
from projects import LENGTH, Classifier, Sentences, trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from papa_lightning import ConstantAttention, HeadGates, HeadRanking, PapaError, calibrate
from papa_lightning.encoders import gate_logits, swapped_layers

pytestmark = pytest.mark.distributed
HEADS: dict[str, Any] = {"all": "all", "explicit": [(0, 1)], "ranked": 3, "none": []}
#: Sequences, batch size: even and uneven shards, a last batch of one, an empty shard.
SHARDS = [(8, 2), (7, 2), (9, 4), (1, 3)]
TWO: dict[str, Any] = {"devices": 2, "strategy": "ddp"}


class Stream(IterableDataset[dict[str, Tensor]]):
    def __iter__(self) -> Any:
        return iter([Sentences(4)[index] for index in range(4)])


def ours(folder: Path, name: str = "all", **arguments: Any) -> ConstantAttention:
    ranking = str(folder / "ranking.json") if name == "ranked" else None
    return ConstantAttention(max_length=LENGTH, heads=HEADS[name], ranking=ranking, **arguments)


def fit(module: Classifier, number: int, size: int, *callbacks: Any, **arguments: Any) -> Any:
    run = trainer(*callbacks, **arguments)
    run.fit(
        module,
        DataLoader(Sentences(number), batch_size=size, shuffle=True),
        DataLoader(Sentences(4, seed=1), batch_size=2),
    )
    return run


def constants_of(module: Classifier) -> list[Tensor]:
    return [layer.constants.detach() for layer in swapped_layers(module.bert)]


def refusal() -> str:
    try:
        trainer(ConstantAttention(max_length=LENGTH), **TWO).fit(Classifier(), DataLoader(Stream(), batch_size=2))
    except PapaError as error:
        return str(error)
    return ""


def run(folder: Path) -> dict[str, Any]:
    """DDP complains itself, at the second step, about a parameter that no loss reached at the first."""
    results: dict[str, Any] = {}
    for name in HEADS:
        module = Classifier()
        own = fit(module, 8, 2, ours(folder, name), max_epochs=2, **TWO)
        results[name] = {"constants": constants_of(module), "steps": own.global_step, "state": module.state_dict()}
        own.save_checkpoint(folder / f"{name}.ckpt")
    for number, size in SHARDS:
        module = Classifier()
        fit(module, number, size, ours(folder, batch_size=3 if size == 4 else None), precision="64-true", **TWO)
        results[f"{number}/{size}"] = constants_of(module)
    gated = Classifier()
    fit(gated, 8, 2, HeadGates(0.05, max_length=LENGTH), max_epochs=2, **TWO)
    results["gates"] = [gates.detach() for gates in gate_logits(gated.bert)]
    averaged = Classifier()
    fit(averaged, 8, 2, EMAWeightAveraging(decay=0.5), ours(folder), max_epochs=2, **TWO)
    results["averaged"] = averaged.state_dict()
    results["refused"] = refusal()
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    HeadRanking([(1, 1), (0, 0), (0, 1), (1, 0)]).save(folder / "ranking.json")
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, Any]]:
    return in_two_processes(run, folder)


@pytest.mark.parametrize("name", HEADS)
def test_no_dead_parameters_without_find_unused_parameters(name: str, results: Any) -> None:
    assert [result[name]["steps"] for result in results] == [4, 4]
    first, second = (result[name]["state"] for result in results)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize(("number", "size"), SHARDS)
def test_constants_are_exact_whatever_the_shares(number: int, size: int, results: Any) -> None:
    expected = calibrate(Classifier().double().bert, DataLoader(Sentences(number), batch_size=5), max_length=LENGTH)
    for result in results:
        for one, values in zip(result[f"{number}/{size}"], expected.values, strict=True):
            torch.testing.assert_close(one, values, rtol=1e-12, atol=0)


def test_gates_are_the_same_on_every_process(results: Any) -> None:
    for one, other in zip(results[0]["gates"], results[1]["gates"], strict=True):
        assert torch.equal(one, other)
        assert (one != 0).all()


def test_averaged_weights_are_the_same_on_every_process(results: Any) -> None:
    """The average sees the constants of the calibration, not the zeros that were there when it was copied."""
    for key, value in results[0]["averaged"].items():
        assert torch.equal(value, results[1]["averaged"][key]), key
    for layer, expected in enumerate(results[0]["all"]["constants"]):
        key = f"bert.encoder.layer.{layer}.attention.self.papa.constants"
        torch.testing.assert_close(results[0]["averaged"][key], expected)


@pytest.mark.parametrize("name", HEADS)
def test_a_checkpoint_of_two_processes_in_one(name: str, folder: Path, results: Any) -> None:
    module = Classifier(seed=1)
    evaluation = trainer(ours(folder, name))
    evaluation.validate(module, DataLoader(Sentences(4)), ckpt_path=folder / f"{name}.ckpt", weights_only=True)
    for one, expected in zip(constants_of(module), results[0][name]["constants"], strict=True):
        assert torch.equal(one, expected)


def test_data_that_cannot_be_shared_out_are_refused_everywhere(results: Any) -> None:
    assert all("(Stream) is iterable only, so 2 processes cannot share it" in result["refused"] for result in results)
