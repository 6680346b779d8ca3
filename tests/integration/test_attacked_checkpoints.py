"""`papa` with checkpoints that are damaged, hostile, or behind an address: one line, and nothing is run."""

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from papa_lightning.cli.main import main
from papa_lightning.cli.trainer_verbs import PapaCLI

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")
VERBS = ["fit", "validate", "test", "predict", "rank", "export"]


class Payload:
    """Makes a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("open('ran', 'w').close()",))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Address of a server for the files of `tmp_path`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def checkpoint(encoder_folder: str, data_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that `papa fit` wrote."""
    folder = tmp_path_factory.mktemp("fitted")
    words = [
        "fit", "--model", "SequenceClassificationTask", "--model.encoder", encoder_folder, "--data", "SST2DataModule",
        "--data.data_dir", data_folder, "--data.max_length", "64", "--data.batch_size", "4", "--trainer.accelerator",
        "cpu", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--trainer.callbacks",
        "ConstantAttention", "--trainer.default_root_dir", str(folder),
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["papa"])
        cli = main(words)
    assert isinstance(cli, PapaCLI)
    return Path(cli.trainer.checkpoint_callback.best_model_path)


def words_of(verb: str, tiny: list[str], path: str) -> list[str]:
    if verb == "export":
        return ["export", "--output", "exported", "--ckpt_path", path]
    return [verb, *tiny, "--ckpt_path", path, *(["--trainer.max_epochs", "2"] if verb == "fit" else [])]


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("papa: error: ")
    return last


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("where", ["{address}/bad.ckpt", "file://{folder}/bad.ckpt", "bad.ckpt"])
def test_what_it_holds_is_never_run(
    where: str, verb: str, tiny: list[str], checkpoint: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({**torch.load(checkpoint, weights_only=True), "extra": Payload()}, "bad.ckpt")
    line = refused(words_of(verb, tiny, where.format(address=address, folder=Path.cwd())), capsys)
    assert "holds more than tensors and plain values" in line
    assert not Path("ran").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_a_good_one_is_taken_from_an_address(verb: str, tiny: list[str], checkpoint: Path, address: str) -> None:
    Path("good.ckpt").write_bytes(checkpoint.read_bytes())
    main(words_of(verb, tiny, f"{address}/good.ckpt"))


def test_it_cannot_be_allowed(tiny: list[str], checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["test", *tiny, "--ckpt_path", str(checkpoint)]
    assert "weights_only is False" in refused([*words, "--weights_only", "false"], capsys)
    main([*words, "--weights_only", "true"])


def test_a_path_in_a_configuration_is_checked_as_well(
    tiny: list[str], address: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({**torch.load(checkpoint, weights_only=True), "extra": Payload()}, "bad.ckpt")
    Path("path.yaml").write_text(f"ckpt_path: {address}/bad.ckpt\n")
    assert "holds more than" in refused(["test", *tiny, "--config", "path.yaml"], capsys)
    assert not Path("ran").exists()


def test_the_last_one_of_a_run_is_not_run_either(
    tiny: list[str], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("kept").mkdir()
    torch.save({**torch.load(checkpoint, weights_only=True), "extra": Payload()}, "kept/last.ckpt")
    saving = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath", "kept"]
    saving += ["--trainer.callbacks.save_last", "true"]
    assert "holds more than" in refused(["fit", *tiny, *saving, "--ckpt_path", "last"], capsys)
    assert not Path("ran").exists()


def _changed(content: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**content, **changes}.items() if value is not ...}


DAMAGES: dict[str, Any] = {
    "no_version": {"pytorch-lightning_version": ...},
    "no_state": {"state_dict": ...},
    "a_list_of_states": {"state_dict": [1, 2]},
    "arguments_of_no_task": {"hyper_parameters": {"nonsense": 1}},
    "arguments_as_text": {"hyper_parameters": "encoder"},
    "an_encoder_that_is_none": {"hyper_parameters": {"encoder": 3}},
    "no_tensors": {"state_dict": {"encoder.embeddings.word_embeddings.weight": "text"}},
    "an_empty_state": {"state_dict": {}},
    "no_loops": {"loops": ...},
    "strange_loops": {"loops": [1]},
    "strange_loop": {"loops": {"fit_loop": 1}},
    "strange_optimizers": {"optimizer_states": [3]},
    "no_optimizers": {"optimizer_states": []},
    "optimizers_as_text": {"optimizer_states": "text"},
    "strange_callbacks": {"callbacks": [1]},
    "strange_callback": {"callbacks": {"ConstantAttention{'encoder': None}": 3}},
    "strange_epoch": {"epoch": "text"},
    "strange_step": {"global_step": "text"},
    "strange_schedules": {"lr_schedulers": 5},
}


@pytest.mark.parametrize("verb", ["fit", "test", "export"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_content_ends_in_one_line_or_does_no_harm(
    damage: str, verb: str, tiny: list[str], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(_changed(torch.load(checkpoint, weights_only=True), **DAMAGES[damage]), "bad.ckpt")
    code = 0
    try:
        main(words_of(verb, tiny, "bad.ckpt"))
    except SystemExit as stopped:
        code = stopped.code
    last = capsys.readouterr().err.splitlines()[-1]
    assert (code, last.startswith("papa: error: ")) in [(0, False), (2, True)]


def test_a_folder(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("sharded").mkdir()
    Path("sharded/.metadata").write_bytes(b"")
    assert "consolidate_checkpoint sharded" in refused(["test", *tiny, "--ckpt_path", "sharded"], capsys)
