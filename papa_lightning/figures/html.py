"""Pieces of HTML for notebooks: a heading, a figure, a table."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

from papa_lightning.figures.style import NOTEBOOK_DPI, as_png

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def notebook_html(heading: str, figure: Figure | None = None, table: pd.DataFrame | None = None) -> str:
    """What a notebook shows of an object: its heading, and below it a figure and a table, whichever there are.

    Args:
        heading: One line of plain text, which is also the text in place of the figure for readers of screens.
        figure: A figure of matplotlib, which becomes an image inside the text.
        table: A table of few rows.
    """
    parts = [f"<p>{escape(heading)}</p>"]
    if figure is not None:
        image = base64.b64encode(as_png(figure, NOTEBOOK_DPI)).decode()
        parts.append(f'<img style="max-width: 100%" alt="{escape(heading)}" src="data:image/png;base64,{image}">')
    if table is not None:
        parts.append(table.to_html(border=0, float_format="{:.4g}".format))
    return "<div>\n" + "\n".join(parts) + "\n</div>"
