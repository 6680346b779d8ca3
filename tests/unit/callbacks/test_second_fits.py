"""Constants of a second fit with an encoder that has some already."""

import copy
import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from projects import LENGTH, Classifier, Sentences, trainer
from torch.utils.data import DataLoader

from papa_lightning import (
    AttentionConstants,
    ConstantAttention,
    HeadGates,
    LearnedConstants,
    calibrate,
    swap_attention,
)
from papa_lightning.callbacks import SwappedAttention
from papa_lightning.encoders import load_constants, swapped_layers


def data(seed: int) -> Any:
    return DataLoader(Sentences(8, seed=seed), batch_size=4)


def constants(module: Classifier) -> torch.Tensor:
    return torch.stack([layer.constants.detach() for layer in swapped_layers(module.bert)])


def average(module: Classifier, seed: int) -> torch.Tensor:
    """Over the data with the weights that the module has now."""
    return calibrate(module.bert, data(seed), LENGTH).values


class Still(Classifier):
    """Does not learn, so that only the data make a difference."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)


def fit(module: L.LightningModule, callback: Any, seed: int, **arguments: Any) -> None:
    trainer(callback).fit(module, data(seed), **arguments)


@pytest.fixture
def said(caplog: Any) -> Any:
    caplog.set_level(logging.INFO)
    return caplog


@pytest.mark.parametrize("kind", [ConstantAttention, HeadGates])
def test_a_new_callback_calibrates_on_its_own_data(kind: Any, said: Any) -> None:
    module = Still()
    fit(module, kind(max_length=LENGTH), 0)
    fit(module, kind(max_length=LENGTH), 1)
    torch.testing.assert_close(constants(module), average(module, 1), atol=1e-6, rtol=0)
    assert "averages over 8 sequences of the train data in an earlier fit: this callback makes its own" in said.text


def test_the_same_callback_keeps_its_constants_and_says_so(said: Any) -> None:
    module, callback = Still(), ConstantAttention(max_length=LENGTH)
    fit(module, callback, 0)
    first = constants(module)
    fit(module, callback, 1)
    fit(module, copy.deepcopy(callback), 1)
    assert torch.equal(constants(module), first)
    assert "The constants in use are averages over 8 sequences of the train data in an earlier fit; this" in said.text


def test_copies_of_one_unused_callback_are_new_ones() -> None:
    """As in cross-validation with one Trainer per fold."""
    template, module = ConstantAttention(max_length=LENGTH), Still()
    for fold in (0, 1):
        fit(module, copy.deepcopy(template), fold)
        torch.testing.assert_close(constants(module), average(module, fold), atol=1e-6, rtol=0)


def test_a_callback_that_goes_from_module_to_module() -> None:
    callback, one, other = ConstantAttention(max_length=LENGTH), Still(), Still()
    fit(one, callback, 0)
    fit(other, ConstantAttention(max_length=LENGTH), 0)
    fit(other, callback, 1)
    fit(one, callback, 1)
    torch.testing.assert_close(constants(other), average(other, 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(constants(one), average(one, 0), atol=1e-6, rtol=0)


def test_a_file_of_a_new_callback_is_used(tmp_path: Path, said: Any) -> None:
    module = Still()
    path = str(calibrate(module.bert, data(1), LENGTH).save(tmp_path / "constants.safetensors"))
    fit(module, ConstantAttention(max_length=LENGTH), 0)
    callback = ConstantAttention(constants=path)
    fit(module, callback, 0)
    assert torch.equal(constants(module), AttentionConstants.load(path).values)
    assert f"The constants in use are those of the file {path}" in said.text
    with torch.no_grad():
        swapped_layers(module.bert)[0].constants.mul_(0.5)  # as if they had learned
    trainer(callback).test(module, data(0))
    assert not torch.equal(constants(module), AttentionConstants.load(path).values)


def test_constants_of_the_module_itself_stay(said: Any) -> None:
    module = Still()
    made = calibrate(module.bert, data(3), LENGTH)
    swap_attention(module.bert, "constant", constants=made)
    fit(module, ConstantAttention(max_length=LENGTH), 0)
    assert torch.equal(constants(module), made.values)
    assert "The constants in use are those that the module brought along" in said.text


@pytest.mark.parametrize("verb", ["fit", "test"])
@pytest.mark.parametrize("kind", [ConstantAttention, HeadGates])
def test_a_file_goes_before_constants_of_the_module_itself(verb: str, kind: Any, tmp_path: Path) -> None:
    module = Still()
    path = str(calibrate(module.bert, data(1), LENGTH).save(tmp_path / "constants.safetensors"))
    made = calibrate(module.bert, data(3), LENGTH)
    swap_attention(module.bert, "constant" if kind is ConstantAttention else "gated", constants=made)
    getattr(trainer(kind(constants=path)), verb)(module, data(0))
    assert torch.equal(constants(module), AttentionConstants.load(path).values)


def test_evaluation_leaves_trained_constants_alone(tmp_path: Path) -> None:
    """Of a callback and of layers that start from constants; a file would undo the training."""
    options = {"window": 4, "init": "from_constants"}
    for make, others in (
        (lambda path: ConstantAttention(constants=path), [LearnedConstants(0.05)]),
        (lambda path: SwappedAttention("aft_local", options, constants=path), []),
    ):
        module = Classifier()
        path = str(calibrate(module.bert, data(1), LENGTH).save(tmp_path / "constants.safetensors"))
        trainer(make(path), *others).fit(module, data(0))
        before = {name: one.clone() for name, one in module.state_dict().items()}
        trainer(make(path)).test(module, data(0))
        assert all(torch.equal(module.state_dict()[name], one) for name, one in before.items())


def test_constants_of_a_checkpoint_stay_in_a_used_module_too(tmp_path: Path, said: Any) -> None:
    first = Still()
    run = trainer(ConstantAttention(max_length=LENGTH))
    run.fit(first, data(0))
    run.save_checkpoint(tmp_path / "run.ckpt")
    module, callback = Still(seed=1), ConstantAttention(max_length=LENGTH)
    fit(module, ConstantAttention(max_length=LENGTH), 1)
    again = trainer(callback, max_epochs=2)
    again.fit(module, data(2), ckpt_path=tmp_path / "run.ckpt", weights_only=True)
    fit(module, callback, 3)
    assert torch.equal(constants(module), constants(first))
    assert "The constants in use are those of the checkpoint that this run goes on from" in said.text
    fit(module, ConstantAttention(max_length=LENGTH), 3)
    torch.testing.assert_close(constants(module), average(module, 3), atol=1e-6, rtol=0)


def test_evaluation_never_calibrates_a_used_module() -> None:
    module = Still()
    fit(module, ConstantAttention(max_length=LENGTH), 0)
    first = constants(module)
    trainer(ConstantAttention(max_length=LENGTH)).test(module, data(1))
    assert torch.equal(constants(module), first)


def test_two_callbacks_of_one_run_do_not_take_turns() -> None:
    class Counting(ConstantAttention):
        passes = 0

        def calibrate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> AttentionConstants:
            self.passes += 1
            return super().calibrate(trainer, pl_module)

    callbacks = [Counting(max_length=LENGTH, encoder=name) for name in ("bert", None)]
    trainer(*callbacks).fit(Still(), data(0))
    assert [callback.passes for callback in callbacks] == [1, 0]


def test_layers_that_learned_from_their_start_are_left_as_they_are() -> None:
    module, options = Classifier(), {"window": 4, "init": "from_constants"}
    fit(module, SwappedAttention("aft_local", options, max_length=LENGTH), 0)
    before = {name: one.clone() for name, one in module.state_dict().items() if ".papa." in name}
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), 0.0)
    fit(module, SwappedAttention("aft_local", options, max_length=LENGTH), 1)
    assert all(torch.equal(module.state_dict()[name], one) for name, one in before.items())
    assert before


def test_another_swap_forgets_where_constants_came_from() -> None:
    module = Still()
    fit(module, ConstantAttention(max_length=LENGTH), 0)
    swap_attention(module.bert, "constant", max_length=LENGTH)
    made = calibrate(module.bert, data(5), LENGTH)
    load_constants(module.bert, made)
    fit(module, ConstantAttention(max_length=LENGTH), 1)
    assert torch.equal(constants(module), made.values)
