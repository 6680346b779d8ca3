"""Default loggers of `papa`, and the place of the saved configuration."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from papa_lightning.cli import loggers as logging_defaults
from papa_lightning.cli.main import main
from papa_lightning.cli.trainer_verbs import PapaCLI

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def fit(*words: str) -> PapaCLI:
    cli = main(["fit", *words])
    assert isinstance(cli, PapaCLI)
    return cli


def test_csv_always_and_metrics_with_units(tiny: list[str]) -> None:
    cli = fit(*tiny)
    assert isinstance(cli.trainer.loggers[0], CSVLogger)
    assert Path(cli.trainer.log_dir) == Path("lightning_logs/version_0").absolute()
    with open("lightning_logs/version_0/metrics.csv") as file:
        columns = next(csv.reader(file))
    assert {"calibration/seconds", "calibration/sequences", "val/accuracy"} <= set(columns)
    fit(*tiny)
    assert Path("lightning_logs/version_1/config.yaml").is_file()


def test_tensorboard_beside_it_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a substitute: the real one is tried where it is installed."""

    class Substitute(logging_defaults._TensorBoardBeside):
        def __init__(self, folder: str, beside: CSVLogger) -> None:
            self.place, self._beside = folder, beside

    monkeypatch.setattr(logging_defaults, "_TensorBoardBeside", Substitute)
    monkeypatch.setattr(logging_defaults, "find_spec", lambda name: name if name == "tensorboard" else None)
    (tmp_path / "lightning_logs" / "version_4").mkdir(parents=True)
    first, second = logging_defaults.default_loggers(str(tmp_path))
    assert isinstance(first, CSVLogger)
    assert isinstance(second, Substitute)
    assert not (tmp_path / "lightning_logs" / "version_5").exists(), "a number is taken when a run asks for it"
    assert (second.place, second.version, first.version) == (str(tmp_path), 5, 5)
    monkeypatch.setattr(logging_defaults, "find_spec", lambda name: None)
    (only,) = logging_defaults.default_loggers(str(tmp_path))
    assert isinstance(only, CSVLogger)


def test_runs_that_start_together_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both look before either has a folder: then the next number is the same for both."""
    monkeypatch.setattr(CSVLogger, "_get_next_version", lambda logger: 0)
    runs = [logging_defaults.default_loggers(str(tmp_path))[0] for _ in range(3)]
    assert [run.version for run in runs] == [0, 1, 2]
    assert [run.version for run in runs] == [0, 1, 2], "and keep them"
    names = sorted(path.name for path in (tmp_path / "lightning_logs").iterdir())
    assert names == ["version_0", "version_1", "version_2"]


def test_other_processes_of_a_run_take_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("papa_lightning.cli.loggers.rank_zero_only.rank", 1)
    assert logging_defaults.default_loggers(str(tmp_path))[0].version == 0
    assert not (tmp_path / "lightning_logs").exists()


def test_both_share_a_folder(tiny: list[str]) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard`")
    cli = fit(*tiny)
    csv_logger, tensorboard = cli.trainer.loggers
    assert isinstance(csv_logger, CSVLogger)
    assert isinstance(tensorboard, TensorBoardLogger)
    names = {path.name.partition(".")[0] for path in Path("lightning_logs/version_0").iterdir()}
    assert {"metrics", "config", "hparams", "events", "checkpoints", "constants"} <= names
    assert not Path("lightning_logs/version_1").exists()


def test_a_logger_that_is_named_stays_alone(tiny: list[str]) -> None:
    cli = fit(*tiny, "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "mine", "--trainer.logger.name", "x")
    assert [logger.name for logger in cli.trainer.loggers] == ["x"]
    assert Path("mine/x/version_0/config.yaml").is_file()
    off = fit(*tiny, "--trainer.logger", "false")
    assert off.trainer.loggers == []


class OneFolder(Logger):
    """As WandbLogger: all runs have the same save_dir."""

    runs = 0

    def __init__(self) -> None:
        type(self).runs += 1
        self._version = f"run{self.runs}"

    name = property(lambda self: "project")
    version = property(lambda self: self._version)
    save_dir = property(lambda self: "all")

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


def test_two_runs_of_a_logger_with_one_folder_keep_their_configurations(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("papa_lightning.cli.trainer_verbs.default_loggers", lambda _: [OneFolder()])
    first = fit(*tiny, "--seed_everything", "1")
    fit(*tiny, "--seed_everything", "2")
    saved = [yaml.safe_load(Path(f"all/project/run{run}/config.yaml").read_text()) for run in (1, 2)]
    assert [one["seed_everything"] for one in saved] == [1, 2]
    again = fit("--config", "all/project/run1/config.yaml")
    for name, value in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
