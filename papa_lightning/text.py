"""Text for people, whatever it holds."""

from __future__ import annotations

import unicodedata

#: Controls, formats (which can turn the order of letters around), halves of letters, ends of lines.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    r"""Text in which nothing can steer a terminal: controls but tabs and ends of lines are spelled out.

    Args:
        text: Of anywhere, such as the name of a column in a file.

    Example:
        >>> printable("red \x1b[31m, and so on")
        'red \\x1b[31m, and so on'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_spelled(one) if unicodedata.category(one) in _UNSAFE and one not in "\n\t" else one for one in text)


def tell(found: object) -> None:
    """Print what is :func:`printable` of the text of anything."""
    print(printable(str(found)))


def _spelled(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
