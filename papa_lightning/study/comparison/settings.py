"""Settings of a comparison of kinds of attention: a task, its data, variants of the model, steps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from papa_lightning.errors import PapaError
from papa_lightning.study.settings import check_names

#: Keys of a variant that are no arguments of the task.
_SWAP = ("kind", "kind_options", "constants", "added_learning_rate")


@dataclass(frozen=True)
class KindsSettings:
    """A comparison of kinds: every variant of a model is trained for the same number of steps from the same start.

    Args:
        model: The task: ``class_path`` and ``init_args``. A task that learns from nothing, such as
            LanguageModelingTask, or one with a pretrained encoder, whose attention is swapped before it is trained.
        data: The data module: ``class_path`` and ``init_args``.
        variants: Changes by name of the variant: arguments of the task, such as ``num_heads``, and ``kind`` with
            ``kind_options``. For a pretrained encoder also ``constants``, the file from which the kind starts, and
            ``added_learning_rate``, the learning rate of the parameters that the kind adds. The first variant is the
            reference.
        steps: Optimizer steps of each training.
        equal_parameters: Whether every variant gets as many parameters as the reference, as closely as the width of the
            feed-forward layers allows; for tasks that learn from nothing.
        gradient_clip: Largest norm of the gradient.
        precision: Precision of Lightning's Trainer.
        accelerator: Accelerator of Lightning's Trainer; each training uses one device.

    Raises:
        PapaError: When an argument is out of its range.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    steps: int = 600
    equal_parameters: bool = True
    gradient_clip: float = 1.0
    precision: str = "32-true"
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        if not (self.model or self.data or self.variants):
            return  # the argument of a study without kinds
        check_names("kinds.variants", self.variants)
        for name in ("model", "data"):
            given = getattr(self, name)
            if not isinstance(given, Mapping) or "class_path" not in given or set(given) - {"class_path", "init_args"}:
                raise PapaError(f"kinds.{name} is {given!r}, but must have class_path and init_args.")
        for name, variant in self.variants.items():
            if not isinstance(variant, Mapping):
                raise PapaError(f"kinds.variants has {name!r} as {variant!r}, but must map arguments to values.")
            _check_rate(f"kinds.variants.{name}", variant)
        if isinstance(self.steps, bool) or self.steps < 1:
            raise PapaError(f"kinds.steps is {self.steps!r}, but must be at least 1.")
        if not self.gradient_clip > 0:
            raise PapaError(f"kinds.gradient_clip is {self.gradient_clip!r}, but must be above 0.")

    @property
    def reference(self) -> str:
        """The first variant, with which the others are compared."""
        return next(iter(self.variants))

    def arguments(self, variant: str) -> dict[str, Any]:
        """The arguments of the task of a variant, without those of the swap."""
        changed = {name: value for name, value in self.variants[variant].items() if name not in _SWAP}
        return {**(self.model.get("init_args") or {}), **changed}

    def swap(self, variant: str) -> dict[str, Any]:
        """The arguments of the swap of a variant."""
        return {name: value for name, value in self.variants[variant].items() if name in _SWAP}


def _check_rate(name: str, variant: Mapping[str, Any]) -> None:
    rate, kind = variant.get("added_learning_rate"), variant.get("kind", "dynamic")
    if rate is None:
        return
    if kind == "dynamic":
        raise PapaError(f"{name} has added_learning_rate={rate!r}, but adds nothing: give it a kind, or leave it out.")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
        raise PapaError(f"{name}.added_learning_rate is {rate!r}, but must be a number above 0.")
