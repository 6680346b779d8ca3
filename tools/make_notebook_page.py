"""Write docs/notebook.md from docs/notebook.ipynb; with ``--execute``, run the notebook first: `make notebook`.

The output of the notebook is kept small: no streams of libraries, and images as files in docs/figures. It takes the
packages of the extra "notebook", and to run the encoder of `make demo`.
"""

from __future__ import annotations

import argparse
import base64
import re
from itertools import count
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
_NOTE = "<!-- made by tools/make_notebook_page.py from notebook.ipynb: run `make notebook` -->\n\n"
_STYLE = re.compile(r"<style scoped>.*?</style>\n", re.DOTALL)
_IMAGE = re.compile(r'src="data:image/png;base64,([^"]+)"')


def execute(notebook: nbformat.NotebookNode) -> None:
    """Run the cells in place, from the root of the repository, and drop what libraries print."""
    from nbclient import NotebookClient

    NotebookClient(notebook, resources={"metadata": {"path": str(ROOT)}}, timeout=1200).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ in every run
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]


def page(notebook: nbformat.NotebookNode) -> tuple[str, dict[str, bytes]]:
    """The page in Markdown, and its images by their paths in docs/."""
    images, numbers = dict[str, bytes](), count(1)

    def named(content: bytes) -> str:
        path = f"figures/notebook_{next(numbers)}.png"
        images[path] = content
        return path

    text, resources = MarkdownExporter().from_notebook_node(notebook)
    text = _STYLE.sub("", text)
    text = _IMAGE.sub(lambda found: f'src="{named(base64.b64decode(found[1]))}"', text)
    for name, content in sorted(resources["outputs"].items()):
        text = text.replace(f"({name})", f"({named(content)})")
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return _NOTE + re.sub(r"\n{4,}", "\n\n\n", text).strip() + "\n", images


def main() -> None:
    """Write the page and its images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--execute", action="store_true", help="run the notebook first, and save its output in it")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if parser.parse_args().execute:
        execute(notebook)
        nbformat.write(notebook, NOTEBOOK)
    text, images = page(notebook)
    NOTEBOOK.with_suffix(".md").write_text(text, encoding="utf-8")
    for path, content in images.items():
        (NOTEBOOK.parent / path).write_bytes(content)


if __name__ == "__main__":
    main()
