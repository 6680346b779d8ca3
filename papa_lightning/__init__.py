"""How much does a pretrained encoder's attention matter? Calibrate, freeze and compare its heads."""

import sys
from pathlib import PurePath
from typing import TYPE_CHECKING

#: Whether this is a process of the command ``papa`` or of ``python -m papa_lightning``. There, names are imported when
#: they are asked for, because ``papa --help`` needs none. Elsewhere ``import papa_lightning`` imports them all, among
#: them what transformers has to know to load a swapped encoder.
_IS_COMMAND = PurePath(sys.argv[0] if sys.argv else "").name in ("papa", "papa.exe", "-m")

if TYPE_CHECKING or not _IS_COMMAND:
    from papa_lightning.public import *  # noqa: F403
    from papa_lightning.public import __all__ as __all__
else:

    def __getattr__(name: str) -> object:
        """A public name, when it is first asked for."""
        from importlib import import_module

        if name == "__path__" or (name.startswith("__") and name not in ("__all__", "__version__")):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module("papa_lightning.public"), name)
