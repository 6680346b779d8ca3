"""Tensors derived from parameters are cached, and recomputed exactly when the parameters change."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks
from unit.attention.mixing import mix

from papa_lightning.attention import ConstantHeads, Place, parameter_cache
from papa_lightning.attention.parameter_cache import Remembered


class Doubler(nn.Module):
    """Counts how often it doubles its weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(4.0))
        self.doubled = Remembered()
        self.count = 0

    def forward(self, settings=None):
        def double():
            self.count += 1
            return 2 * self.weight

        return self.doubled.recall(double, [self.weight], settings, self.training)


def in_place(module):
    with torch.no_grad():
        module.weight.mul_(3)


def detached(module):
    module.weight.detach().add_(1)


def same_memory(module):
    module.weight.data.add_(1)  # not counted by torch
    module.weight = nn.Parameter(module.weight.data, module.weight.requires_grad)


def optimizer_step(module, make):
    module.weight.grad = torch.ones(4)
    make([module.weight]).step()


CHANGES = {
    "in place": in_place,
    "detached": detached,
    "sgd": lambda module: optimizer_step(module, lambda held: torch.optim.SGD(held, 0.1)),
    "adamw": lambda module: optimizer_step(module, lambda held: torch.optim.AdamW(held, 0.1, foreach=False)),
    "adamw foreach": lambda module: optimizer_step(module, lambda held: torch.optim.AdamW(held, 0.1, foreach=True)),
    # Fused optimizers do not count their writes (torch 2.13).
    "adamw fused": lambda module: optimizer_step(module, lambda held: torch.optim.AdamW(held, 0.1, fused=True)),
    "load": lambda module: module.load_state_dict({"weight": torch.full((4,), 9.0)}),
    "assign": lambda module: module.load_state_dict({"weight": torch.full((4,), 9.0)}, assign=True),
    "double": lambda module: module.double(),
    "there and back": lambda module: module.half().float(),
    "new data": lambda module: setattr(module.weight, "data", module.weight.data + 1),
    "new data twice": lambda module: [setattr(module.weight, "data", module.weight.data * 2) for _ in range(2)],
    "new parameter": lambda module: setattr(module, "weight", nn.Parameter(torch.full((4,), 9.0))),
    "same memory": same_memory,
    "resized": lambda module: setattr(module.weight, "data", module.weight.data[:2]),
}


@pytest.mark.parametrize(
    ("name", "frozen"),
    [(name, frozen) for name in CHANGES for frozen in (False, True) if not (frozen and name == "adamw fused")],
)
@torch.no_grad()
def test_a_change_is_seen(name, frozen):
    module = Doubler().eval()
    module.weight.requires_grad_(not frozen)
    module()
    assert module() is module()
    assert module.count == 1
    CHANGES[name](module)
    found = module()
    assert module.count == 2
    assert torch.equal(found, 2 * module.weight)
    assert found.dtype is module.weight.dtype


@torch.no_grad()
def test_optimizers_are_watched_only_while_a_result_of_trainable_parameters_is_kept():
    hooks = _global_optimizer_post_hooks
    gc.collect()
    before = len(hooks)
    frozen, first, second = Doubler().eval().requires_grad_(False), Doubler().eval(), Doubler().eval()
    frozen()
    assert len(hooks) == before
    first()
    second()
    assert len(hooks) == before + 1
    first.doubled.forget()
    assert len(hooks) == before + 1
    del second
    gc.collect()
    assert len(hooks) == before


@pytest.fixture
def capture(monkeypatch):
    """A CUDA graph is captured while there is something in this list."""
    state = []
    monkeypatch.setattr(parameter_cache, "_is_capturing", lambda parameters: bool(state))
    return state


@torch.no_grad()
def test_what_a_cuda_graph_reads_stays_for_as_long_as_the_module(capture):
    module = Doubler().eval().requires_grad_(False)
    found = module()
    capture.append("graph")
    assert module() is module() is found
    assert len(module.doubled._captured) == 1
    capture.clear()
    read = weakref.ref(found)
    del found
    in_place(module)
    module()
    gc.collect()
    assert read() is not None
    del module
    gc.collect()
    assert read() is None


@torch.no_grad()
def test_what_is_made_in_a_cuda_graph_is_not_kept(capture):
    """It is filled when the graph is replayed, and not before."""
    module = Doubler().eval().requires_grad_(False)
    capture.append("graph")
    assert module() is not module()
    capture.clear()
    assert module() is module()
    assert module.count == 3


@torch.no_grad()
def test_a_cuda_graph_computes_what_parameters_that_learn_give(capture):
    module = Doubler().eval()
    found = module()
    capture.append("graph")
    assert module() is not found
    capture.clear()
    assert module() is found


@torch.no_grad()
def test_steps_on_others_do_not_count_for_frozen_parameters():
    module, gate = Doubler().eval().requires_grad_(False), nn.Parameter(torch.ones(1))
    module()
    gate.grad = torch.ones(1)
    torch.optim.AdamW([gate], 0.1, fused=True).step()
    module()
    assert module.count == 1


def test_settings_count():
    module = Doubler().eval().requires_grad_(False)
    module("a")
    module("b")
    module("b")
    assert module.count == 2


def test_nothing_is_kept_while_gradients_may_flow():
    module = Doubler()
    for train, grad in ((True, True), (True, False), (False, True)):
        with torch.set_grad_enabled(grad):
            module.train(train)
            first, second = module(), module()
        assert first is not second
        assert first.requires_grad == grad
    with torch.no_grad():
        kept = module.eval()()
    module().sum().backward()  # and what was kept before is not used either
    assert module.weight.grad.tolist() == [2, 2, 2, 2]
    with torch.no_grad():
        assert module() is not kept


@pytest.mark.parametrize("grad", [True, False])
def test_frozen_parameters_are_not_kept_in_training_mode(grad):
    """A teacher that averages the weights of a student writes through .data, which torch does not count."""
    module = Doubler().train().requires_grad_(False)
    with torch.set_grad_enabled(grad):
        module()
        module.weight.data.mul_(0.5).add_(1)
        assert torch.equal(module(), 2 * module.weight)


def test_what_inference_mode_kept_serves_training():
    module = Doubler().eval().requires_grad_(False)
    with torch.inference_mode():
        module()
    factor = torch.ones(4, requires_grad=True)
    (factor * module()).sum().backward()
    assert module.count == 1
    assert factor.grad.tolist() == [0, 2, 4, 6]


def test_parameters_of_inference_mode_are_not_kept():
    with torch.inference_mode():
        module = Doubler().eval().requires_grad_(False)
        module()
        module.weight.add_(1)
        assert torch.equal(module(), 2 * module.weight)


def test_copies_begin_empty():
    module = Doubler().eval().requires_grad_(False)
    module()
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        other()
        assert other.count == 2


def test_under_torch_func():
    module = Doubler().eval().requires_grad_(False)
    kept = module()
    many = torch.arange(8.0).view(2, 4)
    call = torch.func.functional_call
    assert torch.equal(torch.vmap(lambda weight: call(module, {"weight": weight}, ()))(many), 2 * many)
    assert torch.func.grad(lambda weight: call(module, {"weight": weight}, ()).sum())(many[0]).tolist() == [2] * 4
    assert torch.equal(call(module, {"weight": many[1]}, ()), 2 * many[1])
    assert torch.equal(module(), kept)


def test_neither_parameters_nor_their_memory_are_kept_alive():
    module = Doubler().eval().requires_grad_(False)
    module()
    freed = torch.multiprocessing.reductions.StorageWeakRef(module.weight.untyped_storage())
    module.weight.data = torch.ones(4)
    assert freed.expired()


def test_normalised_constants_are_made_once_for_a_length():
    mixer = ConstantHeads(Place(0, 2, 6), [0, 1]).eval()
    values = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0))
    mixer.load_constants(values)
    value = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(1))
    none = value[:, :0]
    expected = values[:, :4, :4] / values[:, :4, :4].sum(-1, keepdim=True)
    for _ in range(2):
        torch.testing.assert_close(mix(mixer, none, none, value, None, 1.0)[0], (expected @ value).transpose(1, 2))
    kept = mixer._normalized._held[1]
    mix(mixer, none, none, value, None, 1.0)
    assert mixer._normalized._held[1] is kept
    assert mixer.constants_for(value).data_ptr() == mixer.constants.data_ptr()  # a part of them, no copy
    mixer.load_constants(values.flip(2))
    expected = values.flip(2)[:, :4, :4] / values.flip(2)[:, :4, :4].sum(-1, keepdim=True)
    torch.testing.assert_close(mix(mixer, none, none, value, None, 1.0)[0], (expected @ value).transpose(1, 2))
    assert mixer.train()._normalized._held is None
