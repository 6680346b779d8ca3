"""Two processes on the CPU: the constants are those of one process, whatever the shares."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from distributed.processes import in_two_processes
from fresh_processes import context
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from projects import LENGTH, Classifier, Sentences, tiny_config, trainer
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers import BertModel

from papa_lightning import AttentionConstants, ConstantAttention, HeadGates, HeadRanking, calibrate

pytestmark = pytest.mark.distributed


def make_encoder() -> BertModel:
    torch.manual_seed(0)
    return BertModel(tiny_config(), add_pooling_layer=False).double()


def _all_reduce(tensor: Tensor) -> Tensor:
    dist.all_reduce(tensor)
    return tensor


NUMBERS = [7, 1]  # of sequences: with one, a process has none
each_number = pytest.mark.parametrize("number", NUMBERS, ids=["7-sequences", "an-empty-rank"])


def _calibrate_shares(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for number in NUMBERS:
        share = DataLoader(Subset(Sentences(number), range(rank, number, 2)), batch_size=2)
        constants = calibrate(make_encoder(), share, max_length=LENGTH, all_reduce=_all_reduce)
        constants.save(folder / f"{number}-rank{rank}.safetensors")


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shares")
    in_two_processes(_calibrate_shares, folder)
    return folder


@each_number
def test_calibrate_over_two_ranks(shares: Path, number: int) -> None:
    expected = calibrate(make_encoder(), DataLoader(Sentences(number), batch_size=3), max_length=LENGTH)
    for rank in range(2):
        constants = AttentionConstants.load(shares / f"{number}-rank{rank}.safetensors")
        assert constants.values.dtype == torch.float64
        torch.testing.assert_close(constants.values, expected.values, rtol=1e-12, atol=0)
        assert torch.equal(constants.pair_counts, expected.pair_counts)
        assert constants.metadata["sequences"] == number


def _by_lightning() -> DDPStrategy:
    """Lightning starts the processes itself, as for ``ddp_spawn``: module and callbacks travel by pickle."""
    return DDPStrategy(start_method=context.get_start_method())


class RankedByGates(HeadGates):
    """Every process writes what it found."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_fit_end(trainer, pl_module)
        assert self.ranking is not None
        self.ranking.save(Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.json")


def test_gates_under_ddp(tmp_path: Path) -> None:
    """The gates are there before DDP counts parameters, all get a gradient, and all processes rank alike."""
    torch.manual_seed(0)
    callback = RankedByGates(0.05, output=str(tmp_path / "ranking.json"), max_length=LENGTH)
    module = Classifier()
    module.bert.requires_grad_(False)
    run = trainer(callback, devices=2, strategy=_by_lightning(), default_root_dir=tmp_path, max_epochs=2)
    run.fit(module, DataLoader(Sentences(8), batch_size=2), DataLoader(Sentences(4)))
    rankings = [HeadRanking.load(tmp_path / f"{name}.json") for name in ("rank0", "rank1", "ranking")]
    assert rankings[0] == rankings[1] == rankings[2]
    assert 0.0 not in (rankings[0].scores or [0.0])  # where they began, and would have stayed without a gradient


def _fit(folder: Path, devices: int, number: int, **arguments: Any) -> AttentionConstants:
    """Fine-tune with all heads constant; the constants come from the file that the run writes."""
    run = trainer(
        ConstantAttention(max_length=LENGTH),
        devices=devices,
        precision="64-true",
        logger=CSVLogger(folder),
        **arguments,
    )
    run.fit(Classifier(), DataLoader(Sentences(number), batch_size=2, shuffle=True), DataLoader(Sentences(4)))
    (written,) = folder.rglob("constants.safetensors")
    return AttentionConstants.load(written)


@each_number
def test_callback_under_ddp(tmp_path: Path, number: int) -> None:
    """No find_unused_parameters is needed either: DDP itself would complain about a parameter that no loss reaches."""
    two = _fit(tmp_path / "two", devices=2, number=number, strategy=_by_lightning())
    one = _fit(tmp_path / "one", devices=1, number=number)
    assert two.metadata["sequences"] == one.metadata["sequences"] == number
    torch.testing.assert_close(two.values, one.values, rtol=1e-12, atol=0)
    assert torch.equal(two.pair_counts, one.pair_counts)
