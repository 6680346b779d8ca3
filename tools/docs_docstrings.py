"""Extension of griffe that prepares docstrings for the site: roles become links, `Example` becomes a section."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|exc|data):`(~?)([^`]+)`")
_PACKAGE = "papa_lightning"


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object while griffe reads the package."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            text = _ROLE.sub(lambda match: _shown(match, obj), obj.docstring.value)
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)


def _shown(match: re.Match[str], obj: griffe.Object) -> str:
    """Link to a name of the package; the name as code for any other."""
    shortened, target = match.groups()
    name = target.rpartition(".")[2] if shortened else target
    return f"[`{name}`][{target}]" if target.startswith(f"{_PACKAGE}.") else f"`{name}`"
