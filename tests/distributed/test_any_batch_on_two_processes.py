"""Two processes: every sequence once, whatever the sampler; no step makes a process wait for the other."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from distributed.processes import in_two_processes
from projects import LENGTH, Sentences, tiny_config, trainer
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler
from transformers import BertModel

from papa_lightning import AttentionConstants, ConstantAttention, PapaError, calibrate

pytestmark = pytest.mark.distributed


class Keeping(ConstantAttention):
    made: AttentionConstants

    def calibrate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> AttentionConstants:
        self.made = super().calibrate(trainer, pl_module)
        return self.made


class Tuples(L.LightningModule):
    def __init__(self, gather: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bert, self.gather = BertModel(tiny_config(), add_pooling_layer=False), gather

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden = self.bert(batch[0], batch[1]).last_hidden_state[:, 0]
        if self.gather == "module":
            every = self.all_gather(hidden, sync_grads=True)
            assert every.shape[0] == 2
            self.trainer.strategy.barrier()
            hidden = hidden + every.mean(dim=(0, 1))
        if self.gather == "torch":
            dist.all_reduce(hidden.detach().sum())
        if self.gather == "one fails" and self.global_rank == 1 and not self.training:
            raise ValueError("on the second")
        self.log("loss", hidden.mean(), sync_dist=True)
        return hidden.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Own(Sampler[int]):
    """Not distributed."""

    def __init__(self, order: list[int]) -> None:
        self.order = order

    def __iter__(self) -> Any:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


class OwnBatches(BatchSampler):
    """Somebody's, with the longest first."""

    def __iter__(self) -> Any:
        return iter(sorted(super().__iter__(), key=len, reverse=True))


class OwnDistributed(DistributedSampler):
    """Somebody's, in the reverse order."""

    def __iter__(self) -> Any:
        return iter([len(self.dataset) - 1 - one for one in super().__iter__()])


class OwnShares(Sampler[int]):
    """Somebody's that knows its rank by itself, and fills up by repeating."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __iter__(self) -> Any:
        order = list(range(self.number)) + ([0] if self.number % 2 else [])
        return iter(order[dist.get_rank() :: 2])

    def __len__(self) -> int:
        return -(-self.number // 2)


def tensors(number: int) -> TensorDataset:
    data = Sentences(number)
    return TensorDataset(data.input_ids, data.attention_mask)


#: A loader, whether Lightning may exchange its sampler, and the rows that count.
LOADERS: dict[str, tuple[Any, bool, list[int]]] = {
    "shuffled": (lambda: DataLoader(tensors(7), 2, shuffle=True), True, list(range(7))),
    "one row": (lambda: DataLoader(tensors(1), 2), True, [0]),
    "subset": (lambda: DataLoader(tensors(7), 2, sampler=SubsetRandomSampler([0, 2, 5])), True, [0, 2, 5]),
    "own": (lambda: DataLoader(tensors(7), 2, sampler=Own([6, 1, 1, 3, 0])), True, [6, 1, 1, 3, 0]),
    "own everywhere": (lambda: DataLoader(tensors(7), 2, sampler=Own([6, 3, 0])), False, [6, 3, 0]),
    "sharded by torch": (
        lambda: DataLoader(tensors(7), 2, sampler=DistributedSampler(tensors(7), 2, dist.get_rank(), shuffle=True)),
        False,
        list(range(7)),
    ),
    "sharded by a subclass": (
        lambda: DataLoader(tensors(7), 2, sampler=OwnDistributed(tensors(7), 2, dist.get_rank(), shuffle=False)),
        False,
        list(range(7)),
    ),
    "sharded by the user": (lambda: DataLoader(tensors(7), 2, sampler=OwnShares(7)), False, list(range(7))),
    "batches": (
        lambda: DataLoader(tensors(7), batch_sampler=OwnBatches(RandomSampler(range(7)), 3, drop_last=False)),
        True,
        list(range(7)),
    ),
    "ready": (
        lambda: DataLoader(TensorDataset(*(one[:, None] for one in tensors(7).tensors)), None),
        True,
        list(range(7)),
    ),
}


def fit(loader: Any, exchange: bool = True, module: Any = None) -> AttentionConstants:
    callback = Keeping(max_length=LENGTH)
    run = trainer(
        callback, devices=2, strategy="ddp", use_distributed_sampler=exchange, precision="64-true", max_epochs=1
    )
    run.fit(module or Tuples(), loader)
    return callback.made


def refusal(gather: str) -> str:
    try:
        fit(DataLoader(tensors(7), 2), module=Tuples(gather))
    except PapaError as error:
        return str(error)
    return ""


def run(folder: Path) -> dict[str, Any]:
    dist.init_process_group("gloo")
    results: dict[str, Any] = {}
    for name, (make, exchange, _) in LOADERS.items():
        torch.manual_seed(dist.get_rank())  # as where nobody seeds
        made = fit(make(), exchange)
        results[name] = (made.values, made.metadata["sequences"])
    torch.manual_seed(dist.get_rank())
    drawn = fit(DataLoader(tensors(7), 2, sampler=WeightedRandomSampler([1.0, 1, 0, 0, 0, 0, 1], 9)))
    results["by weight"] = (drawn.values, drawn.metadata["sequences"])
    gathered = fit(DataLoader(tensors(1), 2), module=Tuples("module"))
    results["all_gather"] = (gathered.values, gathered.metadata["sequences"])
    results["torch"], results["one fails"] = refusal("torch"), refusal("one fails")
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_two_processes(run, tmp_path_factory.mktemp("shares"))


def average(rows: list[int]) -> Tensor:
    data = Sentences(7)
    batch = {"input_ids": data.input_ids[rows], "attention_mask": data.attention_mask[rows]}
    return calibrate(Tuples().double().bert, [batch], max_length=LENGTH).values


@pytest.mark.parametrize("name", LOADERS)
def test_each_sequence_once(name: str, results: Any) -> None:
    rows = LOADERS[name][2]
    expected = average(rows) if name != "one row" else None
    for result in results:
        values, number = result[name]
        assert number == len(rows)
        if expected is not None:
            torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-15)
        assert torch.equal(values, results[0][name][0])


def test_what_is_drawn_by_weight_is_drawn_once_for_all(results: Any) -> None:
    assert [result["by weight"][1] for result in results] == [9, 9]
    assert torch.equal(results[0]["by weight"][0], results[1]["by weight"][0])


def test_a_step_that_gathers_embeddings_does_not_wait_for_processes_without_rows(results: Any) -> None:
    assert [result["all_gather"][1] for result in results] == [1, 1]


def test_a_step_that_calls_torch_distributed_is_refused_instead_of_waiting(results: Any) -> None:
    assert all("calls torch.distributed" in result["torch"] for result in results)
    assert all("encoder_inputs(batch)" in result["torch"] for result in results)


def test_where_one_process_fails_all_do(results: Any) -> None:
    first, second = (result["one fails"] for result in results)
    assert "failed on another process" in first
    assert "ValueError: on the second" in second
