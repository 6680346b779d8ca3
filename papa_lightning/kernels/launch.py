"""Where Triton kernels run."""

import os
import shutil
import sys
import sysconfig
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from papa_lightning.runtime import is_exporting

#: Dtypes of the kernels; float64 goes through the torch forms.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
#: Compute capability of the first GPUs with bfloat16, which Triton needs for it.
_CAPABILITY = (8, 0)


def usable(*tensors: Tensor) -> bool:
    """Whether Triton kernels run on tensors: on one GPU that Triton knows, in float16, bfloat16 or float32.

    Not in a graph that is being exported, which must run elsewhere too.

    Example:
        >>> usable(torch.zeros(2))
        False
    """
    device = tensors[0].device
    if device.type != "cuda" or not _compiles(device.index or 0) or is_exporting():
        return False
    if not all(one.device == device and one.dtype in _DTYPES for one in tensors):
        return False
    return torch.compiler.is_compiling() or not any(
        torch._C._functorch.is_functorch_wrapped_tensor(one) for one in tensors
    )


def takes_tf32() -> bool:
    """Whether torch takes its own products of float32 in TF32."""
    # torch before 2.9 has the second setting only; later ones refuse to read it once the first was written.
    allowed = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    return bool(torch.backends.cuda.matmul.allow_tf32 if allowed is None else allowed == "tf32")


def precision(value: Tensor) -> str:
    """How products of a tensor are taken: of float32 as torch takes its own."""
    return "tf32" if value.dtype == torch.float32 and takes_tf32() else "ieee"  # which says nothing in half precision


@torch.compiler.assume_constant_result  # torch.compile asks once, and does not trace it
def _compiles(index: int) -> bool:
    """Whether Triton compiles for a GPU by its number."""
    return _found(index)


@cache
def _found(index: int) -> bool:
    if find_spec("triton") is None or not torch.cuda.is_available():
        return False
    if torch.version.hip is None and torch.cuda.get_device_capability(index) < _CAPABILITY:
        return False
    missing = _missing_tool()
    if missing:
        warnings.warn(
            f"Triton cannot build its kernels, because {missing}: encoders with constant heads, calibration and AFT "
            "run without them, which is slower.",
            stacklevel=2,
        )
    return not missing


def _missing_tool() -> str:
    """What Triton lacks to build the code that launches a kernel, as runtime images do; empty for nothing."""
    if sys.platform == "win32":  # Triton brings a compiler there
        return ""
    if not os.environ.get("CC") and not any(map(shutil.which, ("gcc", "clang", "cc"))):
        return "there is no C compiler: install gcc, or name one in the environment variable CC"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python.h is missing: install the headers of Python (python3-dev)"
    return ""
