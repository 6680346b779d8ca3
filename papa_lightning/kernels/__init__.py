"""Triton kernels on plain tensors, for GPUs: constant products, sums of attention, scans and bands of AFT.

May import torch and triton, and of the package what stands below: errors, checks, runtime. Rooms that compute ask
:func:`usable` of their tensors, import a kernel's module then, and compute the same in plain torch otherwise. Kernels
are registered with ``torch.library``, so that torch.compile sees one operator; eager code launches them without the
dispatcher, which costs more than a launch. Sums are taken in a fixed order, by fixed block sizes: the same numbers in
every run.
"""

from papa_lightning.kernels.launch import usable

__all__ = ["usable"]
