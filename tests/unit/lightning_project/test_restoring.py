"""Changes that the code of a project makes to its objects in a calibration pass are undone."""

import random
from collections import OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAUROC

from papa_lightning.lightning_project.restoring import unchanged


class Counter:
    def __init__(self) -> None:
        self.number, self.seen = 0, []

    def add(self, one: Any) -> None:
        self.number += 1
        self.seen.append(one)


class Slots:
    __slots__ = ("missing", "number")

    def __init__(self) -> None:
        self.number = 0


class Project(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
        self.register_buffer("queue", torch.zeros(4))
        self.mean, self.area = MeanMetric(), MulticlassAUROC(2)
        self.steps, self.losses, self.meter = 0, [1.0], Counter()
        self.slots = Slots()
        self.by_name: Any = defaultdict(list, {"a": [1]})
        self.ordered, self.ids, self.last = OrderedDict(b=1, a=2), {1, 2}, deque([1, 2], maxlen=2)
        self.nested = {"deep": [(torch.ones(2), {"x": [1]})]}
        self.table, self.generator = np.zeros(3), torch.Generator().manual_seed(3)
        self.dice, self.draws, self.old = random.Random(3), np.random.default_rng(3), np.random.RandomState(3)


def everything(project: Project) -> None:
    with torch.no_grad():
        project.layer.weight.add_(1)
    project.layer.weight.data.mul_(2)
    project.layer.bias.data = torch.ones(2)
    project.layer.bias.requires_grad_(False)
    project.layer.weight.grad = torch.ones(2, 2)
    project.norm.train()
    project.norm(torch.randn(4, 2))
    project.norm.eval()
    project.queue = torch.ones(4)
    project.mean.update(3.0)
    project.area.update(torch.rand(4, 2), torch.tensor([0, 1, 0, 1]))
    project.steps += 1
    project.losses.append(2.0)
    project.meter.add(3)
    project.slots.number += 1
    project.by_name["b"].append(2)
    project.by_name["a"].append(2)
    project.ordered.move_to_end("b")
    project.ids.add(3)
    project.last.append(3)
    project.nested["deep"][0][0].zero_()
    project.nested["deep"][0][1]["x"].append(2)
    project.table += 1
    torch.rand(2, generator=project.generator)
    project.dice.random()
    project.draws.random()
    project.old.random()
    project.new = "attribute"
    project.joined = nn.Linear(1, 1)


def facts(project: Project) -> dict[str, Any]:
    """Of all that :func:`everything` changes."""
    return {
        "state": {name: value.tolist() for name, value in project.state_dict().items()},
        "learns": [parameter.requires_grad for parameter in project.parameters()],
        "grads": [parameter.grad for parameter in project.parameters()],
        "places": [parameter.data_ptr() for parameter in project.parameters()],
        "modes": [part.training for part in project.modules()],
        "mean": (project.mean._update_count, float(project.mean.mean_value)),
        "area": (project.area._update_count, list(project.area.preds)),
        "plain": (project.steps, list(project.losses), project.meter.number, list(project.meter.seen)),
        "slots": project.slots.number,
        "by_name": {name: list(value) for name, value in project.by_name.items()},
        "ordered": list(project.ordered.items()),
        "ids": set(project.ids),
        "last": list(project.last),
        "nested": (project.nested["deep"][0][0].tolist(), list(project.nested["deep"][0][1]["x"])),
        "table": project.table.tolist(),
        "random": (
            project.generator.get_state().tolist(),
            project.dice.getstate(),
            str(project.draws.bit_generator.state),
            str(project.old.get_state()),
        ),
        "names": list(vars(project)),
    }


def test_all_of_it_comes_back() -> None:
    project = Project()
    before = facts(project)
    with unchanged([project]):
        everything(project)
        changed = facts(project)
    assert [name for name in before if before[name] == changed[name]] == []
    assert facts(project) == before


def test_it_comes_back_after_an_error_too() -> None:
    project = Project()
    before = facts(project)
    with pytest.raises(ValueError, match="broken"), unchanged([project]):  # noqa: PT012
        everything(project)
        raise ValueError("broken")
    assert facts(project) == before


def test_what_stands_besides_is_left_alone() -> None:
    one, other = Counter(), Counter()
    one.other = other  # type: ignore[attr-defined]
    with unchanged([one], besides=[other]):
        one.add(1)
        other.add(1)
    assert (one.number, other.number) == (0, 1)


def test_values_of_data_are_not_copied_but_their_counters_are() -> None:
    data = Counter()
    data.rows = torch.zeros(3)  # type: ignore[attr-defined]
    with unchanged([data], tensors=False):
        data.add(1)
        data.rows += 1  # type: ignore[attr-defined]
    assert (data.number, data.rows.tolist()) == (0, [1, 1, 1])  # type: ignore[attr-defined]


def test_circles_and_shared_storage() -> None:
    one: Any = Counter()
    one.me, one.table = one, torch.zeros(4)
    one.view = one.table[:2]
    one.wide = torch.zeros(1).expand(3)
    with unchanged([one]):
        one.view += 1
        one.table[3] = 5
    assert one.table.tolist() == [0, 0, 0, 0]
    assert one.view.data_ptr() == one.table.data_ptr()


def test_a_data_set_inside_a_module_is_data() -> None:
    class Rows(Dataset[Any]):
        def __init__(self) -> None:
            self.rows, self.asked = torch.zeros(3), 0

    module: Any = nn.Linear(1, 1)
    module.rows = Rows()
    with unchanged([module]):
        module.rows.asked += 1
        module.rows.rows += 1
        module.rows = None
    assert (module.rows.asked, module.rows.rows.tolist()) == (0, [1, 1, 1])
