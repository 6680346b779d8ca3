"""What prompts and notebooks show of constants."""

import math
import re
from dataclasses import replace

import pytest
import torch

from papa_lightning import AttentionConstants, CompactConstants


@pytest.fixture
def constants() -> AttentionConstants:
    """A head that is uniform over four positions, one that sees itself, and one that sees the position before."""
    previous = torch.diag(torch.ones(3), -1)
    previous[0, 0] = 1
    values = torch.stack([torch.full((4, 4), 0.25), torch.eye(4), previous]).expand(2, 3, 4, 4)
    metadata = {"model": {"name": "tiny"}, "sequences": 1200}
    return AttentionConstants(values, torch.full((4, 4), 7.0), metadata, torch.arange(6.0).view(2, 3))


def test_the_line_at_a_prompt_is_short(constants: AttentionConstants) -> None:
    assert repr(constants) == "AttentionConstants(2 layers, 3 heads, max_length=4, 1,200 sequences, of tiny)"
    compact = CompactConstants.fit(replace(constants, metadata={}), width=2)
    assert repr(compact) == "CompactConstants(2 layers, 3 heads, max_length=4)"


def test_the_table_has_every_head_with_what_it_does(constants: AttentionConstants) -> None:
    table = constants.table()
    assert list(table.columns) == ["variance", "entropy", "distance"]
    assert table.index.names == ["layer", "head"]
    assert table["variance"].tolist() == [0, 1, 2, 3, 4, 5]
    assert table.loc[1]["entropy"].tolist() == pytest.approx([math.log(4), 0, 0])
    assert table.loc[1]["distance"].tolist() == pytest.approx([(6 + 4 + 4 + 6) / 16, 0, 3 / 4])
    assert list(replace(constants, variance=None).table().columns) == ["entropy", "distance"]


def test_rows_count_by_the_sequences_behind_them(constants: AttentionConstants) -> None:
    """Position 3 was never seen, and position 0 three times as often as the others."""
    seen = torch.tensor([3.0, 1.0, 1.0, 0.0])
    counts = torch.minimum(seen[:, None], seen)
    table = replace(constants, pair_counts=counts, variance=None).table()
    assert table.loc[0, 2]["distance"] == pytest.approx((0 * 3 + 1 + 1) / 5)
    assert replace(constants, pair_counts=torch.zeros(4, 4)).table()["entropy"].tolist() == [0] * 6


def test_the_table_of_compact_constants_has_forms_and_errors(constants: AttentionConstants) -> None:
    compact = CompactConstants.fit(constants, width=2, tolerance=0.01)
    table = compact.table()
    assert list(table.columns) == ["form", "error"]
    assert table["form"].tolist() == [form for layer in compact.layers for form in layer.forms]
    assert table["error"].tolist() == compact.errors.flatten().tolist()


@pytest.mark.parametrize("compact", [False, True])
def test_a_notebook_shows_the_matrices(constants: AttentionConstants, compact: bool) -> None:
    shown = CompactConstants.fit(constants, width=2) if compact else constants
    html = shown._repr_html_()
    assert f"<p>{shown!r}</p>" in html
    assert re.search(r'<img [^>]*alt="[^"]+" src="data:image/png;base64,iVBOR', html)
    assert len(html) < 200_000
