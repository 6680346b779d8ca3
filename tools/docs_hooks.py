"""What the site needs beside its pages: links that lead out of docs/ work on the repository's host only."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Keep the words of such a link, and drop where it leads."""
    return _OUTSIDE.sub(r"\1", markdown)
