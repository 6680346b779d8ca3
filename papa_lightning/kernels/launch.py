"""Where Triton kernels run."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

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
    return (
        device.type == "cuda"
        and all(one.device == device and one.dtype in _DTYPES for one in tensors)
        and _compiles(device.index)
        and not torch.compiler.is_exporting()
        and not any(torch._C._functorch.is_functorch_wrapped_tensor(one) for one in tensors)
    )


@cache
def _compiles(index: int) -> bool:
    """Whether Triton compiles for a GPU (of NVIDIA or AMD) by its number."""
    if find_spec("triton") is None:
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(index) >= _CAPABILITY
