"""The running layer is known in threads, repeated layers, after errors and in copies."""

import copy
import pickle
import threading
from functools import partial

import pytest
import torch
from conformance.tiny_models import CASES, build, make_constants, make_inputs, swap, swapped
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from papa_lightning import calibrate, restore_attention, swap_attention
from papa_lightning.encoders import observe_attention
from papa_lightning.errors import PapaError

ALBERTS = ["albert", "albert-groups"]


def hidden(model, inputs):
    with torch.no_grad():
        return model(**inputs).last_hidden_state


def in_threads(*works):
    """Run functions at the same time; the first error of one is an error here."""
    errors, start = [], threading.Barrier(len(works))

    def run(work):
        try:
            start.wait()
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class Pause:
    """A forward hook that lets another thread run a whole forward in the middle of this one's."""

    def __init__(self, work):
        self.work, self.inside, self.results = work, False, []

    def __call__(self, *_):
        if not self.inside:
            self.inside = True
            in_threads(lambda: self.results.append(self.work()))
            self.inside = False


@pytest.mark.parametrize("name", [*ALBERTS, "bert", "deberta-v2-own", "gpt2"])
@pytest.mark.parametrize("mode", ["partial", "gated"])
def test_a_forward_of_another_thread_in_the_middle(name, mode):
    model, mine, others = swapped(name, mode), make_inputs(name), make_inputs(name, seed=7)
    expected, other = hidden(model, mine), hidden(model, others)
    pause = Pause(lambda: hidden(model, others))
    for module in [one for one in model.modules() if isinstance(one, (torch.nn.Linear, Conv1D))]:
        module.register_forward_hook(pause)
    assert torch.equal(hidden(model, mine), expected)
    assert all(torch.equal(result, other) for result in pause.results)
    assert len(pause.results) >= CASES[name].layers


@pytest.mark.parametrize("kind", ["aft_simple", "folded", "shared", "dynamic"])
def test_other_kinds_of_a_shared_module(kind):
    model, mine, others = build("albert"), make_inputs("albert"), make_inputs("albert", seed=7)
    kinds = kind if kind == "folded" else ["constant", kind, kind]
    values = make_constants("albert")
    if kind == "folded":
        values.values.copy_(values.values[:, :1].expand_as(values.values).clone())
    swap_attention(model, kinds, constants=values)
    expected, other = hidden(model, mine), hidden(model, others)
    pause = Pause(lambda: hidden(model, others))
    model.encoder.albert_layer_groups[0].albert_layers[0].ffn.register_forward_hook(pause)
    assert torch.equal(hidden(model, mine), expected)
    assert all(torch.equal(result, other) for result in pause.results)


@pytest.mark.parametrize("name", ALBERTS)
@pytest.mark.parametrize("implementation", list(CheckpointImpl))
@pytest.mark.parametrize("part", ["AlbertLayerGroup", "AlbertLayer", "SwappedAlbertAttention"])
def test_layers_that_run_again_for_the_backward_pass(name, implementation, part):
    inputs, gradients = make_inputs(name), []
    for again in (False, True):
        model = swapped(name, "partial").train()
        if again:
            wrap = partial(checkpoint_wrapper, checkpoint_impl=implementation)
            apply_activation_checkpointing(model, wrap, lambda module: type(module).__name__ == part)
        model(**inputs).last_hidden_state.square().sum().backward()
        gradients.append([one.grad for one in model.parameters() if one.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("name", ALBERTS)
def test_an_error_in_the_middle_of_a_forward(name):
    model, inputs = swapped(name, "partial"), make_inputs(name)
    expected, calls = hidden(model, inputs), []

    def fail(*_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    handle = model.get_submodule("encoder.albert_layer_groups.0.albert_layers.0.ffn").register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        hidden(model, inputs)
    handle.remove()
    group = model.encoder.albert_layer_groups[0]
    with pytest.raises(PapaError, match=r"called by itself, but it serves [23] layers"):
        group(torch.zeros(1, 4, 32, dtype=torch.float64))
    assert torch.equal(hidden(model, inputs), expected)
    restore_attention(model)
    group(torch.zeros(1, 4, 32, dtype=torch.float64))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", [*ALBERTS, "deberta", "bert"])
def test_copies(name, copied):
    """A copy shares nothing, and is restored by itself."""
    model, inputs = swapped(name, "partial"), make_inputs(name)
    expected, plain = hidden(model, inputs), hidden(build(name), inputs)
    other = copied(model)
    assert torch.equal(hidden(other, inputs), expected)
    assert torch.equal(hidden(restore_attention(other), inputs), plain)
    assert torch.equal(hidden(model, inputs), expected)


@pytest.mark.parametrize("name", [*ALBERTS, "bert", "deberta", "gpt2"])
@pytest.mark.parametrize("mode", [None, "partial"])
def test_observing_while_another_thread_runs_forwards(name, mode):
    """An observer sees only the forwards of its own thread, and does not affect other threads."""
    model, inputs, others = build(name), make_inputs(name), make_inputs(name, seed=7)
    constants = calibrate(model, [inputs], CASES[name].length)
    if mode is not None:
        swap(name, model, mode)
    expected, done, wrong = hidden(model, others), threading.Event(), []

    def serve():
        while not done.is_set():
            wrong.append(not torch.equal(hidden(model, others), expected))

    def look():
        try:
            for _ in range(8):
                found = calibrate(model, [inputs], CASES[name].length)
                assert_close(found.values, constants.values)
        finally:
            done.set()

    in_threads(serve, look)
    assert wrong
    assert not any(wrong)
    assert_close(hidden(model, others), expected)


def test_one_observer_at_a_time():
    model, inputs = build("bert"), make_inputs("bert")
    observers = [lambda *_: None] * 3

    def second():
        with observe_attention(model, observers):
            pass

    with observe_attention(model, observers):
        with pytest.raises(PapaError, match="calibrated or observed already"):
            second()
        with pytest.raises(PapaError, match="calibrated or observed already"):
            in_threads(second)
        hidden(model, inputs)
    second()
    assert torch.equal(hidden(model, inputs), hidden(build("bert"), inputs))


def test_matrices_for_a_forward_that_is_observed():
    """A module whose own code asks for matrices gets them during calibration too."""
    model, inputs = build("bert"), make_inputs("bert")
    expected = build("bert", "eager")(**inputs, output_attentions=True).attentions
    for observers in ([lambda matrices, _: matrices.zero_()] * 3,):
        with observe_attention(model, observers), torch.no_grad():
            found = model(**inputs, output_attentions=True).attentions
    for one, other in zip(found, expected, strict=True):
        real = inputs["attention_mask"].bool()
        assert_close(one.transpose(1, 2)[real], other.transpose(1, 2)[real])


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_matrices_asked_for_by_the_configuration(name):
    model, inputs = swapped(name, "partial", "sdpa"), make_inputs(name)
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    found = model(**inputs).attentions
    model.config.output_attentions = False
    assert len(found) == 3
    again = model(**inputs, output_attentions=True).attentions
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    assert model(**inputs).attentions is None
