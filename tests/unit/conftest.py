"""Fixtures that several rooms use."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest


@pytest.fixture(scope="session")
def quiet_trainer() -> Callable[..., L.Trainer]:
    def make(**arguments: Any) -> L.Trainer:
        names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        return L.Trainer(**({**dict.fromkeys(names, False), "accelerator": "cpu", "devices": 1} | arguments))

    return make
