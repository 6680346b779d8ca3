"""What a result was measured with."""

from __future__ import annotations

import platform
from functools import lru_cache
from importlib.metadata import version

from papa_lightning.version import __version__

_PACKAGES = ("torch", "transformers", "datasets", "torchmetrics")


@lru_cache
def versions() -> dict[str, str]:
    """The versions that numbers depend on.

    Example:
        >>> sorted(versions())
        ['datasets', 'papa_lightning', 'python', 'torch', 'torchmetrics', 'transformers']
    """
    found = {name: version(name) for name in _PACKAGES}
    return found | {"papa_lightning": __version__, "python": platform.python_version()}


def computing_versions() -> dict[str, str]:
    """Those of what computes: with others of Python or of what reads data, the same rows give the same numbers.

    Example:
        >>> sorted(computing_versions())
        ['papa_lightning', 'torch', 'torchmetrics', 'transformers']
    """
    return {name: found for name, found in versions().items() if name not in ("datasets", "python")}
