"""Errors of a configuration: one line that names what is wrong, exit code 2, no traceback."""

import re
import sys
from pathlib import Path

import pytest
import torch
from fresh_processes import in_a_new_process
from lightning.fabric.utilities.exceptions import MisconfigurationException

from papa_lightning import PapaError
from papa_lightning.cli.main import main

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert "usage:" not in printed
    (line,) = [line for line in printed.splitlines() if "error: " in line]
    assert line == printed.splitlines()[-1]
    assert line.startswith("papa: error: ")
    return line.removeprefix("papa: error: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no command is given. Choose from demo, init, study, report, budget, atlas, fit, "),
        (
            ["frob"],
            "there is no command 'frob'. Choose from demo, init, study, report, budget, atlas, fit, validate, ",
        ),
        (["fit", "--config", "nowhere.yaml"], "config is 'nowhere.yaml', which is neither a file nor a configuration"),
        (["study", "--config", "dem.yaml"], "Similar: demo.yaml, study/demo.yaml."),
        (["study", "--nonsense", "1"], "unrecognized arguments: --nonsense 1"),
        (["budget"], "the following arguments are required: output, encoder, task, within"),
        (["report", "nowhere"], "there is no study in 'nowhere'"),
        (["stduy"], "there is no command 'stduy'. Did you mean 'study'?"),
        (["study", "--sheeds", "[0]"], "unrecognized arguments: --sheeds [0]. Did you mean '--seeds'?"),
        (["study", "demo.yaml"], "unrecognized arguments: demo.yaml: a file of arguments stands behind --config"),
        (
            ["study", "--config", "demo.yaml", "--output", "o", "--seeds", "0,1"],
            "seeds is 0,1, but must be a list: [0,1]",
        ),
        (
            ["study", "--output", "o"],
            "encoders is empty: pass a file that has encoders and tasks, such as --config dem",
        ),
        (["study"], "required: output: pass them, or a file that has them: --config FILE"),
        (["report"], "the following arguments are required: folder: `papa report FOLDER`"),
        (
            ["fit"],
            "model is missing: put --config defaults.yaml before the file of a task, or pass a file that has mod",
        ),
        (["fit", "--config", "sst2.yaml"], "model is missing: put --config defaults.yaml before the file of a task"),
        (["fit", "--model.encoder", "x"], "model.encoder is given, but not the class of model: put --config defaults"),
        (["rank", "--data.max_length", "8"], "data.max_length is given, but not the class of data: put --config def"),
        (["calibrate", "--config", "encoders/minilm.yaml"], "minilm.yaml, line 7: model.encoder is given, but not the"),
        (
            ["fit", "--model", "SequenceClassificationTask", "--model.encoder", "x"],
            "data is missing, which decides the",
        ),
        (["fit", "--config", "."], "config is '.', a folder"),
    ],
)
def test_words_that_no_parser_knows(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(words, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.max_epochs", "abc"], "trainer.max_epochs is abc, but must be int or null"),
        (["--trainer.nonsense", "1"], "unrecognized arguments: --trainer.nonsense 1"),
        (["--model.nonsense", "1"], "model.nonsense is no argument of SequenceClassificationTask: choose from "),
        (["--model.learning_rat", "1"], "is no argument of SequenceClassificationTask. Did you mean 'learning_rate'?"),
        (["--model", "torch.nn.Linear"], "model is torch.nn.Linear, which is no LightningModule: choose from Image"),
        (["--data", "DemoDataModul"], "import path of a class. Did you mean 'DemoDataModule'?"),
        (["--model.learning_rate", "fast"], "model.learning_rate is fast, but must be float"),
        (["--trainer.callbacks.heads", "some"], "trainer.callbacks.heads is some, but must be 'all' or int or"),
        (["--data", "Nonsense"], "data is Nonsense, but must be the name or the import path of a class"),
        (["--trainer.strategy", "nonsense"], "You selected an invalid strategy name"),
        (["--trainer.accelerator", "nonsense"], "You selected an invalid accelerator name"),
        (["--trainer.devices", "0"], "value is not a valid input using cpu accelerator"),
        (["--trainer.max_epochs", "-5"], "`max_epochs` must be a non-negative integer or -1"),
        (["--seed_everything", "-1"], "seed_everything is -1"),
        (
            ["--ckpt_path", "nowhere.ckpt"],
            "ckpt_path is 'nowhere.ckpt', but there is no such file",
        ),
        (["--ckpt_path", "best"], "ckpt_path is 'best'"),
    ],
)
def test_values_that_fit_nothing(
    arguments: list[str], message: str, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(["fit", *tiny, *arguments], capsys)


@pytest.mark.parametrize("verb", ["fit", "test", "rank"])
def test_a_damaged_checkpoint(verb: str, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("damaged.ckpt").write_bytes(b"PK\x03\x04 half of a file")
    assert "'damaged.ckpt', which is damaged" in refused([verb, *tiny, "--ckpt_path", "damaged.ckpt"], capsys)


@pytest.mark.parametrize("verb", ["fit", "test", "rank"])
def test_a_checkpoint_of_another_model(verb: str, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    state = {f"bert.weight{number}": torch.zeros(1) for number in range(100)}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.6.0"}, "other.ckpt")
    line = refused([verb, *tiny, "--ckpt_path", "other.ckpt"], capsys)
    assert "not a checkpoint of this" in line
    assert "SequenceClassificationTask" in line
    assert "Missing key(s)" in line
    assert len(line) < 500


@pytest.mark.parametrize("verb", ["calibrate", "rank", "predict"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    verb: str, tiny: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("papa_lightning.cli.trainer.PapaTrainer.fit", lambda *_, **__: pytest.fail("began"))
    long = f"{'a' * 300}.jsonl"
    assert "File name too long" in refused([verb, *tiny, "--output", long], capsys)
    Path("file").touch()
    Path("folder").mkdir()
    assert "output is 'file/x'" in refused([verb, *tiny, "--output", "file/x"], capsys)
    assert "output is 'folder'" in refused([verb, *tiny, "--output", "folder"], capsys)


def test_an_error_of_the_system_names_the_file(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    line = refused(["fit", *tiny, "--trainer.default_root_dir", "file"], capsys)
    assert "file" in line
    assert "PAPA_DEBUG=1 shows the traceback" in line


def test_what_lightning_refuses_while_it_runs(
    tiny: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*_: object, **__: object) -> None:
        raise MisconfigurationException("No `x()`\n method defined.")

    monkeypatch.setattr("papa_lightning.cli.trainer.PapaTrainer.fit", fit)
    assert refused(["fit", *tiny], capsys) == "No `x()` method defined. (PAPA_DEBUG=1 shows the traceback)"


def test_an_error_of_the_code_of_a_user_names_its_line(
    tiny: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*_: object, **__: object) -> None:
        raise ValueError("a bug\n of mine")

    monkeypatch.setattr("papa_lightning.cli.trainer.PapaTrainer.fit", fit)
    line = refused(["fit", *tiny], capsys)
    assert re.search(r"test_command_line_errors.py:\d+: ValueError: a bug of mine \(PAPA_DEBUG=1", line)


@pytest.mark.parametrize("arguments", [["--trainer.max_epochs", "abc"], ["--trainer.strategy", "nonsense"]])
def test_debug_shows_errors_of_libraries(
    arguments: list[str], tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAPA_DEBUG", "1")
    with pytest.raises(Exception, match=r"abc|invalid strategy") as raised:
        main(["fit", *tiny, *arguments])
    assert not isinstance(raised.value, SystemExit)
    assert raised.value.__cause__ is not None or not isinstance(raised.value, PapaError)


def test_the_help_lists_every_command_on_lines_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    listed = re.findall(r"^    (\w+) +\w", capsys.readouterr().out, flags=re.MULTILINE)
    for verb in ("fit", "validate", "test", "predict", "calibrate", "rank", "study", "report", "budget"):
        assert verb in listed


def studies_in_a_new_process() -> list[str]:
    """A process that imports only the command line and its dependencies."""
    assert "papa_lightning.cli.main" in sys.modules
    return [name for name in sys.modules if name.startswith("papa_lightning.study")]


def test_a_fit_does_not_import_studies() -> None:
    """They bring matplotlib's figures and tables, which only `papa study`, `report` and `budget` need."""
    assert in_a_new_process(studies_in_a_new_process) == []
