"""The contract of all callbacks that calibrate, and a test for each known fault of other projects.

Per callback (without a file: here):
    counts its own passes, deepcopy: test_one_pass_for_copies_too
    iterable data: test_data_that_can_only_be_iterated
    crash and resume: test_a_crash_and_a_second_start,
        test_checkpoints_of_projects.py::test_resuming_in_the_middle_ends_as_one_run,
        test_head_gates.py::test_a_resumed_run_ends_as_one_that_was_never_stopped
    configure_model: test_configure_model_may_make_the_encoder
    one device: test_constant_attention.py, test_head_gates.py, test_swapped_attention.py, all of them
    DDP on two CPU processes: test_two_processes.py::test_callback_under_ddp, ::test_gates_under_ddp, test_images.py
    refused strategies: test_constant_attention.py::test_sharded_strategies_want_a_file,
        test_head_gates.py::test_sharded_strategies_are_refused

    batches of any form, samplers and limits: test_any_batch.py::test_batches_of_any_form,
        ::test_the_rows_that_the_loader_of_the_run_gives
    no trace of the pass: test_any_batch.py::test_training_is_that_of_a_run_with_the_constants_from_a_file,
        test_unchanged.py::test_all_of_it_comes_back
    every sequence once: test_any_batch_on_two_processes.py::test_each_sequence_once
    a second fit: test_second_fits.py::test_a_new_callback_calibrates_on_its_own_data,
        ::test_the_same_callback_keeps_its_constants_and_says_so
    two kinds for one encoder: test_two_kinds_for_one_encoder_are_refused
    a trial run: test_outputs_of_runs.py::test_a_trial_run_leaves_everything_as_it_was

Faults:
    a validation that stops after the first epoch: test_validation_rows.py::test_it_is_found_before_the_pass
    one file for two encoders: test_outputs_of_runs.py::test_each_encoder_has_a_file
    collecting in validation or the sanity check:
        test_constant_attention.py::test_sanity_check_and_validation_never_collect
    test(ckpt_path) after a change of structure:
        test_constant_attention.py::test_evaluation_takes_the_constants_of_a_checkpoint
    statistics of one process only: test_projects_of_others.py::test_constants_are_exact_whatever_the_shares
    "fitted" forgotten by a checkpoint: test_conformance.py::test_a_saved_state_dict_loads_strictly
    a buffer replaced or resized, large buffers: test_constants_arrive_in_place_and_ddp_leaves_them_alone
    layers made in setup of the module: test_configure_model_may_make_the_encoder,
        test_constant_attention.py::test_an_encoder_that_is_replaced_after_setup_is_noticed
    requires_grad after DDP, dead parameters:
        test_projects_of_others.py::test_no_dead_parameters_without_find_unused_parameters
    strict=False lets constants be missing:
        test_plain_states.py::test_a_state_that_lost_a_part_of_what_was_added_is_refused,
        test_constant_attention.py::test_evaluation_without_constants_is_refused
    a collective on rank zero only: test_images.py::test_the_first_process_draws
    relying on the order of callbacks: test_other_callbacks.py, all of it
    a silent fallback to another task or model: test_swap_refusals.py::test_unsupported_models,
        test_pretrained.py::test_unknown_name
    a module of another class, module.__class__: test_no_module_changes_its_class
    output_attentions=True under sdpa: test_nobody_asks_for_attention_matrices
    ckpt_path overrides the command line:
        test_command_line.py::test_a_checkpoint_overrides_the_arguments_of_the_task_and_nothing_else
    arguments that YAML cannot say: test_arguments_are_primitives
"""

import copy
import inspect
import re
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from projects import LENGTH, Classifier, Sentences, loaders, trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import BertModel

from papa_lightning import (
    AttentionConstants,
    AttentionImages,
    ConstantAttention,
    HeadGates,
    MaskedLanguageModelingTask,
    PapaError,
    SequenceClassificationTask,
    TokenClassificationTask,
    calibrate,
    swap_attention,
)
from papa_lightning.callbacks import PredictionWriter, SwappedAttention
from papa_lightning.encoders import is_calibrated, load_constants, swapped_layers


class Counts:
    """Counts its own passes, and can break in the middle of one."""

    passes, broken = 0, False

    def calibrate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> AttentionConstants:
        self.passes += 1
        return super().calibrate(trainer, pl_module)  # type: ignore[misc]

    def calibration_batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
        yield from super().calibration_batches(trainer, pl_module)  # type: ignore[misc]
        if self.broken:
            raise RuntimeError("the power is gone")


class CountingHeads(Counts, ConstantAttention):
    pass


class CountingGates(Counts, HeadGates):
    pass


each = pytest.mark.parametrize("kind", [CountingHeads, CountingGates])


def assert_average_of(module: Classifier, number: int = 8) -> None:
    expected = calibrate(Classifier().bert, DataLoader(Sentences(number), batch_size=3), max_length=LENGTH)
    for layer, values in zip(swapped_layers(module.bert), expected.values, strict=True):
        torch.testing.assert_close(layer.constants.detach(), values, atol=1e-6, rtol=0)


@each
def test_one_pass_for_copies_too(kind: Any) -> None:
    module, callback = Classifier(), kind(max_length=LENGTH)
    trainer(callback, max_epochs=2).fit(module, **loaders())
    other, again = copy.deepcopy(module), copy.deepcopy(callback)
    trainer(again).fit(other, **loaders())
    assert (callback.passes, again.passes) == (1, 1)
    assert_average_of(other)
    assert not torch.equal(other.classifier.weight, module.classifier.weight), "they share nothing"


@each
def test_data_that_can_only_be_iterated(kind: Any) -> None:
    class Stream(IterableDataset[dict[str, Tensor]]):
        def __iter__(self) -> Any:
            return iter([Sentences(6)[index] for index in range(6)])

    module = Classifier()
    trainer(kind(max_length=LENGTH)).fit(module, DataLoader(Stream(), batch_size=4))
    assert_average_of(module, 6)


@each
def test_a_crash_and_a_second_start(kind: Any) -> None:
    module, callback = Classifier(), kind(max_length=LENGTH)
    callback.broken = True
    with pytest.raises(RuntimeError, match="the power is gone"):
        trainer(callback).fit(module, **loaders())
    assert not is_calibrated(module.bert)
    assert "configure_optimizers" not in vars(module)
    callback.broken = False
    trainer(callback).fit(module, **loaders())
    assert callback.passes == 2
    assert_average_of(module)


@each
def test_configure_model_may_make_the_encoder(kind: Any) -> None:
    class Lazy(Classifier):
        def __init__(self) -> None:
            super().__init__()
            del self.bert

        def configure_model(self) -> None:
            if not hasattr(self, "bert"):
                self.bert = Classifier().bert

    module = Lazy()
    trainer(kind(max_length=LENGTH)).fit(module, **loaders())
    assert_average_of(module)


@pytest.mark.parametrize("kind", ["constant", "gated"])
def test_constants_arrive_in_place_and_ddp_leaves_them_alone(kind: str) -> None:
    """Others hold the tensors that they were shown; and DDP would send buffers around at every forward."""
    encoder = Classifier().bert
    parameters, buffers = dict(encoder.named_parameters()), dict(encoder.named_buffers())
    swap_attention(encoder, kind, max_length=LENGTH)
    added = dict(encoder.named_buffers()).keys() - buffers.keys()
    assert len(added) == len(swapped_layers(encoder))
    assert added <= set(encoder._ddp_params_and_buffers_to_ignore)
    assert {name for name, _ in encoder.named_parameters() if not name.endswith("gate_logits")} == parameters.keys()
    before = [(id(layer.constants), layer.constants.data_ptr()) for layer in swapped_layers(encoder)]
    load_constants(encoder, calibrate(encoder, DataLoader(Sentences(8), batch_size=4), max_length=LENGTH))
    encoder.load_state_dict(copy.deepcopy(encoder.state_dict()))
    assert [(id(layer.constants), layer.constants.data_ptr()) for layer in swapped_layers(encoder)] == before
    assert all(layer.constants.any() for layer in swapped_layers(encoder))


def test_no_module_changes_its_class() -> None:
    encoder = Classifier().bert
    before = [(module, type(module)) for module in encoder.modules()]
    swap_attention(encoder, "constant", max_length=LENGTH, heads=[(0, 1)])
    assert len(swapped_layers(encoder)) == 2
    assert all(type(module) is kind for module, kind in before)


def test_nobody_asks_for_attention_matrices() -> None:
    """Under sdpa the answer is an empty tuple and a warning."""
    module, asked, forward = Classifier(), [], BertModel.forward

    @wraps(forward)
    def watched(*arguments: Any, **options: Any) -> Any:
        asked.append(options.get("output_attentions"))
        return forward(*arguments, **options)

    assert module.bert.config._attn_implementation == "sdpa"
    with mock.patch.object(BertModel, "forward", watched):
        trainer(ConstantAttention(max_length=LENGTH)).fit(module, **loaders())
    assert asked
    assert not any(asked)
    assert not module.bert.config.output_attentions
    assert_average_of(module)


CALLBACKS = [ConstantAttention, HeadGates, SwappedAttention, AttentionImages, PredictionWriter]
TASKS = [SequenceClassificationTask, TokenClassificationTask, MaskedLanguageModelingTask]


@pytest.mark.parametrize("kind", [*CALLBACKS, *TASKS])
def test_arguments_are_primitives(kind: type) -> None:
    """A parser has each of them as a plain argument, and none that names a class."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "one", fail_untyped=True)
    named = {action.dest for action in parser._actions}
    wanted = {name for name in inspect.signature(kind).parameters if name not in ("args", "kwargs")}
    assert {f"one.{name}" for name in wanted} <= named
    texts = [str(action.type) + str(getattr(action, "_typehint", "")) for action in parser._actions]
    assert not [text for text in texts if "torch" in text or "Type[" in text or "type[" in text or "AutoModel" in text]


def test_every_test_of_the_list_exists() -> None:
    names = set(re.findall(r"\btest_\w+\b(?!\.py)", str(__doc__)))
    files = Path(__file__).parents[2].rglob("test_*.py")
    defined = {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), flags=re.MULTILINE)}
    assert names - defined == set()
    assert len(names) > 20


@pytest.mark.parametrize("order", [1, -1])
def test_two_kinds_for_one_encoder_are_refused(order: int) -> None:
    callbacks = [HeadGates(0.1, max_length=LENGTH), ConstantAttention(max_length=LENGTH)][::order]
    with pytest.raises(PapaError, match="for the same BertModel, which cannot be swapped to both"):
        trainer(*callbacks).fit(Classifier(), **loaders())
