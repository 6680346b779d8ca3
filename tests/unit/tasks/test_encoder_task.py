"""Arguments, encoder, modes, gradients and optimizer of all tasks, tested with a classification task."""

import copy
import io
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from fresh_processes import in_a_new_process
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from papa_lightning.calibration import AttentionConstants, calibrate
from papa_lightning.encoders import swapped_layers
from papa_lightning.errors import ConstantsFileError, PapaError
from papa_lightning.ranking import HeadRanking
from papa_lightning.tasks import LayerwiseProbe, SequenceClassificationTask

LENGTH, VOCABULARY = 8, 40
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 20,
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertModel(BertConfig(**SIZES)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("roberta")
    RobertaModel(RobertaConfig(pad_token_id=1, type_vocab_size=1, **SIZES)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def constants_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 4, LENGTH, LENGTH, generator=generator).softmax(dim=-1)
    path = tmp_path_factory.mktemp("constants") / "constants.safetensors"
    AttentionConstants(values, torch.ones(LENGTH, LENGTH)).save(path)
    return str(path)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    # An unknown name is asked for several times, with pauses, where there is no network.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def make_task(encoder: str, **arguments: Any) -> SequenceClassificationTask:
    return SequenceClassificationTask(**({"encoder": encoder, "num_labels": 2, "max_length": LENGTH} | arguments))


def make_batch(batch: int = 6, length: int = LENGTH) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[:, 5:7] = 0
    return {
        "input_ids": torch.randint(2, VOCABULARY, (batch, length), generator=generator),
        "attention_mask": mask,
        "token_type_ids": torch.ones(batch, length, dtype=torch.long),
        "labels": torch.arange(batch) % 2,
        "example_id": torch.arange(batch),
    }


def make_trainer(**arguments: Any) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**(quiet | {"accelerator": "cpu", "devices": 1, "max_steps": 3} | arguments))


def make_loader(batches: int = 4) -> DataLoader[Any]:
    return DataLoader([make_batch() for _ in range(batches)], batch_size=None)


def test_attributes_and_hyperparameters(bert: str) -> None:
    task = make_task(bert, metrics=["matthews_corrcoef", "accuracy"])
    assert isinstance(task.encoder, BertModel)
    assert isinstance(task.probe, LayerwiseProbe)
    assert task.score_name == "val/matthews_corrcoef"
    assert dict(task.hparams) == {
        "encoder": bert,
        "num_labels": 2,
        "max_length": LENGTH,
        "metrics": ["matthews_corrcoef", "accuracy"],
        "freeze_encoder": True,
        "preset": "default",
        "learning_rate": 2e-5,
        "weight_decay": 0.01,
        "schedule": "constant",
        "warmup_share": 0.0,
        "dropout": 0.1,
        "constants": None,
        "heads": "all",
        "ranking": None,
        "regime": None,
        "constants_learning_rate": None,
        "label_names": None,
        "distillation": 0.0,
        "pooling": "layerwise",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "no/such-encoder"}, "encoder 'no/such-encoder' cannot be loaded"),
        ({"num_labels": 1}, "num_labels is 1: pass a value that is at least 2"),
        ({"max_length": 0}, "max_length is 0"),
        ({"max_length": 21}, r"max_length is 21.*20 tokens \(max_position_embeddings=20\)"),
        ({"metrics": ["nope"]}, "'nope', which is not a metric"),
        ({"metrics": []}, "at least one name"),
        ({"preset": "published"}, "preset is 'published', but must be one of 'default', 'reference'"),
        ({"schedule": "step"}, "schedule is 'step', but must be one of 'constant', 'linear', 'cosine'"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"packing": "yes"}, "packing is 'yes'"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"warmup_share": 1.5}, "warmup_share is 1.5"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"heads": [(0, 1)]}, "no constants file"),
        ({"ranking": "ranking.json"}, "no constants file"),
        ({"constants": "no-such-file.safetensors"}, "no-such-file.safetensors"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str, bert: str) -> None:
    with pytest.raises(PapaError, match=message):
        make_task(**({"encoder": bert} | arguments))


def test_roberta_has_two_positions_less(roberta: str) -> None:
    assert make_task(roberta, max_length=18)(make_batch(length=18)).shape == (6, 2)
    with pytest.raises(PapaError, match=r"max_length is 19.*18 tokens \(max_position_embeddings=20\)"):
        make_task(roberta, max_length=19)


def test_frozen_means_that_only_the_probe_learns(bert: str) -> None:
    task = make_task(bert)
    trainable = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert trainable == {f"probe.{name}" for name, _ in task.probe.named_parameters()}
    task.loss(task(make_batch()), make_batch()["labels"]).backward()
    for name, parameter in task.named_parameters():
        assert (parameter.grad is not None) == (name in trainable), name


def test_every_parameter_gets_a_gradient_when_nothing_is_frozen(bert: str) -> None:
    task = make_task(bert, freeze_encoder=False)
    task.loss(task(make_batch()), make_batch()["labels"]).backward()
    assert [name for name, parameter in task.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("freeze_encoder", [True, False])
def test_optimizer_gets_what_requires_a_gradient(freeze_encoder: bool, bert: str) -> None:
    task = make_task(bert, freeze_encoder=freeze_encoder, learning_rate=0.1, weight_decay=0.3)
    optimizer = task.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.3)
    assert {id(parameter) for parameter in group["params"]} == {
        id(parameter) for parameter in task.parameters() if parameter.requires_grad
    }


@pytest.mark.parametrize(
    ("freeze_encoder", "preset", "encoder_trains"),
    [(True, "default", False), (True, "reference", True), (False, "default", True), (False, "reference", True)],
)
def test_modes(freeze_encoder: bool, preset: str, encoder_trains: bool, bert: str) -> None:
    seen: list[tuple[bool, set[bool]]] = []

    class Watched(SequenceClassificationTask):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            seen.append((self.probe.training, {module.training for module in self.encoder.modules()}))
            return super().training_step(batch, batch_idx)

    task = Watched(bert, 2, LENGTH, freeze_encoder=freeze_encoder, preset=preset)
    make_trainer(max_steps=-1, max_epochs=2).fit(task, make_loader(1), make_loader(1))
    assert seen == [(True, {encoder_trains})] * 2
    task.eval()
    assert not task.encoder.training
    task.train()
    assert (task.probe.training, task.encoder.training) == (True, encoder_trains)


def test_only_modules_in_eval_mode_by_mistake_are_warned_of(bert: str, recwarn: pytest.WarningsRecorder) -> None:
    def warned() -> bool:
        return any("in eval mode" in str(warning.message) for warning in recwarn)

    task = make_task(bert)
    make_trainer(max_steps=1).fit(task, make_loader(1))
    assert not warned()
    task.probe.eval()
    make_trainer(max_steps=1).fit(task, make_loader(1))
    assert warned()


def test_features_of_a_frozen_encoder_are_the_same_every_time_in_the_default_preset_only(bert: str) -> None:
    for preset, same in (("default", True), ("reference", False)):
        task = make_task(bert, preset=preset)
        assert torch.equal(task.encode(make_batch())[-1], task.encode(make_batch())[-1]) == same


def test_no_graph_in_a_frozen_encoder_unless_something_in_it_learns(bert: str) -> None:
    task = make_task(bert)
    assert not any(level.requires_grad for level in task.encode(make_batch()))
    added = torch.nn.Parameter(torch.zeros(32))
    task.encoder.encoder.layer[1].register_parameter("added", added)
    task.encoder.encoder.layer[1].register_forward_hook(lambda module, inputs, output: output + module.added)
    task.loss(task(make_batch()), make_batch()["labels"]).backward()
    assert added.grad is not None
    assert added.grad.abs().sum() > 0
    assert task.encoder.embeddings.word_embeddings.weight.grad is None
    with torch.no_grad():
        assert not task.encode(make_batch())[-1].requires_grad


@pytest.mark.parametrize(
    ("schedule", "warmup_share", "expected"),
    [
        ("constant", 0.0, [1.0, 1.0, 1.0, 1.0]),
        ("constant", 0.5, [0.0, 0.5, 1.0, 1.0]),
        ("linear", 0.0, [1.0, 0.75, 0.5, 0.25]),
        ("linear", 0.5, [0.0, 0.5, 1.0, 0.5]),
        ("cosine", 0.0, [1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_schedules(schedule: str, warmup_share: float, expected: list[float], bert: str) -> None:
    rates: list[float] = []

    class Watched(SequenceClassificationTask):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    task = Watched(bert, 2, LENGTH, schedule=schedule, warmup_share=warmup_share, learning_rate=1.0)
    make_trainer(max_steps=-1, max_epochs=2).fit(task, make_loader(2))
    assert rates == pytest.approx(expected, abs=1e-6)


def test_schedule_without_end(bert: str) -> None:
    with pytest.raises(PapaError, match=r"schedule 'linear'.*set max_epochs or max_steps"):
        make_trainer(max_steps=-1, max_epochs=-1).fit(make_task(bert, schedule="linear"), make_loader())


def test_schedule_of_a_loader_without_length(bert: str) -> None:
    class Endless(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(make_loader(2).dataset)

    loader = DataLoader(Endless(), batch_size=None)
    with pytest.raises(PapaError, match=r"schedule 'linear'.*the training loader has no length: set max_steps"):
        make_trainer(max_steps=-1, max_epochs=1).fit(make_task(bert, schedule="linear"), loader)
    trainer = make_trainer(max_steps=1)
    trainer.fit(make_task(bert, schedule="linear"), loader)
    assert trainer.global_step == 1


def test_only_inputs_that_the_encoder_takes(roberta: str) -> None:
    # Token types of 1 would be out of range in RoBERTa's table of one row.
    task = make_task(roberta).eval()
    batch = make_batch() | {"word_ids": torch.zeros(6, LENGTH)}
    without = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(task(batch), task(without))


def test_token_types_reach_bert(bert: str) -> None:
    task, batch = make_task(bert).eval(), make_batch()
    other = batch | {"token_type_ids": torch.zeros_like(batch["input_ids"])}
    assert not torch.equal(task(batch), task(other))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_mask": None}, "a batch has no attention_mask, only input_ids"),
        ({"input_ids": None}, "a batch has no input_ids"),
        ({"input_ids": torch.ones(LENGTH, dtype=torch.long)}, r"input_ids has shape \(8,\)"),
        ({"attention_mask": torch.ones(6, 3)}, r"attention_mask \(6, 3\)"),
        ({"input_ids": torch.full((6, LENGTH), 40)}, "value 40, but the encoder knows the tokens 0 to 39"),
        ({"input_ids": torch.full((6, LENGTH), -1)}, "value -1"),
    ],
)
def test_bad_batches(changes: dict[str, Tensor | None], message: str, bert: str) -> None:
    batch = {name: value for name, value in (make_batch() | changes).items() if value is not None}
    with pytest.raises(PapaError, match=message):
        make_task(bert)(batch)


def test_batch_that_is_no_mapping(bert: str) -> None:
    with pytest.raises(PapaError, match="a batch is a list, but must be a mapping"):
        make_task(bert)([make_batch()])


@pytest.mark.parametrize(("length", "message"), [(7, r"7 tokens.*max_length=8"), (9, r"9 tokens.*max_length=8")])
def test_sequences_of_another_length(length: int, message: str, bert: str) -> None:
    with pytest.raises(PapaError, match=message):
        make_task(bert)(make_batch(length=length))


@pytest.mark.distributed
def test_task_reaches_a_new_process(bert: str, constants_file: str) -> None:
    # Lightning's ddp_spawn sends the task by pickle; transformers keeps what it needs in tables of each process.
    tasks = [make_task(bert), make_task(bert, constants=constants_file)]
    for task, encoded in zip(tasks, in_a_new_process(_encode, tasks, make_batch()), strict=True):
        torch.testing.assert_close(task.encode(make_batch())[-1], encoded)


def _encode(tasks: list[SequenceClassificationTask], batch: dict[str, Tensor]) -> list[Tensor]:
    return [task.encode(batch)[-1] for task in tasks]


def test_copy_encodes_the_same_and_takes_no_random_numbers(bert: str) -> None:
    task = make_task(bert)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    other = copy.deepcopy(task)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(other.encode(make_batch())[-1], task.encode(make_batch())[-1])


def test_constants_file_needs_no_callback(bert: str, constants_file: str, tmp_path: Path) -> None:
    plain, task = make_task(bert), make_task(bert, constants=constants_file)
    batch = make_batch()
    assert not torch.equal(task.encode(batch)[-1], plain.encode(batch)[-1])
    assert not any(parameter.requires_grad for parameter in task.encoder.parameters())

    trainer = make_trainer()
    trainer.fit(task, make_loader())
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    loaded = SequenceClassificationTask.load_from_checkpoint(tmp_path / "task.ckpt")
    assert torch.equal(loaded.eval()(batch), task.eval()(batch))


def test_a_checkpoint_needs_none_of_the_files_that_it_was_trained_with(
    bert: str, constants_file: str, tmp_path: Path
) -> None:
    own = shutil.copy(constants_file, tmp_path / "constants.safetensors")
    ranking = HeadRanking.from_scores([[3.0, 0.0, 2.0, 1.0]] * 2, "mine")
    ranking.save(tmp_path / "ranking.json")
    task = make_task(bert, constants=str(own), heads=0.5, ranking=str(tmp_path / "ranking.json"))
    trainer, batch = make_trainer(), make_batch()
    trainer.fit(task, make_loader())
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    for missing in ("ranking.json", "constants.safetensors"):
        (tmp_path / missing).unlink()
        for place in (tmp_path / "task.ckpt", io.BytesIO((tmp_path / "task.ckpt").read_bytes())):
            loaded = SequenceClassificationTask.load_from_checkpoint(place)
            assert [one.constant_heads for one in swapped_layers(loaded.encoder)] == [
                one.constant_heads for one in swapped_layers(task.encoder)
            ]
            assert torch.equal(loaded.eval()(batch), task.eval()(batch))
    with pytest.raises(ConstantsFileError, match="elsewhere"):
        SequenceClassificationTask.load_from_checkpoint(tmp_path / "task.ckpt", constants=str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("preset", ["default", "reference"])
def test_an_average_is_filled_in_the_default_preset_only(bert: str, preset: str, tmp_path: Path) -> None:
    batch = make_batch()
    short = {name: batch[name][:, :5] for name in ("input_ids", "attention_mask", "token_type_ids")}
    average = calibrate(BertModel.from_pretrained(bert), [short], max_length=LENGTH)
    assert (average.pair_counts[5:] == 0).all()
    task = make_task(bert, constants=str(average.save(tmp_path / "constants.safetensors")), preset=preset)
    expected = average.filled() if preset == "default" else average
    for layer, values in zip(swapped_layers(task.encoder), expected.values, strict=True):
        assert torch.equal(layer.constants, values)


def test_ranking_chooses_the_constant_heads(bert: str, constants_file: str, tmp_path: Path) -> None:
    first = [(1, 2), (0, 0)]
    heads = first + [(layer, head) for layer in (0, 1) for head in range(4) if (layer, head) not in first]
    HeadRanking(heads=heads).save(tmp_path / "ranking.json")
    ranked = make_task(bert, constants=constants_file, heads=2, ranking=str(tmp_path / "ranking.json"))
    listed = make_task(bert, constants=constants_file, heads=first)
    assert torch.equal(ranked.encode(make_batch())[-1], listed.encode(make_batch())[-1])


def test_every_trainable_parameter_learns_beside_constants(bert: str, constants_file: str) -> None:
    task = make_task(bert, constants=constants_file, freeze_encoder=False)
    task.loss(task(make_batch()), make_batch()["labels"]).backward()
    unused = [name for name, value in task.named_parameters() if value.requires_grad and value.grad is None]
    assert unused == []


def test_constants_of_another_length(bert: str, constants_file: str) -> None:
    with pytest.raises(PapaError, match=r"max_length 8.*max_length is 9"):
        make_task(bert, constants=constants_file, max_length=9)


def padded_batch(layout: str) -> dict[str, Tensor]:
    """Sequences of several lengths in a layout, and one without a token."""
    mask = (torch.arange(LENGTH) < torch.tensor([[3], [LENGTH], [1], [5], [0]])).long()
    if layout == "left":
        mask = mask.flip(1)
    if layout == "segment":
        mask[:4, -1] = 1
    ids = torch.randint(3, VOCABULARY, (5, LENGTH), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids.where(mask == 1, 1), "attention_mask": mask, "token_type_ids": torch.zeros_like(mask)}


@pytest.mark.parametrize("heads", [None, "all", [(0, 1), (1, 2)]])
@pytest.mark.parametrize("layout", ["plain", "left", "segment"])
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_packed_states_are_those_of_padded_ones(
    name: str, layout: str, heads: Any, constants_file: str, request: pytest.FixtureRequest
) -> None:
    given = {} if heads is None else {"constants": constants_file, "heads": heads}
    encoder = request.getfixturevalue(name)
    packed, padded = (make_task(encoder, packing=packing, **given).eval() for packing in (True, False))
    padded.load_state_dict(packed.state_dict())
    shapes: list[tuple[int, ...]] = []
    packed.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    batch = padded_batch(layout)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        for own, level in zip(packed.encode(batch), padded.encode(batch), strict=True):
            torch.testing.assert_close(own[real], level[real], atol=1e-5, rtol=0)
            assert (own[~real] == 0).all()
        torch.testing.assert_close(packed(batch)[:4], padded(batch)[:4], atol=1e-5, rtol=0)
    assert shapes
    assert all(columns <= LENGTH for _, columns in shapes)


def test_several_packed_batches_only_without_gradients(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("papa_lightning.encoders.packing._ON_CPU", 6)
    task, seen = make_task(bert).eval(), list[tuple[int, ...]]()
    task.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    batch = padded_batch("segment")
    task.encode(batch)
    assert seen == [(1, 8), (1, 6), (1, 4), (2, 2)]
    seen.clear()
    task.encoder.requires_grad_(True)  # a criterion counts on one run
    task.encode(batch)[-1].sum().backward()
    assert seen == [(5, 8)]
    assert task.encoder.embeddings.word_embeddings.weight.grad is not None


def test_an_encoder_in_train_mode_is_not_packed(bert: str) -> None:
    task = make_task(bert, freeze_encoder=False).train()
    assert task.pack(task.inputs_of(padded_batch("segment"))) is None
    task.eval()
    assert task.pack(task.inputs_of(padded_batch("segment"))) is not None
    frozen = make_task(bert).train()
    assert frozen.pack(frozen.inputs_of(padded_batch("segment"))) is not None


def test_a_compiled_encoder_is_not_packed(bert: str) -> None:
    task = make_task(bert).eval()
    task.encoder = torch.compile(task.encoder)
    assert task.pack(task.inputs_of(padded_batch("segment"))) is None
