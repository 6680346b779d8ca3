"""Constants and gates as images, in every logger that takes images; and the folder of runs of other loggers."""

import io
import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import FSDPStrategy
from PIL import Image
from projects import LENGTH, Classifier, loaders, trainer

from papa_lightning import AttentionConstants, AttentionImages, ConstantAttention, HeadGates, PapaError
from papa_lightning.callbacks.attention_images import constant_matrices, log_image
from papa_lightning.figures import as_png, head_maps


def fit(folder: Path, *callbacks: L.Callback, logger: Any = None, **settings: Any) -> tuple[L.Trainer, Classifier]:
    module = Classifier()
    run = trainer(*callbacks, **{"logger": logger or CSVLogger(folder), "max_epochs": 2, **settings})
    run.fit(module, **loaders())
    return run, module


def images(run: L.Trainer) -> list[str]:
    return sorted(path.name for path in (Path(run.log_dir or "") / "images").glob("*"))


def test_constants_are_drawn_once(tmp_path: Path) -> None:
    run, _ = fit(tmp_path, AttentionImages(), ConstantAttention(max_length=LENGTH))
    assert images(run) == ["attention-constants-000000.png"]
    picture = Image.open(Path(run.log_dir or "") / "images" / "attention-constants-000000.png")
    assert picture.width > 300
    assert len(picture.convert("L").getcolors() or []) > 20


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 2, 4]), (2, [0, 4])])
def test_gates_are_drawn_as_they_move(every: int, steps: list[int], tmp_path: Path) -> None:
    gates = HeadGates(max_length=LENGTH, learning_rate=0.5)
    run, _ = fit(tmp_path, gates, AttentionImages(every_n_epochs=every))
    maps = [f"attention-gates-{step:06d}.png" for step in steps]
    assert images(run) == ["attention-constants-000000.png", *maps]
    first, last = (Path(run.log_dir or "") / "images" / name for name in (maps[0], maps[-1]))
    assert first.read_bytes() != last.read_bytes()


def test_dynamic_heads_have_no_constants_to_show(tmp_path: Path) -> None:
    run, module = fit(tmp_path, ConstantAttention(max_length=LENGTH, heads=[(0, 1)]))
    values = constant_matrices(module)
    assert values is not None
    saved = AttentionConstants.load(Path(run.log_dir or "") / "constants.safetensors").values
    assert torch.equal(values[0, 1], saved[0, 1])
    assert values[0, 1].sum() > 0
    assert values[1].sum() == values[0, 0].sum() == 0


def test_nothing_to_draw_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="finds no constants to draw"):
        run, _ = fit(tmp_path, AttentionImages())
    assert images(run) == []


def test_images_change_nothing_in_the_training(tmp_path: Path) -> None:
    _, plain = fit(tmp_path, HeadGates(max_length=LENGTH, learning_rate=0.5))
    _, drawn = fit(tmp_path, AttentionImages(), HeadGates(max_length=LENGTH, learning_rate=0.5))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, drawn.state_dict()[name]), name


def test_invalid_arguments_and_strategies() -> None:
    with pytest.raises(PapaError, match="every_n_epochs is 0"):
        AttentionImages(every_n_epochs=0)
    run = trainer(AttentionImages())
    run.strategy.__class__ = type("Sharding", (FSDPStrategy, type(run.strategy)), {})
    with pytest.raises(PapaError, match="shards the constants"):
        AttentionImages().setup(run, Classifier(), "fit")


class Recorder:
    """Stands for a package that is not installed, and notes what is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def png() -> bytes:
    return as_png(head_maps({"gate": torch.tensor([[0.1, 0.9], [0.4, 0.6]])}, "gates"))


def with_logger(kind: type[Logger], **attributes: Any) -> tuple[Any, Recorder]:
    """A Trainer with a logger that was never made, because its package may be missing."""
    recorder = Recorder()
    parts = {"experiment": property(lambda self: recorder), "__init__": lambda self: None, **attributes}
    run = trainer()
    run.loggers = [type("Substitute", (kind,), parts)()]
    return run, recorder


def test_the_colours_of_a_map_say_what_they_tell() -> None:
    figure = head_maps({"after 2 steps": torch.rand(2, 2)}, "gates", "share of dynamic attention")
    assert figure.axes[-1].get_ylabel() == "share of dynamic attention"


def test_tensorboard_gets_pixels() -> None:
    run, recorder = with_logger(TensorBoardLogger)
    assert log_image(run.loggers, "attention/gates", png(), 7) == []
    ((call, (name, pixels, step), settings),) = recorder.calls
    assert (call, name, step, settings) == ("add_image", "attention/gates", 7, {"dataformats": "HWC"})
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(png())).convert("RGB")))


def test_wandb_gets_an_image_under_the_step_of_the_trainer() -> None:
    calls = []
    run, _ = with_logger(WandbLogger, log_image=lambda self, *args: calls.append(args))
    assert log_image(run.loggers, "attention/gates", png(), 7) == []
    ((name, (picture,), step),) = calls
    assert (name, step) == ("attention/gates", 7)
    assert picture.shape[:2] == Image.open(io.BytesIO(png())).size[::-1]


def test_mlflow_gets_an_artifact_for_each_step() -> None:
    run, recorder = with_logger(MLFlowLogger, run_id="r1")
    assert log_image(run.loggers, "attention/gates", png(), 7) == []
    ((call, (run_id, picture), settings),) = recorder.calls
    assert (call, run_id, settings) == ("log_image", "r1", {"artifact_file": "attention/gates/step-000007.png"})
    assert picture.dtype == np.uint8


class Numbers(Logger):
    """A custom logger for numbers only, with all its runs in one folder."""

    def __init__(self, folder: Path, version: str) -> None:
        self.folder, self._version = folder, version
        self.logged: dict[str, float] = {}

    name = property(lambda self: "project")
    version = property(lambda self: self._version)
    save_dir = property(lambda self: str(self.folder))

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.logged |= metrics

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


def test_a_logger_without_images_is_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Numbers takes no images"):
        fit(tmp_path, AttentionImages(), ConstantAttention(max_length=LENGTH), logger=Numbers(tmp_path, "1"))


def test_two_runs_of_a_logger_with_one_folder_keep_their_files(tmp_path: Path) -> None:
    """As WandbLogger and MLFlowLogger: their save_dir is that of all runs, and constants overwrote each other."""
    for version in ("one", "two"):
        callback = HeadGates(max_length=LENGTH)
        fit(tmp_path, callback, logger=Numbers(tmp_path, version))
        assert callback.constants_path == str(tmp_path / "project" / version / "constants.safetensors")
        assert callback.ranking_path == str(tmp_path / "project" / version / "ranking.json")
    assert len(list(tmp_path.rglob("constants.safetensors"))) == 2


def test_the_pass_is_logged_with_its_unit(tmp_path: Path) -> None:
    logger = Numbers(tmp_path, "1")
    callback = ConstantAttention(max_length=LENGTH)
    fit(tmp_path, callback, logger=logger)
    assert logger.logged["calibration/seconds"] == callback.calibration_seconds
    assert logger.logged["calibration/sequences"] == 8


def test_the_real_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = fit(
        tmp_path, AttentionImages(), HeadGates(max_length=LENGTH, learning_rate=0.5), logger=TensorBoardLogger(tmp_path)
    )
    events = EventAccumulator(str(run.log_dir))
    events.Reload()
    assert [image.step for image in events.Images("attention/gates")] == [0, 2, 4]
    assert [image.step for image in events.Images("attention/constants")] == [0]
    assert events.Scalars("calibration/sequences")[0].value == 8


def test_the_real_mlflow(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="not a dependency")
    logger = MLFlowLogger(
        "project", tracking_uri=f"sqlite:///{tmp_path}/runs.db", artifact_location=f"file:{tmp_path}/a"
    )
    fit(tmp_path, AttentionImages(), HeadGates(max_length=LENGTH), logger=logger, default_root_dir=tmp_path)
    assert len(list(tmp_path.rglob("attention/gates/step-*.png"))) == 3
    assert logger.experiment.get_run(logger.run_id).data.metrics["calibration/sequences"] == 8
    assert len(list(tmp_path.rglob(f"{logger.run_id}/constants.safetensors"))) == 1


def test_the_real_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="not a dependency")
    logger = WandbLogger("run", save_dir=tmp_path, offline=True)
    fit(tmp_path, AttentionImages(), HeadGates(max_length=LENGTH), logger=logger)
    logger.experiment.finish()
    assert len(list(tmp_path.rglob("media/images/attention/gates_*.png"))) == 3
    assert len(list(tmp_path.rglob(f"{logger.version}/constants.safetensors"))) == 1
    summaries = [json.loads(path.read_text()) for path in tmp_path.rglob("wandb-summary.json")]
    assert all("attention/gates" in one for one in summaries)
