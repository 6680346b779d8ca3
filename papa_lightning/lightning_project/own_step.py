"""Running a step of a LightningModule without side effects, to observe the calls of its encoder."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from papa_lightning.calibration import eval_mode
from papa_lightning.either_lightning import L
from papa_lightning.errors import CalibrationError, PapaError
from papa_lightning.lightning_project.restoring import unchanged

REMEDY = (
    "override encoder_inputs(batch) of the callback, which gives the encoder's inputs in a batch, so that the step is "
    "not needed"
)


@contextmanager
def trial(trainer: L.Trainer, module: L.LightningModule, hooks: Sequence[Callable[[], Any]]) -> Iterator[None]:
    """Run steps of a module in evaluation mode, without gradients, logs and optimizers; undo all effects."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    with ExitStack() as stack:
        # First, because it takes the stand-ins out of the module too.
        kept = [*module.modules(), *trainer.optimizers, *schedulers]  # parts, because it looks into no compiled one
        stack.enter_context(unchanged(kept, besides=[trainer, trainer.strategy]))
        stack.enter_context(_attributes(trainer, dict(vars(trainer))))  # a step may ask it to stop
        trainer.loggers = [_Silent(logger) for logger in trainer.loggers]  # type: ignore[misc]
        stack.enter_context(eval_mode(module))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_NoBackward())
        vars(module).update(_stand_ins(trainer, module))
        for part in module.modules():  # a step or hook may ask for dropout again, which averages would show
            stack.enter_context(_attributes(part, {"train": partial(_itself, part)}))
        if trainer.world_size > 1:
            stack.enter_context(_attributes(trainer.strategy, {**_ALONE, "all_gather": vars(module)["all_gather"]}))
        for hook in hooks:
            _run(getattr(hook, "__name__", "a hook"), module, hook)
        yield


def run_step(trainer: L.Trainer, module: L.LightningModule, batch: Any, *place: int, verb: str = "training") -> bool:
    """Run a step in :func:`trial`, `place` being the numbers of batch and loader; returns whether the epoch goes on."""
    step = getattr(module, f"{verb}_step")
    parameters = inspect.signature(step).parameters
    if "dataloader_iter" in parameters:
        raise CalibrationError(
            f"{verb}_step of {type(module).__name__} takes dataloader_iter and fetches its batches itself, so the "
            f"calibration pass cannot give it any: {REMEDY}."
        )
    precision = trainer.precision_plugin
    context = precision.train_step_context if verb == "training" else precision.val_step_context
    with context(), nullcontext() if trainer.world_size == 1 else _Alone(type(module).__name__):
        start = partial(module.on_train_batch_start, batch, place[0])
        if verb == "training" and _run("on_train_batch_start", module, start) == -1:
            return False
        kinds = [one.kind for one in parameters.values() if one.kind is not inspect.Parameter.KEYWORD_ONLY]
        taken = place if inspect.Parameter.VAR_POSITIONAL in kinds else place[: len(kinds) - 1]  # as Lightning does
        _run(f"{verb}_step", module, lambda: step(batch, *taken))
    return True


def _run(name: str, module: nn.Module, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except PapaError:
        raise
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
            raise  # finders of a batch size catch it
        raise CalibrationError(
            f"{name} of {type(module).__name__} failed in the calibration pass, which runs it in evaluation mode, "
            "without gradients, to see what reaches the encoder "
            f"({type(error).__name__}: {error}): let it run that way too, or {REMEDY}."
        ) from error


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _itself(part: nn.Module, *_: Any, **__: Any) -> nn.Module:
    return part


def _stand_ins(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """Replacements for the methods of a module that have side effects."""
    silent = ("log", "log_dict", "print", "manual_backward", "backward", "toggle_optimizer", "untoggle_optimizer")
    names = (*silent, "clip_gradients", "lr_scheduler_step", "optimizer_step", "optimizer_zero_grad")
    optimizers = [_Still(one) for one in trainer.optimizers]
    schedulers = [_Still(config.scheduler) for config in trainer.lr_scheduler_configs]
    return {
        **dict.fromkeys(names, _nothing),
        "toggled_optimizer": lambda *_, **__: nullcontext(),
        "optimizers": lambda *_, **__: optimizers[0] if len(optimizers) == 1 else optimizers,
        "lr_schedulers": lambda: None if not schedulers else schedulers[0] if len(schedulers) == 1 else schedulers,
        "all_gather": lambda data, *_, **__: tree_map(lambda one: _gathered(trainer, module, one), data),
    }


def _gathered(trainer: L.Trainer, module: L.LightningModule, value: Any) -> Any:
    """A tensor as if all processes had it: with different numbers of batches none can wait for the others."""
    if not isinstance(value, (Tensor, int, float)):
        return value
    tensor = torch.as_tensor(value, device=None if isinstance(value, Tensor) else module.device)
    return tensor if trainer.world_size == 1 else tensor.expand(trainer.world_size, *tensor.shape)


#: Replacements for the collectives of a strategy.
_ALONE: dict[str, Callable[..., Any]] = {
    "reduce": lambda tensor, *_, **__: tensor,
    "broadcast": lambda value, *_, **__: value,
    "barrier": _nothing,
    "reduce_boolean_decision": lambda decision, *_, **__: decision,
}


@contextmanager
def _attributes(one: Any, values: dict[str, Any]) -> Iterator[None]:
    """Set attributes of an object inside a context."""
    before = {name: vars(one)[name] for name in values if name in vars(one)}
    vars(one).update(values)
    try:
        yield
    finally:
        for name in values:
            del vars(one)[name]
        vars(one).update(before)


class _NoBackward(TorchFunctionMode):
    """Make ``loss.backward()`` in a step with manual optimization do nothing, as there are no gradients."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return None if func is Tensor.backward else func(*args, **(kwargs or {}))


class _Still:
    """An optimizer or scheduler with readable attributes whose methods do nothing."""

    def __init__(self, one: Any) -> None:
        self._one = one

    def __getattr__(self, name: str) -> Any:
        return getattr(self._one, name)

    def step(self, closure: Any = None, *_: Any, **__: Any) -> Any:
        """Run the closure, in which a step may compute its loss, and change no parameter."""
        return closure() if callable(closure) else None

    def toggle_model(self, *_: Any, **__: Any) -> AbstractContextManager[None]:
        return nullcontext()

    zero_grad = load_state_dict = add_param_group = _nothing


class _Silent:
    """A logger that knows its folder and ignores all calls."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Any:
        if name in ("name", "version", "save_dir", "log_dir", "root_dir"):
            return getattr(self._logger, name)
        return _Anything()


class _Anything:
    """Takes every call, and has no entries."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    keys = values = items = __iter__
    __getitem__ = __enter__ = __call__
    __setitem__ = __exit__ = _nothing


class _Alone(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuse collectives: with different numbers of batches on the processes they might never end."""

    def __init__(self, name: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._name = name

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            raise CalibrationError(
                f"the step of {self._name} calls torch.distributed ({func}), and processes that do not have equally "
                f"many sequences would wait for each other for ever: use self.all_gather, or {REMEDY}."
            )
        return func(*args, **(kwargs or {}))
