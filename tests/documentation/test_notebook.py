"""The notebook of the documentation runs, and its page shows what it holds."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import matplotlib.figure
import pandas as pd
import pytest
from integration.conftest import VOCABULARY

ROOT = Path(__file__).parents[2]
CELLS = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def run(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does: the value of its last line, if that is an expression."""
    tree = ast.parse(source)
    last = tree.body[-1]
    exec(compile(ast.Module(tree.body[:-1], []), "<cell>", "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    return exec(compile(ast.Module([last], []), "<cell>", "exec"), names)


def test_its_cells_run_on_a_tiny_encoder(tmp_path: Path, notebook_encoder: str) -> None:
    """All cells in order, with parameters for a test in place of their own."""
    names: dict[str, Any] = {"encoder": notebook_encoder, "training_rows": 24, "validation_rows": 12, "seeds": [0]}
    names["output"] = str(tmp_path / "study")
    (parameters, *cells) = CODE
    assert set(names) <= set(run(parameters, own := {}) or own)
    shown = [run(cell, names) for cell in cells]
    assert isinstance(shown[0], pd.DataFrame)
    assert any(isinstance(one, matplotlib.figure.Figure) for one in shown)
    assert (tmp_path / "study" / "results.csv").is_file()
    assert (tmp_path / "study" / "ranking.json").is_file()
    assert names["callback"].max_length == 48


def test_it_is_executed_and_small() -> None:
    cells = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [one for cell in cells for one in cell["outputs"]]
    assert not [one for one in outputs if one["output_type"] == "error" or one.get("name") == "stderr"]
    assert (ROOT / "docs" / "notebook.ipynb").stat().st_size < 1_000_000


def test_the_page_has_every_cell_and_every_image() -> None:
    """Word for word: who changes the notebook runs tools/make_notebook_page.py."""
    page = (ROOT / "docs" / "notebook.md").read_text(encoding="utf-8")
    for cell in CELLS:
        assert "".join(cell["source"]).strip() in page
    images = re.findall(r"figures/notebook_\d+\.png", page)
    assert len(images) >= 3
    assert all((ROOT / "docs" / image).is_file() for image in images)
    assert not re.search(r"/(home|root|work|tmp)/", page), "no path of the machine that ran it"


@pytest.fixture
def notebook_encoder(tmp_path: Path) -> str:
    """A BERT of 4 layers of 2 heads, with the tokenizer of letters."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=128).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=130,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return str(folder)
