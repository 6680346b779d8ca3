"""Summaries that the command line prints after a run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from papa_lightning.callbacks import CalibratingCallback, HeadGates, constant_heads, discover_encoder
from papa_lightning.either_lightning import Callback, L
from papa_lightning.encoders import encoder_shape
from papa_lightning.errors import UnsupportedEncoderError
from papa_lightning.lightning_project.run import run_folder
from papa_lightning.text import Table


class Stopwatch(Callback):
    """Times training. Lightning's Timer would do, but a Trainer with one ignores its ``max_time``.

    Attributes:
        seconds: Duration of the last training with its validations; None before the end of one.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._began = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start."""
        self._began = time.monotonic()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop."""
        self.seconds = time.monotonic() - self._began


@dataclass(frozen=True)
class FitSummary:
    """The facts of one fit.

    Args:
        constant: Number of heads that are constant.
        total: Number of heads.
        score_name: Logged name of the score, e.g. "val/accuracy".
        score: Its last value, or None when nothing was validated.
        calibration_seconds: Duration of the calibration pass; None when this run did not calibrate.
        training_seconds: Duration of training and validation together.
        logs: Folder of the logs, or None.
        constants: Path of the constants file, or None.
        checkpoint: Path of the last or best checkpoint, or None.
        ranking: Path of the ranking file, or None without trained gates.
    """

    constant: int
    total: int
    score_name: str
    score: float | None
    calibration_seconds: float | None
    training_seconds: float | None
    logs: str | None
    constants: str | None
    checkpoint: str | None
    ranking: str | None = None

    @property
    def share(self) -> float:
        """Share of constant heads."""
        return self.constant / self.total

    def __str__(self) -> str:
        """Table of two columns."""
        rows = [
            ("heads constant", _heads(self.constant, self.total)),
            (self.score_name, "not validated" if self.score is None else f"{self.score:.4f}"),
            ("calibration", _seconds(self.calibration_seconds, "none in this run")),
            ("training", _seconds(self.training_seconds, "not measured")),
            ("logs", _path(self.logs, "none")),
            ("constants", _path(self.constants, "not written")),
            ("checkpoint", _path(self.checkpoint, "none")),
            *([("ranking", _path(self.ranking, ""))] if self.ranking else []),
        ]
        return str(Table(("", ""), rows, left=2))


def summarize_fit(trainer: L.Trainer, module: L.LightningModule) -> FitSummary | None:
    """Collect the facts of a fit that has ended.

    Args:
        trainer: The Trainer, after ``fit``.
        module: The fitted module; ``score_name`` is the name of its score.

    Returns:
        The summary, or None when the module holds no supported encoder.
    """
    callback = next((one for one in trainer.callbacks if isinstance(one, CalibratingCallback)), None)  # type: ignore[attr-defined]
    watch = next((one for one in trainer.callbacks if isinstance(one, Stopwatch)), None)  # type: ignore[attr-defined]
    try:
        encoder = discover_encoder(module, callback.encoder if callback else None)
    except UnsupportedEncoderError:
        return None
    layers, heads = encoder_shape(encoder)
    score_name = str(getattr(module, "score_name", "score"))
    score = trainer.callback_metrics.get(score_name)
    return FitSummary(
        constant=constant_heads(encoder),
        total=layers * heads,
        score_name=score_name,
        score=None if score is None else float(score),
        calibration_seconds=callback.calibration_seconds if callback else None,
        training_seconds=watch.seconds if watch else None,
        logs=None if (folder := run_folder(trainer)) is None else str(folder),
        constants=callback.constants_path if callback else None,
        checkpoint=getattr(trainer.checkpoint_callback, "best_model_path", None),
        ranking=callback.ranking_path if isinstance(callback, HeadGates) else None,
    )


@dataclass(frozen=True)
class ScoreSummary:
    """The scores of a validation or a test.

    Args:
        scores: Scores by logged name.
        constant: Number of heads that are constant; None when the module holds no supported encoder.
        total: Number of heads.
    """

    scores: Mapping[str, float]
    constant: int | None
    total: int

    def __str__(self) -> str:
        """Table of two columns."""
        heads = [] if self.constant is None else [("heads constant", _heads(self.constant, self.total))]
        scores = [(name, f"{score:.4f}") for name, score in self.scores.items()]
        return str(Table(("", ""), [*heads, *scores], left=2))


def summarize_scores(trainer: L.Trainer, module: L.LightningModule, stage: Literal["val", "test"]) -> ScoreSummary:
    """Collect the scores of a validation or test that has ended.

    Args:
        trainer: The Trainer, after ``validate`` or ``test``.
        module: The evaluated module.
        stage: First part of the names of its scores.

    Returns:
        The summary: the score of the task first, then all others by name.
    """
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    first = str(getattr(module, "score_name", "")).replace("val/", f"{stage}/", 1)
    names = sorted(logged, key=lambda name: (name != first, name))
    try:
        encoder = discover_encoder(module)
    except UnsupportedEncoderError:
        return ScoreSummary({name: logged[name] for name in names}, None, 0)
    layers, heads = encoder_shape(encoder)
    return ScoreSummary({name: logged[name] for name in names}, constant_heads(encoder), layers * heads)


def _heads(constant: int, total: int) -> str:
    return f"{constant} of {total} ({constant / total:.1%})"


def _path(path: str | None, otherwise: str) -> str:
    """A path, relative where that is shorter."""
    return min(path, os.path.relpath(path), key=len) if path else otherwise


def _seconds(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:.1f} s"
