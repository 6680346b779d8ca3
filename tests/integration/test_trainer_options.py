"""Options of the Trainer have the same effect with `papa` as with a plain LightningCLI."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelSummary, Timer
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback

from papa_lightning import AttentionConstants
from papa_lightning.cli.loggers import SaveRunConfig
from papa_lightning.cli.main import main
from papa_lightning.cli.summary import Stopwatch
from papa_lightning.cli.trainer_verbs import PapaCLI
from papa_lightning.lightning_project.run import run_folder

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")
OURS = (Stopwatch, SaveRunConfig, SaveConfigCallback)


class PlainCLI(LightningCLI):
    """LightningCLI with the links that a task needs, and nothing else of ours."""

    add_arguments_to_parser = PapaCLI.add_arguments_to_parser


def papa(*words: str) -> PapaCLI:
    cli = main(list(words))
    assert isinstance(cli, PapaCLI)
    return cli


def facts(cli: LightningCLI) -> dict[str, Any]:
    """Settings of a Trainer and results of its run."""
    trainer: Any = cli.trainer
    names = (
        "max_epochs", "max_steps", "min_epochs", "min_steps", "fast_dev_run", "overfit_batches", "limit_train_batches",
        "limit_val_batches", "limit_test_batches", "limit_predict_batches", "num_sanity_val_steps", "barebones",
        "val_check_interval", "check_val_every_n_epoch", "log_every_n_steps", "accumulate_grad_batches",
        "gradient_clip_val", "gradient_clip_algorithm", "precision", "default_root_dir", "global_step", "current_epoch",
        "reload_dataloaders_every_n_epochs", "world_size", "num_training_batches",
    )  # fmt: skip
    found = {name: getattr(trainer, name) for name in names}
    found |= {"profiler": type(trainer.profiler), "inference_mode": trainer.validate_loop.inference_mode}
    found |= {"anomaly": trainer._detect_anomaly, "sampler": trainer._accelerator_connector.use_distributed_sampler}
    known = [
        one for one in trainer.callbacks if not isinstance(one, OURS)
    ]  # the summary is our own, but as often there
    # Sorted: a summary of our own stands before the Timer that Lightning adds for max_time, its own behind it.
    found["callbacks"] = sorted("Summary" if isinstance(one, ModelSummary) else type(one).__name__ for one in known)
    found["optimizers"] = [(type(one).__name__, one.param_groups[0]["lr"]) for one in trainer.optimizers]
    found["metrics"] = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return found


OPTIONS = [
    [],
    ["--trainer.max_steps", "2"],
    ["--trainer.min_epochs", "2", "--trainer.max_epochs", "3"],
    ["--trainer.max_time", "00:00:00:00"],
    ["--trainer.callbacks+=Timer", "--trainer.callbacks.interval", "step"],
    ["--trainer.fast_dev_run", "2"],
    ["--trainer.overfit_batches", "1"],
    ["--trainer.limit_train_batches", "0.5", "--trainer.limit_val_batches", "1"],
    ["--trainer.check_val_every_n_epoch", "2", "--trainer.max_epochs", "2"],
    ["--trainer.val_check_interval", "1"],
    ["--trainer.enable_checkpointing", "false"],
    ["--trainer.enable_progress_bar", "true", "--trainer.enable_model_summary", "false", "--trainer.logger", "false",
     "--trainer.num_sanity_val_steps", "0"],
    ["--trainer.barebones", "true"],
    ["--trainer.profiler", "simple", "--trainer.detect_anomaly", "true", "--trainer.inference_mode", "false",
     "--trainer.deterministic", "warn", "--trainer.default_root_dir", "elsewhere", "--seed_everything", "3"],
    ["--trainer.gradient_clip_val", "0.1", "--trainer.gradient_clip_algorithm", "value",
     "--trainer.accumulate_grad_batches", "2", "--trainer.precision", "bf16-mixed"],
    ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val/loss"],
    ["--optimizer", "SGD", "--optimizer.lr", "0.25", "--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1"],
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_an_option_does_what_it_does_elsewhere(options: list[str], tiny: list[str]) -> None:
    own = ["--seed_everything", "0", *options]
    ours, plain = facts(papa("fit", *tiny, *own)), facts(PlainCLI(args=["fit", *tiny, *own]))
    assert ours == plain


def test_time_is_up(tiny: list[str]) -> None:
    """It ended never: a timer of ours displaced that of the Trainer."""
    begin = time.monotonic()
    cli = papa("fit", *tiny, "--trainer.max_epochs", "-1", "--trainer.max_time", "00:00:00:01")
    assert time.monotonic() - begin < 60
    callbacks: list[Any] = vars(cli.trainer)["callbacks"]
    assert sum(isinstance(one, Timer) for one in callbacks) == 1


def test_a_timer_of_ones_own_with_its_defaults(tiny: list[str]) -> None:
    papa("fit", *tiny, "--trainer.callbacks+=Timer")


def test_a_trial_run_leaves_nothing_behind(tiny: list[str]) -> None:
    papa("calibrate", *tiny)
    papa("rank", *tiny)
    papa("predict", *tiny, "--trainer.callbacks=null", "--output", "predictions.jsonl")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    trial = ["--trainer.fast_dev_run", "true"]
    cli = papa("fit", *tiny, *trial)
    assert run_folder(cli.trainer) is None
    for verb in ("calibrate", "rank"):
        papa(verb, *tiny, *trial)
    papa("rank", *tiny, *trial, "--criterion", "gate")
    for output in ([], ["--output", "predictions.jsonl"], ["--output", "new.parquet"]):
        papa("predict", *tiny, *trial, "--trainer.callbacks=null", *output)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_calibration_takes_no_step_whatever_limits_steps(tiny: list[str]) -> None:
    papa("calibrate", *tiny, "--trainer.max_epochs", "0", "--trainer.max_steps", "0", "--trainer.max_time", "0:0:0:0")
    assert AttentionConstants.load("constants.safetensors").metadata["sequences"] == 12


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("papa: error: ")
    return last


@pytest.mark.parametrize(
    "words",
    [
        ["calibrate", "--trainer.limit_train_batches", "0"],
        ["rank", "--trainer.max_epochs", "0"],
        ["rank", "--criterion", "gate", "--trainer.max_steps", "0"],
    ],
)
def test_no_work_is_no_success(words: list[str], tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search("nothing (was ranked|to calibrate on)", refused([words[0], *tiny, *words[1:]], capsys))


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val_loss"],
        ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor", "val_loss"],
        ["--optimizer", "SGD", "--optimizer.lr", "0.1", "--lr_scheduler", "ReduceLROnPlateau",
         "--lr_scheduler.monitor", "val_loss"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("launched", [False, True])
def test_a_metric_that_nobody_logs(
    launched: bool, options: list[str], tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if launched:
        options = [*options, "--trainer.strategy", "ddp_fork", "--trainer.devices", "2"]
    line = refused(["fit", *tiny, *options], capsys)
    assert "val_loss" in line
    assert "val/loss" in line


def test_machines_that_nobody_named(
    tiny: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert "num_nodes is 2" in refused(["fit", *tiny, "--trainer.num_nodes", "2"], capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"trainer: {max_epochs: 1}  # \xe9\n", "which is not UTF-8"),
        (b"trainer: &a\n  callbacks: *a\n", "where a value contains itself"),
        (b"trainer: " + b"[" * 2000, "which nests too deeply"),
        (b"trainer: {a: [\n", "which is no YAML"),
        (b"trainer: !!python/object/apply:os.system ['touch ran']\n", "could not determine a constructor"),
        (b"a: &a [1, 1]\nb: &b [*a, *a]\n" + b"".join(b"b: &b [*b, *b]\n" for _ in range(40)) + b"c: 1\n", "b"),
    ],
)
def test_configurations_that_are_none(content: bytes, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_bytes(content)
    for words in (["fit", "--config", "config.yaml"], ["study", "--config=config.yaml", "--output", "x"]):
        assert message in refused(words, capsys)
    assert not Path("ran").exists()
