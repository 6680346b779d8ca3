"""Docstrings as the site shows them: roles of reStructuredText become links, and `Example` a section."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|exc|data):`(~?)([^`]+)`")
_PACKAGE = "papa_lightning"
#: A function with the name of its module: read without being run, the short name looks like the module.
_FULL = {"papa_lightning.calibrate": "papa_lightning.calibration.collect.calibrate"}


class Docstrings(griffe.Extension):
    """Called for every object while the package is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite its docstring."""
        if obj.docstring is not None:
            text = _ROLE.sub(lambda match: _shown(match, obj), obj.docstring.value)
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)


def _shown(match: re.Match[str], obj: griffe.Object) -> str:
    """A link for names of the package by their full path, else the name as code."""
    shortened, target = match.groups()
    name = target.rpartition(".")[2] if shortened else target
    return f"[`{name}`][{_FULL.get(target, target)}]" if target.startswith(f"{_PACKAGE}.") else f"`{name}`"
