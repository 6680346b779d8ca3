"""Launches whose compiled kernel is kept."""

from types import SimpleNamespace

import torch

from papa_lightning.kernels.launches import Launch, aligned


class Kernel:
    """Stands for a kernel of two tensors and two numbers; it notes how it was launched."""

    arg_names = ("left", "right", "length", "SIZE")

    def __init__(self):
        self.found, self.kept = [], []

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.found.append((grid, arguments, options))
            return {grid: lambda *again: self.kept.append(again)}

        return launch


def test_a_compiled_kernel_is_found_once():
    kernel = Kernel()
    launch = Launch(kernel, (7,), {"SIZE": 4, "other": 0, "length": 3}, {"num_warps": 2})
    launch(True, "a", "b")
    launch(True, "c", None)
    assert kernel.found == [((7, 1, 1), ("a", "b", 3, 4), {"num_warps": 2})]
    assert kernel.kept == [("c", None, 3, 4)]


def test_tensors_at_other_places_are_compiled_for():
    kernel = Kernel()
    launch = Launch(kernel, (7, 2), {"length": 3, "SIZE": 4}, {})
    for even in (True, False, False, True):
        launch(even, "a", "b")
    assert len(kernel.found) == 3
    assert len(kernel.kept) == 1


def test_the_interpreter_compiles_nothing():
    launch = Launch(SimpleNamespace(arg_names=(), __getitem__=None), (1,), {}, {})
    launch._kernel = {(1, 1, 1): lambda *arguments, **options: None}
    launch(True)
    launch(True)
    assert launch._run is None


def test_alignment():
    numbers = torch.zeros(32)
    assert aligned(numbers, None, numbers[4:])
    assert not aligned(numbers, numbers[1:])
