"""The curves of a study in loggers of Lightning."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from papa_lightning.callbacks.attention_images import log_image
from papa_lightning.either_lightning import Logger
from papa_lightning.figures import as_png
from papa_lightning.study.settings import StudySettings
from papa_lightning.study.views import curve_figure


def log_study(loggers: Sequence[Logger], settings: StudySettings, summary: pd.DataFrame) -> None:
    """Give the curves of a study to loggers, with its settings as hyperparameters.

    The score of each encoder, task and criterion is the metric ``TASK/METRIC/ENCODER/CRITERION`` (for controls with the
    kind of constants in place of the criterion), a mean over the seeds, with the number of constant heads as its step.
    The figure is the image ``curve/ENCODER/TASK`` for loggers that take images.

    Args:
        loggers: The loggers.
        settings: Settings of the study.
        summary: Means of the results, see :func:`~papa_lightning.study.summarize`.
    """
    if not loggers or not len(summary):
        return
    own = summary[summary["is_score"].astype(bool) & summary["mean"].notna()]
    points: dict[int, dict[str, float]] = {}
    for _, row in own.iterrows():
        kind = row["criterion"] if row["constants"] == "average" else row["constants"]
        name = "/".join([row["task"], row["metric"], row["encoder"], kind])
        points.setdefault(int(row["constant_heads"]), {})[name] = float(row["mean"])
    for logger in loggers:
        logger.log_hyperparams(settings.as_dict())
        for step, values in sorted(points.items()):  # once a step: loggers of files have a row for each
            logger.log_metrics(values, step)
    for encoder, task in own[["encoder", "task"]].drop_duplicates().itertuples(index=False):
        log_image(loggers, f"curve/{encoder}/{task}", as_png(curve_figure(summary, encoder, task)), 0)
    for logger in loggers:
        logger.finalize("success")
