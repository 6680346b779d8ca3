"""Choices in help texts, read from the registries when a help is printed.

A help text names a registry by its reference, such as ``:data:`papa_lightning.criteria.CRITERIA```, and shows what is
registered there, parts of other packages included.
"""

import re
from argparse import Action
from collections.abc import Callable

from jsonargparse import DefaultHelpFormatter


def _criteria() -> str:
    from papa_lightning.criteria import criteria_help

    return criteria_help()


def _controls() -> str:
    from papa_lightning.calibration import CONTROLS

    return ", ".join(CONTROLS)


def _kinds() -> str:
    from papa_lightning.attention import KINDS

    return ", ".join(KINDS)


#: Choices of each registry, as a phrase; the registries are imported for help texts that name them, and no others.
_CHOICES: dict[str, Callable[[], str]] = {
    "papa_lightning.attention.KINDS": _kinds,
    "papa_lightning.calibration.CONTROLS": _controls,
    "papa_lightning.criteria.CRITERIA": _criteria,
}
_REFERENCE = re.compile(rf":data:`~?({'|'.join(map(re.escape, _CHOICES))})`")


def with_choices(text: str) -> str:
    """A help text with the choices in place of the references to registries."""
    return _REFERENCE.sub(lambda found: _CHOICES[found[1]](), text)


class ChoicesHelpFormatter(DefaultHelpFormatter):
    """Help formatter of jsonargparse with the choices of registries in the help of arguments."""

    def _get_help_string(self, action: Action) -> str:
        return with_choices(super()._get_help_string(action))
