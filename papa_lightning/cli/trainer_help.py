"""The verbs of the Trainer for `papa --help`, read from the source: to import it would take seconds."""

import ast
from functools import cache
from pathlib import Path


@cache
def trainer_summaries() -> dict[str, str]:
    """Names of the verbs of the Trainer, and the first lines of their docstrings."""
    tree = ast.parse((Path(__file__).parent / "trainer.py").read_text(encoding="utf-8"))
    (trainer,) = (one for one in tree.body if isinstance(one, ast.ClassDef))
    methods = [one for one in trainer.body if isinstance(one, ast.FunctionDef) and one.name[0] != "_"]
    return {one.name: (ast.get_docstring(one) or "").partition("\n")[0] for one in methods}
