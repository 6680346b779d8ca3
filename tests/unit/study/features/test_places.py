"""Places of vectors and weights in flat tensors."""

import torch

from papa_lightning.study.features.reading import position_cells, ranges


def test_places():
    cells = position_cells(torch.tensor([2]), torch.tensor([0, 5]), levels=2, max_length=6)
    assert cells.tolist() == [0, 5, 6, 11]
    assert ranges(torch.tensor([7, 0]), torch.tensor([2, 3])).tolist() == [7, 8, 0, 1, 2]
