"""How much does a pretrained encoder's attention matter? Calibrate, freeze and compare its heads."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

#: Whether this is a process of the command ``papa`` or of ``python -m papa_lightning``. There, names are imported when
#: they are asked for, because ``papa --help`` needs none. Elsewhere ``import papa_lightning`` imports them all, among
#: them what transformers has to know to load a swapped encoder.
_IS_COMMAND = Path(sys.argv[0] if sys.argv else "").name in ("papa", "papa.exe", "-m")

if TYPE_CHECKING or not _IS_COMMAND:
    from papa_lightning.public import *  # noqa: F403
    from papa_lightning.public import __all__ as _NAMES
else:
    from ast import literal_eval

    # The list ends the file. jsonargparse asks for other names as well, which must not import it.
    _NAMES = literal_eval((Path(__file__).parent / "public.py").read_text(encoding="utf-8").partition("__all__ = ")[2])

__all__ = [*_NAMES, "Study"]

if TYPE_CHECKING:
    from papa_lightning.study import Study
else:

    def __getattr__(name: str) -> object:
        """A public name that is imported when it is first asked for; Study brings pandas, scipy and matplotlib."""
        from importlib import import_module

        if name == "Study":
            return import_module("papa_lightning.study").Study
        if not _IS_COMMAND or name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module("papa_lightning.public"), name)
