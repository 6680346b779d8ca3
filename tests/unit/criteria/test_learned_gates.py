"""The criterion that trains: a copy learns, the task and its encoder stay as they were."""

from pathlib import Path

import pytest
import torch
from projects import LENGTH, Sentences, tiny_config
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from transformers import BertModel
from unit.encoders.tiny_encoders import snapshot

from papa_lightning import AttentionConstants, PapaError, SequenceClassificationTask, calibrate, swap_attention
from papa_lightning.criteria import LearnedGates, RankingInputs, rank_heads, task_inputs


def labelled(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    batch = default_collate(rows)
    return {**batch, "labels": batch["label"]}


@pytest.fixture
def task(tmp_path: Path) -> SequenceClassificationTask:
    torch.manual_seed(0)
    BertModel(tiny_config()).save_pretrained(tmp_path)
    return SequenceClassificationTask(str(tmp_path), num_labels=2, max_length=LENGTH, learning_rate=1e-2)


def inputs_of(task: SequenceClassificationTask) -> RankingInputs:
    batches = list(DataLoader(Sentences(16), batch_size=4, collate_fn=labelled))
    return task_inputs(task, calibrate(task.encoder, batches, LENGTH), batches)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_the_task_is_left_as_it_was(task: SequenceClassificationTask, swapped: bool) -> None:
    inputs = inputs_of(task)
    if swapped:
        swap_attention(task.encoder, "constant", constants=inputs.constants, heads=[(0, 1)])
    encoder, random = snapshot(task.encoder), torch.random.get_rng_state()
    state = {name: value.clone() for name, value in task.state_dict().items()}
    modes = [module.training for module in task.modules()]
    gates = LearnedGates(max_epochs=2, learning_rate=0.05)
    scores = gates.scores(inputs)
    assert scores.abs().min() > 0.01
    assert torch.equal(gates.scores(inputs), scores), "same seed, same batches"
    assert snapshot(task.encoder) == encoder
    assert torch.equal(torch.random.get_rng_state(), random)
    assert [module.training for module in task.modules()] == modes
    assert all(torch.equal(task.state_dict()[name], value) for name, value in state.items())
    assert all(parameter.grad is None for parameter in task.parameters())
    assert "configure_optimizers" not in task.__dict__


def test_a_task_in_evaluation_mode_learns_with_dropout_too(
    task: SequenceClassificationTask, recwarn: pytest.WarningsRecorder
) -> None:
    inputs = inputs_of(task)
    scores = LearnedGates(learning_rate=0.05).scores(inputs)
    task.eval()  # as studies and `papa rank` hand it over
    assert torch.equal(LearnedGates(learning_rate=0.05).scores(inputs), scores)
    assert not any(module.training for module in task.modules())
    said = " ".join(str(one.message) for one in recwarn)
    assert not [one for one in ("in eval mode", "val_dataloader", "is zero") if one in said]


@pytest.mark.filterwarnings("ignore")
def test_a_task_that_fine_tunes_is_copied_whole(task: SequenceClassificationTask) -> None:
    tuned = SequenceClassificationTask(**{**task.hparams, "freeze_encoder": False})
    state = {name: value.clone() for name, value in tuned.state_dict().items()}
    ranking = rank_heads("gate", inputs_of(tuned))
    assert ranking.criterion == "gate"
    assert all(torch.equal(tuned.state_dict()[name], value) for name, value in state.items())


@pytest.mark.filterwarnings("ignore")
def test_the_schedule_of_the_task_goes_over_all_batches(task: SequenceClassificationTask) -> None:
    scheduled = SequenceClassificationTask(**{**task.hparams, "schedule": "linear", "warmup_share": 0.5})
    inputs = inputs_of(scheduled)
    scores = LearnedGates(learning_rate=0.1).scores(inputs)
    # Adam moves a gate by about its learning rate: 0, half, all and half of 0.1 in the four steps.
    assert 0.05 < scores.abs().max() < 0.21
    endless = RankingInputs(inputs.encoder, inputs.constants, iter(list(inputs.batches)), task=scheduled)
    with pytest.raises(PapaError, match="the training loader has no length"):
        LearnedGates().scores(endless)


def test_a_task_of_another_encoder_is_refused(task: SequenceClassificationTask) -> None:
    inputs = inputs_of(task)
    other = BertModel(tiny_config())
    constants = AttentionConstants(inputs.constants.values, inputs.constants.pair_counts)
    with pytest.raises(PapaError, match="task has another encoder"):
        rank_heads("gate", RankingInputs(other, constants, inputs.batches, task=task))


@pytest.mark.parametrize("max_epochs", [0, -1])
def test_no_epochs_are_refused(max_epochs: int) -> None:
    with pytest.raises(PapaError, match=f"max_epochs is {max_epochs}"):
        LearnedGates(max_epochs)
