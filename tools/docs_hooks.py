"""Hooks of mkdocs: links out of docs/ lead into the repository, and pages of names come last in a search."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\]\(\.\./([^)]*)\)")
_NAMES = ("api.md", "api_rooms.md")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Replace each link out of docs/ by its address in the repository; lower the pages of names in the search."""
    if page.file.src_uri in _NAMES:
        page.meta["search"] = {"boost": 0.2}
    return _OUTSIDE.sub(rf"]({config['repo_url']}/blob/main/\1)", markdown)
