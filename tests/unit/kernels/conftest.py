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


@pytest.fixture
def fused_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences and sums of float32 products in the interpreter, rounded once, as a GPU takes them (fma)."""
    if torch.cuda.is_available():
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

    multiply, add, subtract = (getattr(InterpreterBuilder, f"create_{name}") for name in ("fmul", "fadd", "fsub"))

    def exact(handle: Any) -> Any:
        return handle.attr.get("product", handle.data.astype("float64"))

    def create_fmul(builder: Any, left: Any, right: Any) -> Any:
        product = multiply(builder, left, right)
        if product.dtype.scalar == tl.float32:
            product.set_attr("product", left.data.astype("float64") * right.data)
        return product

    def fused(own: Any, sign: int) -> Any:
        def create(builder: Any, left: Any, right: Any) -> Any:
            if not any("product" in one.attr for one in (left, right)):
                return own(builder, left, right)
            return TensorHandle((exact(left) + sign * exact(right)).astype("float32"), tl.float32)

        return create

    monkeypatch.setattr(InterpreterBuilder, "create_fmul", create_fmul)
    monkeypatch.setattr(InterpreterBuilder, "create_fadd", fused(add, 1))
    monkeypatch.setattr(InterpreterBuilder, "create_fsub", fused(subtract, -1))
