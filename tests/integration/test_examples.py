"""The examples as a reader runs them, and the claim that two added lines do it."""

import difflib
import runpy
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from papa_lightning import AttentionConstants
from papa_lightning.encoders import is_calibrated, swapped_layers

EXAMPLES = Path(__file__).parents[2] / "examples"
PROJECT = EXAMPLES / "existing_project"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Logs land in the working folder, and the modules of an example are those beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["example"])
    yield
    for name in ("project", "data", "cli"):
        sys.modules.pop(name, None)


def run(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(path.parent))
    return runpy.run_path(str(path))


@pytest.mark.parametrize(
    ("before", "after"), [("fit.py", "fit_with_constants.py"), ("config.yaml", "config_with_constants.yaml")]
)
def test_two_lines_are_added_and_none_is_changed(before: str, after: str) -> None:
    lines = [(PROJECT / name).read_text().splitlines() for name in (before, after)]
    changes = [line for line in difflib.ndiff(*lines) if line[0] in "+-"]
    assert [line[0] for line in changes] == ["+", "+"]
    assert "papa_lightning" in changes[0]


def test_the_project_knows_nothing_of_us() -> None:
    for name in ("project.py", "fit.py", "cli.py", "config.yaml"):
        code = [line for line in (PROJECT / name).read_text().splitlines() if not line.startswith('"""')]
        assert "papa" not in "\n".join(code)


def assert_all_constant(module: L.LightningModule, trainer: L.Trainer) -> None:
    encoder = module.language_model
    assert is_calibrated(encoder)
    assert [layer.constant_heads for layer in swapped_layers(encoder)] == [(0, 1, 2, 3)] * 2
    written = AttentionConstants.load(Path(trainer.log_dir or "") / "constants.safetensors")
    assert written.metadata["sequences"] == 64
    for layer, values in zip(swapped_layers(encoder), written.values, strict=True):
        assert torch.equal(layer.constants, values)


def test_in_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = run(PROJECT / "fit.py", monkeypatch), run(PROJECT / "fit_with_constants.py", monkeypatch)
    assert swapped_layers(before["module"].language_model) == []
    assert_all_constant(after["module"], after["trainer"])
    for names in (before, after):
        assert names["trainer"].global_step == 32
        assert names["trainer"].callback_metrics["val/accuracy"] > 0.7
        assert [round(group["lr"], 6) for group in names["trainer"].optimizers[0].param_groups] == [1e-3, 1e-3, 1e-2]


def test_in_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    main = run(PROJECT / "cli.py", monkeypatch)["main"]
    config = str(PROJECT / "config_with_constants.yaml")
    cli = main(["fit", "--config", config])
    assert_all_constant(cli.model, cli.trainer)
    best = cli.trainer.checkpoint_callback.best_model_path
    again = main(["validate", "--config", config, "--ckpt_path", best])
    expected = cli.trainer.checkpoint_callback.best_model_score
    assert again.trainer.callback_metrics["val/accuracy"] == expected
    assert swapped_layers(main(["fit", "--config", str(PROJECT / "config.yaml")]).model.language_model) == []


def test_the_lines_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that swaps itself as a checkpoint was saved, and the plain module with the rest of it."""
    from papa_lightning.encoders import plain_state, swap_as_saved

    after = run(PROJECT / "fit_with_constants.py", monkeypatch)
    path = after["trainer"].checkpoint_callback.best_model_path

    class Prepared(after["ReviewClassifier"]):  # type: ignore[name-defined,misc,valid-type]
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            swap_as_saved(self, checkpoint["state_dict"])

    module = Prepared.load_from_checkpoint(path, weights_only=True)
    assert is_calibrated(module.language_model)
    plain = after["ReviewClassifier"]()
    plain.load_state_dict(plain_state(torch.load(path, weights_only=True)["state_dict"]))
    assert swapped_layers(plain.language_model) == []


def test_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run(EXAMPLES / "without_lightning" / "torch_loop.py", monkeypatch)
    assert [layer.constant_heads for layer in swapped_layers(names["model"])] == [(0, 1), (2,)]
    assert names["losses"][-1] < 0.7 * names["losses"][0]


def test_the_trainer_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")
    names = run(EXAMPLES / "without_lightning" / "transformers_trainer.py", monkeypatch)
    assert is_calibrated(names["model"])
    assert names["scores"]["eval_loss"] < 0.5
    assert is_calibrated(names["loaded"])
    assert names["difference"] < 1e-5
