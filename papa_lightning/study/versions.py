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
