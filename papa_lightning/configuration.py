"""Errors of a configuration in one line.

jsonargparse raises errors whose only content is a text of many lines: no attribute holds the key, the value or the
type. The patterns below read it, and tests/unit/test_configuration.py holds them to the version that is installed.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from papa_lightning.either_lightning import MisconfigurationException
from papa_lightning.errors import PapaError, explanation

#: Lines that name a reason other than the types that were tried.
_REASONS = re.compile(
    r"(Option '[^']*' is not accepted|the following arguments are required: .*|Requirement '[^']*' not met|"
    r"Neither `tensorboard` nor `tensorboardX` is available.*)"
)
_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (.*)")
_VALUE = re.compile(r"(?:Given value|Got value): (.*)")
_CLASS = re.compile(r"Problem with given class_path '([^']*)'")
_KEY = re.compile(r'Parser key "([^"]+)"')
_EXPECTED = re.compile(r"Expected an? (?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.*)\])")
_SHOW = "PAPA_DEBUG=1 shows the traceback"


@contextmanager
def configuring() -> Iterator[None]:
    """Turn errors of the constructors that a configuration names into a PapaError with their message, on one line."""
    try:
        yield
    except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
        explained = explanation(error)
        raise explained or PapaError(f"the configuration cannot be set up: {account(str(error))} ({_SHOW})") from error


def account(message: str) -> str:
    """The message of an error of jsonargparse on one line: key, value and expected types; others are only joined.

    Example:
        >>> account('''Parser key "trainer.max_epochs":
        ...   Does not validate against any of the Union subtypes
        ...   Errors:
        ...     - Expected a <class 'int'>
        ...     - Expected a <class 'NoneType'>
        ...   Given value: abc''')
        'trainer.max_epochs is abc, but must be int or null'
    """
    value = _VALUE.search(message)
    found = message[: value.end()] if value else message
    keys = list(dict.fromkeys(_KEY.findall(found)))
    name = ".".join(keys)
    reason, unknown, kind = (pattern.search(found) for pattern in (_REASONS, _UNKNOWN_CLASS, _CLASS))
    if reason:
        return ": ".join(part for part in (name, kind and kind.group(1), reason.group(1)) if part)
    if unknown:
        return f"{name} is {unknown.group(1)}, but must be the name or the import path of a class"
    if value and keys:
        nested = found[found.rindex(f'"{keys[-1]}"') :]
        types = dict.fromkeys(
            "null" if one == "NoneType" else one or choices for one, choices in _EXPECTED.findall(nested)
        )
        if types:
            return f"{name} is {value.group(1)}, but must be {' or '.join(types)}"
    return " ".join(message.split())
