"""Kernels run in Triton's interpreter on CPU tensors, or on a GPU where one is visible."""

import pytest
import torch

pytest.importorskip("triton")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
