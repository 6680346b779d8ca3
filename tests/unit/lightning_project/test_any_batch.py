"""Calibration goes through the module's own step: whatever reaches the encoder counts, in batches of any form.

Each against a naive average in float64 of the attention over exactly the calls that the training makes.
"""

import csv
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from projects import LENGTH, Sentences, tiny_config, trainer
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torchmetrics import MeanMetric
from transformers import BertModel

from papa_lightning import AttentionConstants, ConstantAttention, HeadGates, PapaError, calibrate
from papa_lightning.callbacks import SwappedAttention
from papa_lightning.criteria import RankingInputs, RankingRun, rank_heads
from papa_lightning.encoders import is_calibrated, swapped_layers


def naive(calls: list[dict[str, Tensor]], encoder: BertModel) -> tuple[Tensor, int]:
    """Constants and number of sequences, from the matrices that the plain encoder itself returns, in float64."""
    plain = BertModel(encoder.config, add_pooling_layer=False).double().eval()
    plain.load_state_dict({name: one for name, one in encoder.state_dict().items() if ".papa." not in name})
    plain.set_attn_implementation("eager")
    sums = torch.zeros(2, 2, LENGTH, LENGTH, dtype=torch.float64)
    counts, number = torch.zeros(LENGTH, LENGTH, dtype=torch.float64), 0
    for call in calls:
        mask = call["attention_mask"].double()
        pairs = mask[:, :, None] * mask[:, None, :]
        with torch.no_grad():
            attentions = plain(**call, output_attentions=True).attentions
        length = mask.shape[1]
        for layer, attention in enumerate(attentions):
            sums[layer, :, :length, :length] += (attention * pairs[:, None]).sum(dim=0)
        counts[:length, :length] += pairs.sum(dim=0)
        number += int(mask.any(dim=1).sum())
    return torch.where(counts > 0, sums / counts.clamp_min(1), 0.0), number


class Keeping(ConstantAttention):
    """Keeps what it made."""

    made: AttentionConstants

    def calibrate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> AttentionConstants:
        self.encoder_then = {name: one.clone() for name, one in pl_module.state_dict().items()}
        self.made = super().calibrate(trainer, pl_module)
        return self.made


class Project(L.LightningModule):
    """Somebody's: its step says what it does with a batch."""

    def __init__(self, use: Callable[["Project", Any], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bert, self.use = BertModel(tiny_config(), add_pooling_layer=False), use

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.use(self, batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)  # so that the epoch makes the calls of the calibration


def first(output: Any) -> Tensor:
    return output.last_hidden_state.sum()


def watched(module: L.LightningModule) -> list[dict[str, Tensor]]:
    """All calls of the encoder in training, by name; those of the calibration pass are in evaluation mode."""
    calls: list[dict[str, Tensor]] = []
    names = ("input_ids", "attention_mask", "token_type_ids")

    def note(encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if encoder.training:
            inputs = dict(zip(names, args, strict=False)) | kwargs
            calls.append({name: one for name, one in inputs.items() if isinstance(one, Tensor)})

    module.bert.register_forward_pre_hook(note, with_kwargs=True)
    return calls


def assert_exact(module: L.LightningModule, data: Any, **arguments: Any) -> int:
    """Fit an epoch; the constants are the naive average over the calls of that epoch. Gives the sequences."""
    encoder = BertModel(module.bert.config, add_pooling_layer=False)
    encoder.load_state_dict(module.bert.state_dict())
    calls, callback = watched(module), Keeping(max_length=LENGTH)
    trainer(callback, **arguments).fit(module, data)
    expected, number = naive(calls, encoder)
    torch.testing.assert_close(callback.made.values.double(), expected, atol=1e-6, rtol=0)
    assert callback.made.metadata["sequences"] == number
    return number


Named = namedtuple("Named", "input_ids attention_mask label")


@dataclass
class Record:
    input_ids: Tensor
    attention_mask: Tensor


def rows(number: int = 7) -> list[dict[str, Tensor]]:
    return [Sentences(number)[index] for index in range(number)]


def tensors(number: int = 7) -> TensorDataset:
    data = Sentences(number)
    return TensorDataset(data.input_ids, data.attention_mask, torch.arange(number))


def collated(make: Callable[[Tensor, Tensor], Any]) -> Callable[[list[dict[str, Tensor]]], Any]:
    def collate(several: list[dict[str, Tensor]]) -> Any:
        return make(*(torch.stack([one[name] for one in several]) for name in ("input_ids", "attention_mask")))

    return collate


def pair(several: list[dict[str, Tensor]]) -> Any:
    one = torch.utils.data.default_collate(several)
    del one["label"]
    return one, {"input_ids": one["input_ids"].flip(0), "attention_mask": one["attention_mask"].flip(0)}


WORDS = ["a", "good", "and", "bright", "film", "of", "old", "with", "some", "dull", "parts"]


def tokenized(texts: list[str]) -> dict[str, Tensor]:
    ids = [[WORDS.index(word) + 1 for word in text.split()] for text in texts]
    length = max(map(len, ids))
    return {
        "input_ids": torch.tensor([one + [0] * (length - len(one)) for one in ids]),
        "attention_mask": torch.tensor([[1] * len(one) + [0] * (length - len(one)) for one in ids]),
    }


TEXTS = [" ".join(WORDS[start : start + 3 + start % 4]) for start in range(7)]

FORMS: dict[str, tuple[Callable[[], Any], Callable[[Project, Any], Any], int]] = {
    "tuple": (lambda: DataLoader(tensors(), 2), lambda m, b: first(m.bert(b[0], attention_mask=b[1])), 7),
    "positional": (lambda: DataLoader(tensors(), 2), lambda m, b: first(m.bert(b[0], b[1])), 7),
    "named": (
        lambda: DataLoader(rows(), 3, collate_fn=collated(lambda ids, mask: Named(ids, mask, None))),
        lambda m, b: first(m.bert(b.input_ids, b.attention_mask)),
        7,
    ),
    "object": (
        lambda: DataLoader(rows(), 3, collate_fn=collated(Record)),
        lambda m, b: first(m.bert(input_ids=b.input_ids, attention_mask=b.attention_mask)),
        7,
    ),
    "nested": (
        lambda: DataLoader(
            rows(), 3, collate_fn=collated(lambda ids, mask: {"text": {"input_ids": ids, "attention_mask": mask}})
        ),
        lambda m, b: first(m.bert(**b["text"])),
        7,
    ),
    "pairs": (
        lambda: DataLoader(rows(), 2, collate_fn=pair),
        lambda m, b: first(m.bert(**b[0])) - first(m.bert(**b[1])),
        14,
    ),
    "texts": (lambda: DataLoader(TEXTS, 2), lambda m, b: first(m.bert(**tokenized(b))), 7),
    "cut in the step": (
        lambda: DataLoader(tensors(), 2),
        lambda m, b: first(m.bert(b[0][:, :5], b[1][:, :5])),
        7,
    ),
    "ready batches": (
        lambda: DataLoader(
            [{"input_ids": one["input_ids"][None], "attention_mask": one["attention_mask"][None]} for one in rows()],
            batch_size=None,
        ),
        lambda m, b: first(m.bert(**b)),
        7,
    ),
    "two of one loader a batch": (
        lambda: [DataLoader(tensors(4), 2), DataLoader(tensors(6), 2)],
        lambda m, b: first(m.bert(b[0][0], b[0][1])) + first(m.bert(b[1][0], b[1][1])),
        12,
    ),
    "loaders by name": (
        lambda: {"one": DataLoader(tensors(4), 2), "other": DataLoader(tensors(4), 1)},
        lambda m, b: sum(first(m.bert(one[0], one[1])) for one in b.values()),
        12,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_any_form(form: str) -> None:
    data, use, number = FORMS[form]
    assert assert_exact(Project(use), data()) == number


def test_a_call_of_forward_itself_is_seen() -> None:
    data, callback = Sentences(7), Keeping(max_length=LENGTH)
    module = Project(lambda m, b: first(m.bert.forward(b[0], b[1])))
    batch = {"input_ids": data.input_ids, "attention_mask": data.attention_mask}
    expected = calibrate(Project(step).bert, [batch], max_length=LENGTH)
    trainer(callback).fit(module, DataLoader(tensors(), 2))
    torch.testing.assert_close(callback.made.values, expected.values, atol=1e-6, rtol=0)


def test_a_wrapped_compiled_encoder_is_seen() -> None:
    module = Project(lambda m, b: first(m.run(b[0], b[1])))
    module.run = torch.compile(module.bert, backend="eager")
    assert assert_exact(module, DataLoader(tensors(), 2)) == 7


def step(module: Project, batch: Any) -> Tensor:
    return first(module.bert(batch[0], batch[1]))


class Backwards(Sampler[int]):
    """Somebody's own, over every other row, shuffled in place."""

    def __init__(self, number: int) -> None:
        self.order, self.rounds = list(range(0, number, 2)), 0

    def __iter__(self) -> Any:
        self.order.reverse()
        self.rounds += 1
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


class Endless(Sampler[int]):
    def __iter__(self) -> Any:
        while True:
            yield from range(3)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([tensors()[index] for index in range(7)])


ORDERS: dict[str, tuple[Callable[[], Any], dict[str, Any], int]] = {
    "shuffled": (lambda: DataLoader(tensors(), 2, shuffle=True), {}, 7),
    "last batch dropped": (lambda: DataLoader(tensors(), 2, drop_last=True), {}, 6),
    "subset": (lambda: DataLoader(tensors(), 2, sampler=SubsetRandomSampler([1, 4, 6])), {}, 3),
    "subset of the data": (lambda: DataLoader(Subset(tensors(), [0, 5]), 2, shuffle=True), {}, 2),
    "by weight": (lambda: DataLoader(tensors(), 2, sampler=WeightedRandomSampler([1, 1, 0, 0, 0, 0, 3], 9)), {}, 9),
    "with replacement": (
        lambda: DataLoader(tensors(), 2, sampler=RandomSampler(range(7), replacement=True, num_samples=5)),
        {},
        5,
    ),
    "own sampler": (lambda: DataLoader(tensors(), 2, sampler=Backwards(7)), {}, 4),
    "own batches": (lambda: DataLoader(tensors(), batch_sampler=[[0, 3], [5], [6, 1, 2]]), {}, 6),
    "batch sampler": (
        lambda: DataLoader(tensors(), batch_sampler=BatchSampler(SequentialSampler(range(5)), 2, True)),
        {},
        4,
    ),
    "iterable": (lambda: DataLoader(Stream(), 2), {}, 7),
    "limited": (lambda: DataLoader(tensors(), 2), {"limit_train_batches": 2}, 4),
    "limited share": (lambda: DataLoader(tensors(), 2), {"limit_train_batches": 0.5}, 4),
    "limited subset": (lambda: DataLoader(tensors(), 1, sampler=Backwards(7)), {"limit_train_batches": 2}, 2),
    "iterable limited": (lambda: DataLoader(Stream(), 2), {"limit_train_batches": 2}, 4),
    "endless by steps": (
        lambda: DataLoader(tensors(), batch_sampler=None, batch_size=2, sampler=Endless()),
        {"max_steps": 3, "max_epochs": None},
        6,
    ),
    "overfit": (lambda: DataLoader(tensors(), 2), {"overfit_batches": 1}, 2),
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_rows_that_the_loader_of_the_run_gives(order: str) -> None:
    data, arguments, number = ORDERS[order]
    assert assert_exact(Project(step), data(), **arguments) == number


def test_the_size_of_batches_of_the_pass_changes_nothing_else() -> None:
    for data, size in ((DataLoader(tensors(), 2, drop_last=True), 3), (DataLoader(tensors(), 3), 2)):
        callback, module = Keeping(max_length=LENGTH, batch_size=size), Project(step)
        trainer(callback, limit_train_batches=2).fit(module, data)
        assert callback.made.metadata["sequences"] == 2 * (data.batch_size or 0)


@pytest.mark.parametrize(
    ("mode", "arguments", "number"),
    [
        ("max_size_cycle", {}, 18),
        ("max_size_cycle", {"limit_train_batches": 2}, 6),
        ("min_size", {}, 12),
    ],
)
def test_the_size_of_batches_of_the_pass_changes_nothing_of_several_loaders(
    mode: str, arguments: Any, number: int
) -> None:
    def use(module: Project, batch: Any) -> Any:
        return sum(first(module.bert(one[0], one[1])) for one in batch.values())

    several = {"one": DataLoader(tensors(6), 1), "other": DataLoader(tensors(8), 2)}
    for size in (None, 1, 5):
        callback = Keeping(max_length=LENGTH, batch_size=size)
        trainer(callback, **arguments).fit(Project(use), CombinedLoader(several, mode))
        assert callback.made.metadata["sequences"] == number


def test_several_loaders_are_gone_over_more_than_once(tmp_path: Any) -> None:
    """By a criterion, after calibration."""

    class Reads(Project):
        def encoder_inputs(self, batch: Any) -> Any:
            return [{"input_ids": one[0], "attention_mask": one[1]} for one in batch.values()]

    module, loaders = Reads(FORMS["loaders by name"][1]), FORMS["loaders by name"][0]()
    batches = [{"input_ids": one[0], "attention_mask": one[1]} for loader in loaders.values() for one in loader]
    expected = rank_heads("divergence", RankingInputs(module.bert, calibrate(module.bert, batches, LENGTH), batches))
    run = RankingRun("divergence", str(tmp_path / "ranking.json"), ConstantAttention(LENGTH), None, False)
    trainer(run).fit(module, loaders)
    assert run.ranking is not None
    assert run.ranking.heads == expected.heads


def test_ready_batches_keep_their_size() -> None:
    ready = [[torch.stack(part) for part in zip(*(tensors()[i] for i in few), strict=True)] for few in ([0, 1], [2, 3])]
    callback = Keeping(max_length=LENGTH, batch_size=4)
    trainer(callback).fit(Project(step), DataLoader(ready, batch_size=None))
    assert callback.made.metadata["sequences"] == 4


def test_images(tmp_path: Any) -> None:
    from transformers import ViTConfig, ViTModel

    class Pictures(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
            config = ViTConfig(image_size=4, patch_size=2, num_channels=1, **sizes)
            self.vit = ViTModel(config, add_pooling_layer=False)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return first(self.vit(batch[0]))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.0)

    module, callback = Pictures(), Keeping()
    pictures = torch.randn(5, 1, 4, 4)
    expected = calibrate(Pictures().vit, [{"pixel_values": pictures}], max_length=5)
    trainer(callback).fit(module, DataLoader(TensorDataset(pictures), 2))
    torch.testing.assert_close(callback.made.values, expected.values, atol=1e-6, rtol=0)
    assert callback.made.metadata["sequences"] == 5


def test_embeddings_made_by_the_module() -> None:
    def use(m: Project, b: Any) -> Tensor:
        return first(m.bert(inputs_embeds=m.bert.embeddings.word_embeddings(b[0]), attention_mask=b[1]))

    module, callback, data = Project(use), Keeping(max_length=LENGTH), Sentences(7)
    batch = {"input_ids": data.input_ids, "attention_mask": data.attention_mask}
    expected = calibrate(Project(use).bert, [batch], max_length=LENGTH)
    trainer(callback).fit(module, DataLoader(tensors(), 2))
    torch.testing.assert_close(callback.made.values, expected.values, atol=1e-6, rtol=0)


class TwoTowers(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key = (BertModel(tiny_config(), add_pooling_layer=False) for _ in range(2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return first(self.query(**batch["query"])) - first(self.key(**batch["key"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("other", [Keeping, HeadGates])
def test_each_callback_counts_what_its_own_encoder_sees(other: Any) -> None:
    queries, keys = Sentences(6), Sentences(6, seed=1)
    data = [
        {name: {key: one[index][key] for key in ("input_ids", "attention_mask")} for name, one in parts}
        for index in range(6)
        for parts in [(("query", queries), ("key", keys))]
    ]
    fresh, module = TwoTowers(), TwoTowers()
    callbacks = [Keeping(max_length=LENGTH, encoder="query"), other(max_length=LENGTH, encoder="key")]
    trainer(*callbacks).fit(module, DataLoader(data, 2))
    for name, rows_of in (("query", queries), ("key", keys)):
        expected = calibrate(getattr(fresh, name), DataLoader(rows_of, 3), max_length=LENGTH)
        for layer, values in zip(swapped_layers(getattr(module, name)), expected.values, strict=True):
            torch.testing.assert_close(layer.constants.detach(), values, atol=1e-6, rtol=0)


def test_encoder_inputs_reads_batches_directly() -> None:
    class Mine(Keeping):
        def encoder_inputs(self, batch: Any) -> Any:
            return [{"input_ids": batch[0], "attention_mask": batch[1]}] * 2

    def broken_without_gradients(m: Project, b: Any) -> Tensor:
        loss = step(m, b)
        torch.autograd.grad(loss, m.bert.embeddings.word_embeddings.weight, retain_graph=True)
        return loss

    module, callback = Project(broken_without_gradients), Mine(max_length=LENGTH)
    trainer(callback, limit_train_batches=2).fit(module, DataLoader(tensors(), 2, sampler=Backwards(7)))
    assert callback.made.metadata["sequences"] == 8


class Gadgets(Project):
    """With everything in a step that does something."""

    def __init__(self, manual: bool) -> None:
        super().__init__(lambda m, b: None)
        self.automatic_optimization = not manual
        self.momentum = torch.nn.Parameter(torch.zeros(40, 16), requires_grad=False)
        self.norm, self.mean = torch.nn.BatchNorm1d(16), MeanMetric()
        self.register_buffer("queue", torch.zeros(3, 16))
        self.queue: torch.Tensor
        self.losses: list[float] = []
        self.steps = 0
        self.dice = torch.Generator().manual_seed(5)

    def on_train_epoch_start(self) -> None:
        self.made_by_a_hook = 2.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        hidden = self.norm(self.bert(batch[0], batch[1]).last_hidden_state[:, 0])
        loss = hidden.pow(2).mean() * self.made_by_a_hook + 0 * torch.rand((), generator=self.dice) + torch.rand(()) / 9
        self.momentum.data.mul_(0.9).add_(self.bert.embeddings.word_embeddings.weight.data, alpha=0.1)
        self.queue = torch.cat([hidden.detach()[:1], self.queue[:-1]])
        self.losses.append(float(loss))
        self.steps += 1
        self.mean(loss.detach())
        self.log("mean", self.mean, on_step=True)
        self.log_dict({"loss": loss})
        for logger in self.loggers:
            logger.log_metrics({"own": float(loss)}, step=self.steps)
        if self.automatic_optimization:
            return loss
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=1.0)
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        scheduler.step()
        self.rate = scheduler.get_last_lr()
        return None

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
@pytest.mark.parametrize("heads", ["all", []], ids=["constant", "observed"])
def test_training_is_that_of_a_run_with_the_constants_from_a_file(manual: bool, heads: Any, tmp_path: Any) -> None:
    """Bit for bit, with the state of metrics, lists, counters, generators, samplers and logs."""

    def fit(**arguments: Any) -> tuple[Any, Any, Any, Any]:
        torch.manual_seed(4)
        module, callback = Gadgets(manual), Keeping(heads=heads, **arguments)
        logger = L.pytorch.loggers.CSVLogger(
            tmp_path, version=len(list(tmp_path.iterdir())), flush_logs_every_n_steps=1
        )
        sampler = Backwards(7)
        generator = torch.Generator().manual_seed(8)
        run = trainer(callback, max_epochs=2, logger=logger)
        weights = WeightedRandomSampler([1.0, 2, 3, 4, 1, 1, 1], 6, generator=generator)
        run.fit(module, {"one": DataLoader(tensors(), 2, sampler=weights)}["one"])
        run.fit_loop.max_epochs = 3
        run.fit(module, DataLoader(tensors(), 2, sampler=sampler))
        return module, callback, (sampler.order, sampler.rounds, generator.get_state()), run

    first_run, callback, samplers, run = fit(max_length=LENGTH)
    path = str(callback.made.save(tmp_path / "made.safetensors"))
    second_run, _, others, other_run = fit(constants=path)
    for (name, one), other in zip(first_run.state_dict().items(), second_run.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert first_run.losses == second_run.losses
    assert first_run.steps == second_run.steps
    assert torch.equal(first_run.dice.get_state(), second_run.dice.get_state())
    assert samplers[:2] == others[:2]
    assert torch.equal(samplers[2], others[2])
    assert logged(run) == logged(other_run) != []


def logged(run: L.Trainer) -> list[dict[str, str]]:
    """Logged values of the training, without the two of the calibration."""
    with open(run.logger.experiment.metrics_file_path, encoding="utf-8") as file:
        lines = [{k: v for k, v in line.items() if not k.startswith("calibration/")} for line in csv.DictReader(file)]
    return [line for line in lines if line["loss"] or line["own"]]


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda m, b: torch.autograd.grad(step(m, b), list(m.parameters()), allow_unused=True)[0].sum(),
            r"training_step of Project failed in the calibration pass.*RuntimeError.*encoder_inputs\(batch\)",
        ),
        (lambda m, b: b["text"], r"training_step of Project failed.*TypeError.*encoder_inputs\(batch\)"),
        (lambda m, b: m.bert.dummy_loss(), r"training_step of Project failed.*AttributeError.*encoder_inputs"),
        (
            lambda m, b: m.bert.embeddings(b[0]).sum(),
            r"training_step of Project ran over the train data, but never called its BertModel.*encoder_inputs",
        ),
        (
            lambda m, b: first(m.bert(b[0])),
            r"batch 0 has no attention_mask \(keys: input_ids\), so padding would count",
        ),
        (lambda m, b: first(m.bert(b[0], attention_mask=None)), "batch 0 has no attention_mask"),
        (
            lambda m, b: m.bert.encoder(m.bert.embeddings(b[0])).last_hidden_state.sum(),
            r"layer 0 ran outside of a call of its BertModel.*encoder_inputs\(batch\)",
        ),
    ],
    ids=["gradients", "batch", "attribute", "not reached", "no mask", "mask None", "a part"],
)
def test_a_step_that_does_not_do_is_refused_with_the_way_out(use: Any, message: str) -> None:
    module = Project(use)
    before = {name: one.clone() for name, one in module.bert.state_dict().items()}
    with pytest.raises(PapaError, match=message):
        trainer(Keeping(max_length=LENGTH)).fit(module, DataLoader(tensors(), 2))
    assert not is_calibrated(module.bert)
    assert "log" not in vars(module)
    assert "forward" not in vars(module.bert)
    for name, one in before.items():
        assert torch.equal(module.bert.state_dict()[name], one)


def test_gradients_that_the_step_asks_for_itself_are_no_matter() -> None:
    def penalised(m: Project, b: Any) -> Tensor:
        with torch.enable_grad():
            inputs = m.bert.embeddings.word_embeddings(b[0]).detach().requires_grad_()
            loss = first(
                m.bert(inputs_embeds=inputs, attention_mask=b[1]).__class__(
                    **m.bert(inputs_embeds=inputs, attention_mask=b[1])
                )
            )
            (gradient,) = torch.autograd.grad(loss, inputs, create_graph=m.training)
        return loss + gradient.pow(2).sum()

    callback = Keeping(max_length=LENGTH)
    trainer(callback, limit_train_batches=2).fit(Project(penalised), DataLoader(tensors(), 2))
    assert callback.made.metadata["sequences"] == 8


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_batch_start", "training_step"])
def test_a_module_that_asks_for_training_mode_is_averaged_without_dropout(hook: str) -> None:
    class Asking(Project):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if hook == "training_step":
                self.bert.train()
            return step(self, batch)

    module, data, callback = Asking(step), Sentences(7), Keeping(max_length=LENGTH)
    if hook != "training_step":
        setattr(module, hook, lambda *_: module.bert.train() and None)
    batch = {"input_ids": data.input_ids, "attention_mask": data.attention_mask}
    expected = calibrate(module.bert, [batch], max_length=LENGTH)
    trainer(callback).fit(module, DataLoader(tensors(), 2))
    torch.testing.assert_close(callback.made.values, expected.values, atol=1e-6, rtol=0)
    assert "train" not in vars(module.bert)


def test_parts_of_a_compiled_encoder_are_put_back_too() -> None:
    def use(m: Project, b: Any) -> Tensor:
        inner = m.bert._orig_mod
        if not inner.training:
            inner.embeddings.word_embeddings.weight.data.mul_(0.0)
            inner.steps = 1
        return first(m.bert(b[0], b[1]))

    module = Project(use)
    inner = module.bert
    before = inner.embeddings.word_embeddings.weight.detach().clone()
    module.bert = torch.compile(inner, backend="eager")
    trainer(Keeping(max_length=LENGTH)).fit(module, DataLoader(tensors(), 2))
    assert torch.equal(inner.embeddings.word_embeddings.weight, before)
    assert "steps" not in vars(inner)
    assert not any("train" in vars(part) for part in module.modules())


def test_a_step_that_goes_back_by_itself_and_logs_to_what_it_finds(tmp_path: Any) -> None:
    class ByHand(Project):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            step(self, batch).backward()
            self.optimizers().step()
            if not self.training:
                with self.logger.experiment["run"] as run:
                    run["loss"] = 1.0
                    run["losses"].append(1.0)
                config = self.logger.experiment.config
                assert "rate" not in config
                assert {**config} == dict(config.items()) == {}

    logger = L.pytorch.loggers.CSVLogger(tmp_path)
    assert assert_exact(ByHand(step), DataLoader(tensors(), 2), logger=logger) == 7


def test_an_epoch_that_the_module_ends_early() -> None:
    module = Project(step)
    module.on_train_batch_start = lambda batch, number: -1 if number == 2 else None
    assert assert_exact(module, DataLoader(tensors(), 2)) == 4


def test_what_a_step_catches_is_an_error_all_the_same() -> None:
    def forgiving(m: Project, b: Any) -> Tensor:
        try:
            return step(m, b)
        except ValueError:
            return m.bert.embeddings.word_embeddings.weight.sum()

    module = Project(forgiving)
    with pytest.raises(PapaError, match="batch 0 has sequences of 12 tokens, but max_length is 6"):
        trainer(Keeping(max_length=6)).fit(module, DataLoader(tensors(), 2))


class Once(IterableDataset[Any]):
    def __init__(self) -> None:
        self.rows = (tensors()[index] for index in range(7))

    def __iter__(self) -> Any:
        return self.rows


class Exhausted(Once):
    """Each iterator is a new one, over the same generator."""

    def __iter__(self) -> Any:
        yield from self.rows


def test_an_iterator_that_would_be_used_up_is_refused() -> None:
    for data in (iter(DataLoader(tensors(), 2)), DataLoader(Once(), 2), DataLoader(Exhausted(), 2)):
        with pytest.raises(PapaError, match="an iterator that can be gone over only once"):
            trainer(Keeping(max_length=LENGTH)).fit(Project(step), data)


class Counting(IterableDataset[Any]):
    """Its own iterator, with the place in an attribute."""

    def __iter__(self) -> Any:
        self.place = -1
        return self

    def __next__(self) -> Any:
        self.place += 1
        if self.place == 7:
            raise StopIteration
        return tensors()[self.place]


def test_data_that_are_their_own_iterator() -> None:
    assert assert_exact(Project(step), DataLoader(Counting(), 2)) == 7


def test_workers_that_persist_stay_those_of_the_training() -> None:
    for data in (tensors(), Stream()):
        loader = DataLoader(data, 4, num_workers=1, persistent_workers=True)
        assert assert_exact(Project(step), loader, max_epochs=1) == 7


def test_a_teacher_that_has_a_trainer_of_its_own() -> None:
    """Nothing of it is looked into, so it goes on as it was."""
    teacher, module = Project(step), Project(step)
    own = trainer()
    own.fit(teacher, DataLoader(tensors(), 2))
    module.teacher_of = [teacher]
    callback = Keeping(max_length=LENGTH)
    trainer(callback).fit(module, DataLoader(tensors(), 2))
    assert teacher.trainer is own
    assert callback.made.metadata["sequences"] == 7


def test_a_step_that_asks_the_trainer_to_stop_does_so_in_training_only() -> None:
    def stopping(m: Project, b: Any) -> Tensor:
        m.trainer.should_stop = not m.training
        return step(m, b)

    run = trainer(Keeping(max_length=LENGTH), max_epochs=2)
    run.fit(Project(stopping), DataLoader(tensors(), 2))
    assert run.global_step == 8


@pytest.mark.parametrize(
    "kind",
    [HeadGates, lambda **options: SwappedAttention("aft_local", {"window": 4, "init": "from_constants"}, **options)],
)
def test_the_other_callbacks_follow_the_same_rule(kind: Any, tmp_path: Any) -> None:
    module, callback = Project(step), kind(max_length=LENGTH)
    trainer(callback, logger=L.pytorch.loggers.CSVLogger(tmp_path)).fit(
        module, DataLoader(tensors(), 2, sampler=Backwards(7))
    )
    assert AttentionConstants.load(callback.constants_path).metadata["sequences"] == 4


class Rows(Dataset[Any]):
    """Draws from a generator of its own, and counts."""

    def __init__(self) -> None:
        self.dice, self.asked = torch.Generator().manual_seed(2), 0

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        ids = torch.randint(1, 40, (LENGTH,), generator=self.dice)
        return ids, torch.ones(LENGTH, dtype=torch.long)


class Reading(Keeping):
    """Reads the inputs off the batches."""

    def encoder_inputs(self, batch: Any) -> Any:
        return {"input_ids": batch[0], "attention_mask": batch[1]}


class Passing(Reading):
    """Passes the default batches on."""

    def calibration_batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
        yield from super().calibration_batches(trainer, pl_module)


@pytest.mark.parametrize("kind", [Keeping, Reading, Passing])
def test_generators_and_counters_of_the_data_are_as_they_were(kind: Any) -> None:
    datas = [Rows(), Rows()]
    for data, callbacks in zip(datas, ([kind(max_length=LENGTH)], []), strict=True):
        trainer(*callbacks).fit(Project(step), DataLoader(data, 2))
    assert datas[0].asked == datas[1].asked == 5
    assert torch.equal(datas[0].dice.get_state(), datas[1].dice.get_state())


def test_ranking_goes_over_what_reaches_the_encoder(tmp_path: Any) -> None:
    """Two mappings a batch, in tuples: each criterion gets what one would give to the encoder itself."""
    for criterion in ("variance", "divergence", "output"):
        module, plain = (Project(FORMS["pairs"][1]) for _ in range(2))
        batches = [one for batch in FORMS["pairs"][0]() for one in batch]
        constants = calibrate(plain.bert, batches, max_length=LENGTH)
        expected = rank_heads(criterion, RankingInputs(plain.bert, constants, batches))
        run = RankingRun(criterion, str(tmp_path / "ranking.json"), ConstantAttention(LENGTH), None, False)
        trainer(run).fit(module, FORMS["pairs"][0]())
        assert run.ranking is not None
        assert run.ranking.heads == expected.heads
        torch.testing.assert_close(torch.tensor(run.ranking.scores), torch.tensor(expected.scores))


def test_an_override_that_goes_on_from_the_default_batches() -> None:
    """It gets the inputs of every call, and is not observed while the step gives them."""

    class Some(Keeping):
        def calibration_batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
            for number, inputs in enumerate(super().calibration_batches(trainer, pl_module)):
                if number < 3:
                    yield inputs

    callback = Some(max_length=LENGTH)
    trainer(callback).fit(Project(FORMS["pairs"][1]), FORMS["pairs"][0]())
    assert callback.made.metadata["sequences"] == 6


def test_a_step_that_fetches_its_batches_itself_is_refused() -> None:
    class Fetching(Project):
        def training_step(self, dataloader_iter: Any) -> Tensor:
            return step(self, next(dataloader_iter)[0])

    with pytest.raises(PapaError, match=r"takes dataloader_iter and fetches its batches itself.*encoder_inputs"):
        trainer(Keeping(max_length=LENGTH)).fit(Fetching(step), DataLoader(tensors(), 2))
