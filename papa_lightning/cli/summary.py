"""Summaries that the command line prints after a run."""

import os
import time
from typing import Literal

from papa_lightning.callbacks import CalibratingCallback, HeadGates, constant_heads, discover_encoder
from papa_lightning.either_lightning import Callback, L
from papa_lightning.encoders import encoder_shape
from papa_lightning.errors import UnsupportedEncoderError
from papa_lightning.lightning_project.run import run_folder
from papa_lightning.text import Table


class Stopwatch(Callback):
    """Times training, in ``seconds``. Lightning's Timer would do, but a Trainer with one ignores its ``max_time``."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._began = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start."""
        self._began = time.monotonic()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop."""
        self.seconds = time.monotonic() - self._began


def fit_summary(trainer: L.Trainer, module: L.LightningModule) -> Table | None:
    """Constant heads, score, times and paths after ``fit``; None when the module holds no supported encoder."""
    callback = next((one for one in trainer.callbacks if isinstance(one, CalibratingCallback)), None)  # type: ignore[attr-defined]
    watch = next((one for one in trainer.callbacks if isinstance(one, Stopwatch)), None)  # type: ignore[attr-defined]
    heads = _constant_heads(module, callback.encoder if callback else None)
    if heads is None:
        return None
    score_name = str(getattr(module, "score_name", "score"))
    score = trainer.callback_metrics.get(score_name)
    logs = run_folder(trainer)
    ranking = callback.ranking_path if isinstance(callback, HeadGates) else None
    rows = [
        ("heads constant", heads),
        (score_name, "not validated" if score is None else f"{float(score):.4f}"),
        ("calibration", _seconds(callback.calibration_seconds if callback else None, "none in this run")),
        ("training", _seconds(watch.seconds if watch else None, "not measured")),
        ("logs", _path(None if logs is None else str(logs), "none")),
        ("constants", _path(callback.constants_path if callback else None, "not written")),
        ("checkpoint", _path(getattr(trainer.checkpoint_callback, "best_model_path", None), "none")),
        *([("ranking", _path(ranking, ""))] if ranking else []),
    ]
    return Table(("", ""), rows, left=2)


def score_summary(trainer: L.Trainer, module: L.LightningModule, stage: Literal["val", "test"]) -> Table:
    """Constant heads and scores after ``validate`` or ``test``: the score of the task first, the others by name."""
    first = str(getattr(module, "score_name", "")).replace("val/", f"{stage}/", 1)
    logged = sorted(trainer.callback_metrics.items(), key=lambda item: (item[0] != first, item[0]))
    heads = _constant_heads(module)
    scores = [(name, f"{float(value):.4f}") for name, value in logged]
    return Table(("", ""), [*([] if heads is None else [("heads constant", heads)]), *scores], left=2)


def _constant_heads(module: L.LightningModule, encoder: str | None = None) -> str | None:
    """Number and share of the constant heads; None when the module holds no supported encoder."""
    try:
        found = discover_encoder(module, encoder)
    except UnsupportedEncoderError:
        return None
    layers, heads = encoder_shape(found)
    constant, total = constant_heads(found), layers * heads
    return f"{constant} of {total} ({constant / total:.1%})"


def _path(path: str | None, otherwise: str) -> str:
    """A path, relative where that is shorter."""
    return min(path, os.path.relpath(path), key=len) if path else otherwise


def _seconds(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:.1f} s"
