"""Tests on a GPU; where there is none, they are skipped, and the reason is named."""

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if "gpu" in item.path.parts]
    for item in here:
        item.add_marker("gpu")
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no GPU, or CUDA_VISIBLE_DEVICES hides it: run make gpu"))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())
