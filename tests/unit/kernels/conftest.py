"""Kernels run in Triton's interpreter on CPU tensors, or on a GPU where one is visible."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("triton")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True, scope="module")
def bfloat16_products() -> Iterator[None]:
    """Products of bfloat16 in the interpreter, which would multiply their bits."""
    if torch.cuda.is_available():
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

    own = InterpreterBuilder.create_dot

    def as_float32(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype("uint32") << 16).view("float32"), tl.float32)

    def create_dot(builder: Any, left: Any, right: Any, *further: Any) -> Any:
        return own(builder, as_float32(left), as_float32(right), *further)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", create_dot)
        yield
