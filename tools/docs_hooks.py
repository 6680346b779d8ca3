"""Hook of mkdocs: links out of docs/ become plain text, because they work in the repository only."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each link out of docs/ by its text."""
    return _OUTSIDE.sub(r"\1", markdown)
