"""The one place where transformers loads by a name: code that comes with it is not run, and nobody is asked."""

from __future__ import annotations

import os
from typing import Any

from papa_lightning.errors import PapaError


def from_pretrained(kind: Any, name: str, **options: Any) -> Any:
    """Load what has a name on the hub or lies in a folder, by an auto class of transformers.

    Without ``trust_remote_code`` transformers asks on stdin whether code of the model may run, and waits.

    Args:
        kind: ``AutoConfig``, ``AutoModel``, ``AutoTokenizer``, ...
        name: Name on the hub, or folder; `~` is the home folder.
        options: Of its ``from_pretrained``.

    Returns:
        What that returns.

    Raises:
        PapaError: When it cannot be loaded without code of its own.
    """
    try:
        return kind.from_pretrained(os.path.expanduser(name), trust_remote_code=False, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):  # transformers has no error type for it, and advises to run the code
            raise
        raise PapaError(
            f"{name!r} cannot be loaded without code that comes with it, and papa_lightning runs none: pass a model of "
            "a family that transformers itself knows."
        ) from error
