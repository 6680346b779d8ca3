"""FSDP2 on two processes, as far as it goes on CPUs: with a constants file, like one process; without, refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.processes import in_two_processes
from lightning.pytorch.strategies import ModelParallelStrategy
from projects import LENGTH, Classifier, Sentences, trainer
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from papa_lightning import ConstantAttention, HeadGates, HeadRanking, PapaError, calibrate
from papa_lightning.encoders import is_calibrated

pytestmark = pytest.mark.distributed
HEADS: dict[str, Any] = {"all": "all", "explicit": [(0, 1)], "ranked": 3}


class Project(Classifier):
    """Without dropout and with plain gradient descent, so that sums in another order make small differences only."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([one for one in self.parameters() if one.requires_grad], lr=0.1)


class Sharded(Project):
    """As Lightning's documentation has it."""

    def configure_model(self) -> None:
        if isinstance(self.classifier.weight, DTensor):
            return
        for layer in self.bert.encoder.layer:
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self, mesh=self.device_mesh["data_parallel"])


def callback(folder: Path, name: str) -> ConstantAttention:
    ranking = str(folder / "ranking.json") if name == "ranked" else None
    return ConstantAttention(constants=str(folder / "constants.safetensors"), heads=HEADS[name], ranking=ranking)


def sharding(whole: bool = True) -> ModelParallelStrategy:
    """Checkpoints are whole or, as a default, a folder with a part of every process."""
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=not whole)


def refusal(ours: Any) -> str:
    try:
        trainer(ours, devices=2, strategy=sharding()).fit(Sharded(), DataLoader(Sentences(8)))
    except PapaError as error:
        return str(error)
    return ""


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def run(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name in HEADS:
        module, strategy = Sharded(), sharding(whole=name != "explicit")
        own = trainer(callback(folder, name), devices=2, strategy=strategy, max_epochs=2)
        own.fit(module, DataLoader(Sentences(8), batch_size=4), DataLoader(Sentences(4, seed=1), batch_size=2))
        own.save_checkpoint(folder / f"{name}.ckpt")
        again, other = Sharded(seed=1), trainer(callback(folder, name), devices=2, strategy=sharding())
        other.validate(again, DataLoader(Sentences(4, seed=1)), ckpt_path=folder / f"{name}.ckpt", verbose=False)
        results[name] = {
            "sharded": all(isinstance(one, DTensor) for one in module.classifier.parameters()),
            "calibrated": is_calibrated(again.bert),
            "again": {key: whole(value) for key, value in again.state_dict().items()},
        }
    results["refused"] = [refusal(ConstantAttention(max_length=LENGTH)), refusal(HeadGates(max_length=LENGTH))]
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    constants = calibrate(Project().bert, DataLoader(Sentences(8), batch_size=4), max_length=LENGTH)
    constants.save(folder / "constants.safetensors")
    HeadRanking([(1, 1), (0, 0), (0, 1), (1, 0)]).save(folder / "ranking.json")
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, Any]]:
    return in_two_processes(run, folder)


def fitted(folder: Path, name: str) -> Project:
    """All data are one batch, in whatever order."""
    module = Project()
    trainer(callback(folder, name), max_epochs=2).fit(module, DataLoader(Sentences(8), batch_size=8))
    return module


@pytest.mark.parametrize("name", HEADS)
def test_a_constants_file_with_fsdp2_trains_like_one_process(name: str, folder: Path, results: Any) -> None:
    """Trained weights are loaded from a checkpoint into another sharded module."""
    one = fitted(folder, name)
    assert is_calibrated(one.bert)
    for result in results:
        assert result[name]["sharded"]
        assert result[name]["calibrated"]
        state: dict[str, Tensor] = result[name]["again"]
        for key, value in one.state_dict().items():
            torch.testing.assert_close(state[key], value, msg=key, atol=1e-6, rtol=1e-5)


def test_a_sharded_run_is_evaluated_in_one_process(folder: Path, results: Any) -> None:
    module = Project(seed=1)
    trainer(ConstantAttention(max_length=LENGTH)).validate(
        module, DataLoader(Sentences(4)), ckpt_path=folder / "all.ckpt", weights_only=True
    )
    for key, value in results[0]["all"]["again"].items():
        assert torch.equal(module.state_dict()[key], value), key


def test_without_a_file_fsdp2_is_refused_on_every_process(results: Any) -> None:
    for result in results:
        constant, gated = result["refused"]
        assert "ModelParallelStrategy, which shards the encoder" in constant
        assert "constants=PATH" in constant
        assert "ModelParallelStrategy, which shards the gates" in gated
