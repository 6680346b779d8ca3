"""`papa` as a user runs it: every shipped configuration, on a tiny encoder and tiny data."""

import inspect
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from lightning import Trainer

from papa_lightning import (
    AttentionConstants,
    ConstantAttention,
    HeadGates,
    HeadRanking,
    PapaError,
    SequenceClassificationTask,
)
from papa_lightning.cli.main import main
from papa_lightning.cli.trainer_verbs import PapaCLI
from papa_lightning.encoders import is_calibrated, swapped_layers
from papa_lightning.tasks.base import EncoderTask

CONFIGS = Path(__file__).parents[2] / "papa_lightning" / "configs"


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def papa(*args: str) -> PapaCLI:
    cli = main(list(args))
    assert isinstance(cli, PapaCLI)
    return cli


def test_the_demo_configuration(encoder_folder: str) -> None:
    cli = papa(
        "fit", "--config", str(CONFIGS / "demo.yaml"), "--model.init_args.encoder", encoder_folder,
        "--data.init_args.max_train_examples", "64", "--data.init_args.max_eval_examples", "32",
        "--trainer.enable_progress_bar", "false",
    )  # fmt: skip
    assert is_calibrated(cli.model.encoder)
    assert cli.trainer.global_step == 4
    assert 0 <= cli.trainer.callback_metrics["val/accuracy"] <= 1


def test_heads_can_be_overridden(tiny: list[str]) -> None:
    cli = papa("fit", *tiny, "--trainer.callbacks.heads=[[0,1]]")
    assert [layer.constant_heads for layer in swapped_layers(cli.model.encoder)] == [(1,), ()]


@pytest.mark.parametrize("amount", ["0.5", "2"])
def test_a_share_or_a_number_of_heads_on_the_command_line(amount: str, tiny: list[str]) -> None:
    HeadRanking([(1, 1), (0, 0), (0, 1), (1, 0)]).save("ranking.json")
    cli = papa("fit", *tiny, "--trainer.callbacks.heads", amount, "--trainer.callbacks.ranking", "ranking.json")
    assert [layer.constant_heads for layer in swapped_layers(cli.model.encoder)] == [(0,), (1,)]


@pytest.mark.parametrize("preset", ["default", "reference"])
def test_calibrate_writes_a_file_that_fit_uses(preset: str, tiny: list[str], tmp_path: Path) -> None:
    """The default preset fills the average, of which the file has the exact numbers."""
    tiny = [*tiny, "--data.preset", preset, "--model.preset", preset]
    cli = papa("calibrate", *tiny, "--output", "out/constants.safetensors")
    assert cli.trainer.global_step == 0
    constants = AttentionConstants.load("out/constants.safetensors")
    assert constants.metadata["sequences"] == 12
    assert constants.metadata["layout"] == "segment"
    assert constants.metadata["data"].startswith("sst2 train (data_dir data")
    assert "/" not in constants.metadata["tokenizer"]
    assert str(tmp_path) not in str(constants.metadata)
    assert not Path("lightning_logs").exists()
    used = papa("fit", *tiny, "--trainer.callbacks.constants", "out/constants.safetensors")
    expected = constants.filled() if preset == "default" else constants
    for layer, values in zip(swapped_layers(used.model.encoder), expected.values, strict=True):
        assert torch.equal(layer.constants, values)


def test_calibrate_with_the_configuration_of_another_callback(tiny: list[str]) -> None:
    """It would swap the encoder to something else."""
    cli = papa("calibrate", *tiny, "--trainer.callbacks", "HeadGates", "--output", "constants.safetensors")
    assert not any(isinstance(callback, HeadGates) for callback in vars(cli.trainer)["callbacks"])
    assert AttentionConstants.load("constants.safetensors").metadata["sequences"] == 12


def test_constants_of_another_length_than_the_data_are_refused(
    tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Their leading part would do for a shorter batch, but not for rows whose last separator stands elsewhere."""
    papa("calibrate", *tiny, "--output", "constants.safetensors")
    shorter = ["--data.init_args.max_length", "32", "--trainer.callbacks.constants", "constants.safetensors"]
    with pytest.raises(SystemExit):
        main(["fit", *tiny, *shorter])
    assert "made with max_length 64, but max_length is 32" in capsys.readouterr().err


def test_what_the_data_say_cannot_be_contradicted(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", *tiny, "--model.init_args.metrics", "[f1]"])
    assert "model.metrics is ['f1'], but the data say ['accuracy']" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_checkpoint_without_fit(verb: str, tiny: list[str]) -> None:
    fitted = papa("fit", *tiny)
    checkpoint = fitted.trainer.checkpoint_callback.best_model_path
    cli = papa(verb, *tiny, "--ckpt_path", checkpoint)
    assert is_calibrated(cli.model.encoder)
    for one, other in zip(swapped_layers(fitted.model.encoder), swapped_layers(cli.model.encoder), strict=True):
        assert torch.equal(one.constants, other.constants)
    if verb == "validate":
        assert cli.trainer.callback_metrics["val/accuracy"] == fitted.trainer.callback_metrics["val/accuracy"]


def test_resume_neither_calibrates_again_nor_loses_the_constants(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = papa("fit", *tiny)
    monkeypatch.setattr(ConstantAttention, "calibrate", lambda *_: pytest.fail("calibrated again"))
    checkpoint = fitted.trainer.checkpoint_callback.best_model_path
    cli = papa("fit", *tiny, "--trainer.max_epochs", "2", "--ckpt_path", checkpoint)
    assert (cli.trainer.current_epoch, cli.trainer.global_step) == (2, 6)
    for one, other in zip(swapped_layers(fitted.model.encoder), swapped_layers(cli.model.encoder), strict=True):
        assert torch.equal(one.constants, other.constants)


def test_a_saved_configuration_runs_again_with_the_same_result(tiny: list[str]) -> None:
    first = papa("fit", *tiny)
    again = papa("fit", "--config", str(Path(first.trainer.log_dir) / "config.yaml"))
    state = again.model.state_dict()
    for name, value in first.model.state_dict().items():
        assert torch.equal(state[name], value), name


def test_print_config_is_complete(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *tiny, "--print_config"])
    assert stopped.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["class_path"].endswith("SequenceClassificationTask")
    assert config["data"]["init_args"]["max_length"] == 64
    constructors = (SequenceClassificationTask.__init__, EncoderTask.__init__)
    parameters = {name for one in constructors for name in inspect.signature(one).parameters}
    linked = {"num_labels", "metrics", "max_length", "label_names"}  # decided by the data
    assert set(config["model"]["init_args"]) >= parameters - {"self", "args", "kwargs"} - linked
    assert set(config["trainer"]) == set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert {"seed_everything", "ckpt_path", "weights_only"} <= set(config)


def test_what_is_printed_is_the_same_configuration_by_itself(
    tiny: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", *tiny, "--print_config"])
    printed = capsys.readouterr().out
    (tmp_path / "whole.yaml").write_text(printed)
    with pytest.raises(SystemExit):
        main(["fit", "--config", "whole.yaml", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(printed)


def test_a_checkpoint_overrides_the_arguments_of_the_task_and_nothing_else(tiny: list[str]) -> None:
    """Lightning does so (its issue 21455); docs/command_line.md says it, and a warning names what was overridden."""
    fitted = papa("fit", *tiny, "--model.learning_rate", "0.25")
    checkpoint = fitted.trainer.checkpoint_callback.best_model_path
    with pytest.warns(UserWarning, match=r"model.learning_rate is 0.25, from ckpt_path, and not 0.5 as configured"):
        cli = papa(
            "fit", *tiny, "--ckpt_path", checkpoint, "--model.learning_rate", "0.5", "--trainer.max_epochs", "2",
            "--data.init_args.batch_size", "3",
        )  # fmt: skip
    assert cli.model.hparams["learning_rate"] == 0.25
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == 0.25
    assert (cli.trainer.max_epochs, cli.datamodule.batch_size) == (2, 3)


def test_a_checkpoint_that_agrees_gives_no_warning(tiny: list[str]) -> None:
    fitted = papa("fit", *tiny)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        papa("test", *tiny, "--ckpt_path", fitted.trainer.checkpoint_callback.best_model_path)
    assert not [one for one in caught if "as configured" in str(one.message)]


def test_options_win_over_a_checkpoint_that_is_only_evaluated(tiny: list[str]) -> None:
    checkpoint = papa("fit", *tiny, "--trainer.max_steps", "1").trainer.checkpoint_callback.best_model_path
    Path("rate.yaml").write_text("model:\n  init_args:\n    weight_decay: 0.5\n")
    with pytest.warns(UserWarning, match=r"model.weight_decay is 0.0\d*, from ckpt_path, and not 0.5 as configured"):
        cli = papa(
            "validate", *tiny, "--config", "rate.yaml", "--ckpt_path", checkpoint, "--model.learning_rate", "0.5"
        )
    assert cli.model.hparams["learning_rate"] == 0.5
    assert cli.model.hparams["weight_decay"] != 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.init_args.data_dir", "nowhere"], "data_dir is 'nowhere'"),
        (["--model.init_args.encoder", "./nowhere"], "encoder './nowhere' cannot be loaded"),
        (["--data.init_args.batch_size", "0"], "batch_size is 0"),
        (["--trainer.callbacks.heads", "0.5"], "heads is 0.5, a number or share of heads, but ranking is None"),
    ],
)
def test_invalid_input_ends_with_one_line_and_code_2(
    arguments: list[str], message: str, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the parser wraps the error of a constructor in one of its own, of many lines."""
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *tiny, *arguments])
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("papa: error: ")
    assert message in last


def test_debug_shows_the_error_itself(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPA_DEBUG", "1")
    with pytest.raises(PapaError, match="nowhere"):
        main(["fit", *tiny, "--data.init_args.data_dir", "nowhere"])


def test_testing_without_constants_is_refused(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["test", *tiny])
    assert "waits for constants" in capsys.readouterr().err


def test_the_installed_command_ends_well(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The console script exits with what main returns, so without arguments of its own it must return None."""
    monkeypatch.setattr("sys.argv", ["papa", "fit", *tiny, "--trainer.fast_dev_run", "true"])
    assert main() is None


def test_a_checkpoint_loads_without_the_callback(tiny: list[str]) -> None:
    fitted = papa("fit", *tiny, "--trainer.callbacks.heads=[[0,1],[1,0]]")
    task = SequenceClassificationTask.load_from_checkpoint(fitted.trainer.checkpoint_callback.best_model_path)
    assert [layer.constant_heads for layer in swapped_layers(task.encoder)] == [(1,), (0,)]
    batch = next(iter(fitted.datamodule.val_dataloader()))
    with torch.no_grad():
        assert torch.equal(task.eval()(batch), fitted.model.eval()(batch))
