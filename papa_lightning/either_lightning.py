"""Imports of Lightning, which comes as two packages: ``lightning`` and ``pytorch_lightning``.

Their classes have the same names and methods but are not the same, and a Trainer takes only those of its own package.
:data:`L` and the names below are of the package that was imported first, or else of ``lightning``, or of the one that
is installed. The four classes that other projects hand to a Trainer (callbacks, tasks, data modules) belong to both
packages once both are imported, whatever the order; neither is imported on behalf of the other.
"""

import inspect
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.util import find_spec
from types import MethodType, ModuleType
from typing import TYPE_CHECKING, Any

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")

#: Modules of Lightning's names that papa_lightning uses; those of ``cli`` cost time, and are imported when asked for.
_HOMES = {
    "ArgsType": "cli",
    "LightningArgumentParser": "cli",
    "LightningCLI": "cli",
    "SaveConfigCallback": "cli",
    "CSVLogger": "loggers",
    "Logger": "loggers",
    "MisconfigurationException": "utilities.exceptions",
    "ModelSummary": "callbacks",
    "OptimizerLRScheduler": "utilities.types",
    "ProgressBar": "callbacks",
    "SIGTERMException": "utilities.exceptions",
    "TensorBoardLogger": "loggers",
    "TorchCheckpointIO": "plugins.io",
    "TrainerFn": "trainer.states",
    "isolate_rng": "utilities.seed",
    "rank_zero_info": "utilities",
    "rank_zero_only": "utilities",
    "rank_zero_warn": "utilities",
}

#: Methods that inspect the frame of their caller.
_READ_FRAMES = ("save_hyperparameters",)

#: Modules of the classes that belong to both packages.
_BASES = {
    "BasePredictionWriter": "callbacks",
    "Callback": "callbacks",
    "LightningDataModule": "core",
    "LightningModule": "core",
}

if TYPE_CHECKING:
    import lightning.pytorch as L
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Callback, LightningDataModule, LightningModule
    from lightning.pytorch.callbacks import BasePredictionWriter, ModelSummary, ProgressBar
    from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
    from lightning.pytorch.plugins.io import TorchCheckpointIO
    from lightning.pytorch.trainer.states import TrainerFn
    from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
    from lightning.pytorch.utilities.exceptions import SIGTERMException
    from lightning.pytorch.utilities.seed import isolate_rng
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

__all__ = [
    "ArgsType",
    "BasePredictionWriter",
    "CSVLogger",
    "Callback",
    "L",
    "LightningArgumentParser",
    "LightningCLI",
    "LightningDataModule",
    "LightningModule",
    "Logger",
    "MisconfigurationException",
    "ModelSummary",
    "OptimizerLRScheduler",
    "ProgressBar",
    "SIGTERMException",
    "SaveConfigCallback",
    "TensorBoardLogger",
    "TorchCheckpointIO",
    "TrainerFn",
    "is_a",
    "is_overridden",
    "isolate_rng",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
]


def is_a(value: object, *names: str) -> bool:
    """Whether an object is an instance of one of Lightning's classes, of either package, by their names.

    Example:
        >>> is_a(LightningModule(), "LightningModule"), is_a("text", "LightningModule")
        (True, False)
    """
    return any(base.__name__ in names and _package_of(base) is not None for base in type(value).__mro__)


def is_overridden(method: str, instance: object) -> bool:
    """Whether a module, data module or callback of either package overrides a method of Lightning.

    Example:
        >>> is_overridden("configure_model", LightningModule())
        False
    """
    package = next(filter(None, map(_package_of, type(instance).__mro__)))
    found: bool = import_module(f"{package}.utilities.model_helpers").is_overridden(method, instance)
    return found


def _package_of(cls: type) -> str | None:
    """The package of Lightning that defines a class, if one does."""
    return next((one for one in _PACKAGES if f"{cls.__module__}.".startswith(f"{one}.")), None)


def _is_imported(package: str) -> bool:
    return sys.modules.get(package) is not None


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package.split(".")[0]) is not None
    except ImportError:
        return False


def _import_first() -> ModuleType:
    """The package that is imported already, or else the first that can be."""
    failed = None
    for package in sorted(_PACKAGES, key=lambda one: not _is_imported(one)):
        try:
            return import_module(package)
        except ImportError as error:
            failed = failed or error
    raise ImportError("papa_lightning needs Lightning: pip install lightning, or pytorch-lightning.") from failed


def _of_either(home: str, name: str) -> Any:
    """A subclass of Lightning's class, which :func:`_join` makes one of the other package's class too."""
    cls = getattr(import_module(f"{L.__name__}.{home}"), name)
    return type(cls)(f"_{name}", (cls,), {"__module__": __name__, "__doc__": cls.__doc__})


def _join(package: str) -> None:
    """Make the classes subclasses of those of a package too."""
    for name, home in _BASES.items():
        cls, other = globals()[name], getattr(import_module(f"{package}.{home}"), name)
        for method, theirs in inspect.getmembers(other, inspect.isfunction):
            ours = getattr(cls, method, theirs)
            if ours.__code__ != theirs.__code__ and method not in _READ_FRAMES:
                setattr(cls, method, _Default(ours, theirs))
        cls.__bases__ = (*cls.__bases__, other)


class _Default:
    """A method of Lightning that either package recognises as its own, not overridden.

    They call some hooks only if they are overridden, which they tell by the code object, and those differ.
    """

    def __init__(self, ours: Any, theirs: Any) -> None:
        self.__doc__, self.__signature__ = ours.__doc__, inspect.signature(ours)
        self.__code__ = _AnyOf((ours.__code__, theirs.__code__))
        self._function = ours

    def __get__(self, instance: object, owner: type) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)


class _AnyOf(tuple[Any, ...]):
    """Equal to each of its entries."""

    __slots__ = ()

    def __ne__(self, other: object) -> bool:
        return other not in tuple(self)


class _Awaited(MetaPathFinder):
    """Waits until the other package is imported, to join its classes; finds nothing itself, and is removed then.

    This is the only effect on the process, and only where both packages are installed and one is not imported yet.
    There is no later moment to join them: ``issubclass`` and ``isinstance``, by which LightningCLI and a Trainer look
    at our classes, read the bases alone. To import the other package here would take seconds that most do not need.
    """

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        """As the other finders find it, with the joining behind its execution."""
        if fullname != self.package:
            return None
        others = (one for one in sys.meta_path if one is not self)
        spec = next(filter(None, (one.find_spec(fullname, path, target) for one in others)), None)
        if spec is not None and spec.loader is not None:
            self._join_behind(spec.loader)
        return spec

    def _join_behind(self, loader: Loader) -> None:
        execute = loader.exec_module

        def execute_and_join(module: ModuleType) -> None:
            execute(module)
            del loader.exec_module
            sys.meta_path.remove(self)
            _join(self.package)

        loader.exec_module = execute_and_join  # type: ignore[method-assign]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{L.__name__}.{_HOMES[name]}"), name)


if not TYPE_CHECKING:
    L = _import_first()
    globals().update({name: _of_either(home, name) for name, home in _BASES.items()})
    _other = next(one for one in _PACKAGES if one != L.__name__)
    if _is_imported(_other):
        _join(_other)
    elif _is_installed(_other):
        sys.meta_path.insert(0, _Awaited(_other))
