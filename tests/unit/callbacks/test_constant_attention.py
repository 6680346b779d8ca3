import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from projects import LENGTH, Classifier, Sentences, loaders, trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from papa_lightning import (
    AttentionConstants,
    ConstantAttention,
    HeadGates,
    HeadRanking,
    PapaError,
    calibrate,
    swap_attention,
)
from papa_lightning.encoders import is_calibrated, swapped_layers


class Counting(ConstantAttention):
    """Counts its own calibration passes."""

    passes = 0

    def calibrate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> AttentionConstants:
        self.passes += 1
        return super().calibrate(trainer, pl_module)


def expected_constants(module: Classifier, number: int = 8) -> AttentionConstants:
    data = DataLoader(Sentences(number), batch_size=3)
    return calibrate(module.bert, data, max_length=LENGTH)


def test_fit_calibrates_once_and_makes_all_heads_constant() -> None:
    module, callback = Classifier(), Counting(max_length=LENGTH)
    expected = expected_constants(module)
    trainer(callback, max_epochs=2).fit(module, **loaders())
    assert callback.passes == 1
    assert callback.calibration_seconds is not None
    assert callback.calibration_seconds > 0
    assert [layer.constant_heads for layer in swapped_layers(module.bert)] == [(0, 1), (0, 1)]
    for layer, values in zip(swapped_layers(module.bert), expected.values, strict=True):
        torch.testing.assert_close(layer.constants.detach(), values, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("packing", "of_module"), [(True, None), (False, None), (True, False), (True, True)])
def test_packing_is_a_switch_of_the_callback_or_of_a_task(
    packing: bool, of_module: bool | None, tmp_path: Path
) -> None:
    class WithInputs(Classifier):
        def encoder_inputs(self, batch: Any) -> Any:
            return batch

    module = WithInputs()
    if of_module is not None:
        module.packing = of_module
    expected, lengths = expected_constants(module), list[int]()
    module.bert.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    callback = Counting(max_length=LENGTH, packing=packing)
    trainer(callback, logger=CSVLogger(tmp_path), limit_val_batches=0).fit(module, loaders()["train_dataloaders"])
    assert callback.constants_path is not None
    found = AttentionConstants.load(callback.constants_path)
    torch.testing.assert_close(found.values, expected.values, atol=1e-6, rtol=0)
    assert torch.equal(found.pair_counts, expected.pair_counts)
    packed = packing and of_module is not False
    assert found.metadata["packing"] == ({"tokens_per_batch": 1536} if packed else None)


def test_a_second_fit_does_not_calibrate_again() -> None:
    module, callback = Classifier(), Counting(max_length=LENGTH)
    trainer(callback).fit(module, **loaders())
    constants = swapped_layers(module.bert)[0].constants.clone()
    trainer(callback).fit(module, **loaders(number=4))
    assert callback.passes == 1
    assert torch.equal(swapped_layers(module.bert)[0].constants, constants)


def test_sanity_check_and_validation_never_collect() -> None:
    """The constants are the averages over the train data alone, whatever ran before and between."""
    with_checks, without = Classifier(), Classifier()
    trainer(ConstantAttention(max_length=LENGTH), num_sanity_val_steps=2, max_epochs=2).fit(with_checks, **loaders())
    trainer(ConstantAttention(max_length=LENGTH), num_sanity_val_steps=0, limit_val_batches=0).fit(
        without, train_dataloaders=loaders()["train_dataloaders"]
    )
    for one, other in zip(swapped_layers(with_checks.bert), swapped_layers(without.bert), strict=True):
        assert torch.equal(one.constants, other.constants)


def test_heads_are_dynamic_in_the_sanity_check_and_constant_in_validation() -> None:
    states: list[tuple[bool, bool]] = []

    class Probe(L.Callback):
        def on_validation_batch_start(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
            states.append((trainer.sanity_checking, is_calibrated(pl_module.bert)))

    trainer(ConstantAttention(max_length=LENGTH), Probe(), num_sanity_val_steps=1).fit(Classifier(), **loaders())
    assert states == [(True, False), (False, True)]


def test_observing_leaves_training_bit_identical() -> None:
    plain, observed = Classifier(), Classifier()
    trainer(max_epochs=2).fit(plain, **_seeded_loaders())
    callback = Counting(max_length=LENGTH, heads=[])
    trainer(callback, max_epochs=2).fit(observed, **_seeded_loaders())
    assert callback.passes == 1
    state = observed.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(state[name], value), name


def _seeded_loaders() -> dict[str, Any]:
    torch.manual_seed(3)
    return loaders()


def test_no_loop_counter_changes() -> None:
    run = trainer(ConstantAttention(max_length=LENGTH), max_epochs=3)
    run.fit(Classifier(), **loaders())
    assert (run.current_epoch, run.global_step) == (3, 6)


def test_resume_neither_calibrates_again_nor_loses_the_constants(tmp_path: Path) -> None:
    first = Classifier()
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    arguments: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    callback = Counting(max_length=LENGTH)
    trainer(callback, checkpoint, **arguments).fit(first, **loaders())

    resumed, again = Classifier(seed=1), Counting(max_length=LENGTH)
    trainer(again, max_epochs=2).fit(resumed, **loaders(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert again.passes == 0
    assert again.calibration_seconds == callback.calibration_seconds
    for one, other in zip(swapped_layers(first.bert), swapped_layers(resumed.bert), strict=True):
        assert torch.equal(one.constants, other.constants)


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_evaluation_takes_the_constants_of_a_checkpoint(tmp_path: Path, verb: str) -> None:
    fitted = Classifier()
    run = trainer(ConstantAttention(max_length=LENGTH))
    run.fit(fitted, **loaders())
    run.save_checkpoint(tmp_path / "run.ckpt")
    callback, module = Counting(max_length=LENGTH), Classifier(seed=1)
    batch = next(iter(DataLoader(Sentences(4), batch_size=4)))
    getattr(trainer(callback), verb)(module, DataLoader(Sentences(4)), ckpt_path=tmp_path / "run.ckpt")
    assert callback.passes == 0
    assert is_calibrated(module.bert)
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(batch), fitted.eval()(batch), atol=0, rtol=0)


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_evaluation_without_constants_is_refused(verb: str) -> None:
    with pytest.raises(PapaError, match=r"waits for constants.*ckpt_path.*constants=PATH"):
        getattr(trainer(ConstantAttention(max_length=LENGTH)), verb)(Classifier(), DataLoader(Sentences(4)))


def test_a_constants_file_replaces_calibration(tmp_path: Path) -> None:
    module = Classifier()
    constants = expected_constants(module)
    path = str(constants.save(tmp_path / "constants.safetensors"))
    callback = Counting(constants=path, heads=[(0, 1)])
    trainer(callback).test(module, DataLoader(Sentences(4)))
    trainer(callback).fit(module, **loaders())
    assert callback.passes == 0
    assert torch.equal(swapped_layers(module.bert)[0].constants[0], constants.values[0, 1])


def test_a_share_of_heads_by_a_ranking_file(tmp_path: Path) -> None:
    path = tmp_path / "ranking.json"
    HeadRanking([(1, 1), (0, 0), (0, 1), (1, 0)]).save(path)
    module = Classifier()
    trainer(ConstantAttention(max_length=LENGTH, heads=0.5, ranking=str(path))).fit(module, **loaders())
    assert [layer.constant_heads for layer in swapped_layers(module.bert)] == [(0,), (1,)]


def test_a_module_that_is_built_with_constants_runs_without_calibration() -> None:
    module, callback = Classifier(), Counting(max_length=LENGTH)
    swap_attention(module.bert, "constant", constants=expected_constants(module))
    trainer(callback).fit(module, **loaders())
    assert callback.passes == 0


def test_checkpoint_with_other_heads_is_refused(tmp_path: Path) -> None:
    run = trainer(ConstantAttention(max_length=LENGTH, heads=[(0, 0)]))
    run.fit(Classifier(), **loaders())
    run.save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(PapaError, match=r"checkpoint has constant heads \[0\] in layer 0.*\[1\]"):
        trainer(ConstantAttention(max_length=LENGTH, heads=[(0, 1)])).test(
            Classifier(), DataLoader(Sentences(4)), ckpt_path=tmp_path / "run.ckpt"
        )


def test_constants_are_written_beside_the_logs(tmp_path: Path) -> None:
    module, callback = Classifier(), ConstantAttention(max_length=LENGTH)
    run = trainer(callback, logger=CSVLogger(tmp_path))
    run.fit(module, **loaders())
    assert callback.constants_path is not None
    written = AttentionConstants.load(callback.constants_path)
    assert Path(callback.constants_path).parent == Path(run.log_dir or "")
    assert torch.equal(written.values[0], swapped_layers(module.bert)[0].constants)
    assert written.metadata["sequences"] == 8


@pytest.mark.parametrize(
    ("arguments", "sequences"),
    [
        ({"fast_dev_run": True}, 4),
        ({"limit_train_batches": 1}, 4),
        ({"limit_train_batches": 0.5}, 4),
        ({"overfit_batches": 1}, 4),
        ({}, 8),
    ],
)
def test_batch_limits_are_honoured(arguments: dict[str, Any], sequences: int) -> None:
    seen: list[AttentionConstants] = []

    class Keeping(ConstantAttention):
        def calibrate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> AttentionConstants:
            seen.append(super().calibrate(trainer, pl_module))
            return seen[-1]

    trainer(Keeping(max_length=LENGTH), **arguments).fit(Classifier(), **loaders())
    assert [constants.metadata["sequences"] for constants in seen] == [sequences]


def test_modes_come_back_per_module() -> None:
    module = Classifier()
    module.bert.encoder.layer[1].eval()
    before = {name: part.training for name, part in module.named_modules()}
    modes: dict[str, bool] = {}

    class After(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            modes.update({name: part.training for name, part in pl_module.named_modules()})

    trainer(ConstantAttention(max_length=LENGTH), After()).fit(module, **loaders())
    assert {name: modes[name] for name in before} == before


def test_interrupted_pass_leaves_no_constants_and_starts_again(tmp_path: Path) -> None:
    class Breaking(Counting):
        broken = True

        def calibration_batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
            for number, batch in enumerate(super().calibration_batches(trainer, pl_module)):
                if number == 1 and self.broken:
                    raise RuntimeError("the disk is gone")
                yield batch

    module, callback = Classifier(), Breaking(max_length=LENGTH)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        trainer(callback, logger=CSVLogger(tmp_path)).fit(module, **loaders())
    assert not is_calibrated(module.bert)
    assert module.bert.training
    assert not list(tmp_path.rglob("*.safetensors"))
    callback.broken = False
    trainer(callback).fit(module, **loaders())
    assert callback.passes == 2
    expected = expected_constants(Classifier())
    torch.testing.assert_close(swapped_layers(module.bert)[0].constants.detach(), expected.values[0])


def test_callbacks_of_two_encoders_keep_their_states_apart() -> None:
    one, other = (
        ConstantAttention(max_length=LENGTH, encoder="query"),
        ConstantAttention(max_length=LENGTH, encoder="key"),
    )
    assert one.state_key != other.state_key


def test_state_dict_is_small_and_primitive() -> None:
    callback = ConstantAttention(max_length=LENGTH)
    trainer(callback).fit(Classifier(), **loaders())
    assert set(callback.state_dict()) == {"calibration_seconds", "constants_path"}
    assert all(value is None or isinstance(value, (float, str)) for value in callback.state_dict().values())


def test_deepcopy_of_callback_and_module_keep_working() -> None:
    module, callback = Classifier(), Counting(max_length=LENGTH)
    trainer(callback).fit(module, **loaders())
    other, again = copy.deepcopy(module), copy.deepcopy(callback)
    trainer(again).fit(other, **loaders())
    assert again.passes == 1
    assert is_calibrated(other.bert)


def test_configure_model_may_make_the_encoder() -> None:
    class Lazy(Classifier):
        def __init__(self) -> None:
            super().__init__()
            del self.bert

        def configure_model(self) -> None:
            if not hasattr(self, "bert"):
                self.bert = Classifier().bert

    module, callback = Lazy(), Counting(max_length=LENGTH)
    trainer(callback).fit(module, **loaders())
    assert callback.passes == 1
    assert is_calibrated(module.bert)


def test_an_encoder_that_is_replaced_after_setup_is_noticed() -> None:
    class Forgetful(Classifier):
        def configure_model(self) -> None:
            self.bert = Classifier().bert

    with pytest.raises(PapaError, match="is not the one that setup swapped"):
        trainer(ConstantAttention(max_length=LENGTH)).fit(Forgetful(), **loaders())


def test_iterable_data() -> None:
    class Stream(IterableDataset[dict[str, Tensor]]):
        def __iter__(self) -> Any:
            return iter([Sentences(6)[index] for index in range(6)])

    module = Classifier()
    trainer(ConstantAttention(max_length=LENGTH)).fit(module, DataLoader(Stream(), batch_size=4))
    expected = expected_constants(Classifier(), number=6)
    torch.testing.assert_close(swapped_layers(module.bert)[0].constants.detach(), expected.values[0])


def test_bf16_mixed_precision_calibrates_in_float64_sums() -> None:
    module = Classifier()
    with torch.backends.mkldnn.flags(enabled=False):
        trainer(ConstantAttention(max_length=LENGTH), precision="bf16-mixed").fit(module, **loaders())
    constants = swapped_layers(module.bert)[0].constants
    assert constants.dtype == torch.float32
    torch.testing.assert_close(constants.detach(), expected_constants(Classifier()).values[0], atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 0}, "max_length is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"heads": 0.5}, "heads is 0.5, a number or share of heads, but ranking is None"),
        ({"heads": 3}, "heads is 3, a number or share of heads, but ranking is None"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PapaError, match=re.escape(message)):
        ConstantAttention(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "max_length is None"),
        ({"max_length": 21}, "max_length is 21, but must be a whole number from 1 to 20, the positions of the encoder"),
        ({"max_length": LENGTH, "heads": [(2, 0)]}, "heads has (layer 2, head 0)"),
        ({"max_length": LENGTH, "encoder": "gpt"}, "encoder is 'gpt', but Classifier has no such attribute"),
        ({"max_length": LENGTH, "constants": "missing.safetensors"}, "'missing.safetensors' does not exist"),
        ({"max_length": LENGTH, "heads": 0.5, "ranking": "missing.json"}, "'missing.json' cannot be read"),
        ({"max_length": 8}, "batch 0 has sequences of 12 tokens, but max_length is 8"),
    ],
)
def test_what_setup_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PapaError, match=re.escape(message)):
        trainer(ConstantAttention(**arguments)).fit(Classifier(), **loaders())


def test_constants_of_another_length_are_refused(tmp_path: Path) -> None:
    path = str(expected_constants(Classifier()).save(tmp_path / "constants.safetensors"))
    with pytest.raises(PapaError, match="made with max_length 12, but max_length is 16"):
        trainer(ConstantAttention(max_length=16, constants=path)).fit(Classifier(), **loaders())


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_sharded_strategies_want_a_file(kind: type[Strategy], tmp_path: Path) -> None:
    # A Trainer would refuse them without a GPU, and DeepSpeed wants its package to be made.
    run = SimpleNamespace(strategy=kind.__new__(kind), callbacks=[], datamodule=None)
    with pytest.raises(PapaError, match=rf"{kind.__name__}.*shards the encoder.*constants=PATH"):
        ConstantAttention(max_length=LENGTH).setup(run, Classifier(), "fit")
    with pytest.raises(PapaError, match=rf"{kind.__name__}.*shards the gates"):
        HeadGates(max_length=LENGTH).setup(run, Classifier(), "fit")
    module = Classifier()
    path = str(expected_constants(module).save(tmp_path / "constants.safetensors"))
    ConstantAttention(constants=path).setup(run, module, "fit")
    assert is_calibrated(module.bert)
