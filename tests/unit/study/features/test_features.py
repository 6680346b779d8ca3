"""Stored features: the same numbers as the encoder gives, whole folders or none, and refusals by name."""

import errno
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from unit.study import feature_cases as cases

from papa_lightning.errors import OutputError, PapaError
from papa_lightning.files.checked import file_sum
from papa_lightning.study.features import encoding
from papa_lightning.study.features import features as features_module
from papa_lightning.study.features import rows as rows_module
from papa_lightning.study.features.encoding import EncodedSplit
from papa_lightning.study.features.features import LiveFeatures, StoredFeatures, store_features
from papa_lightning.study.features.folder import table_bytes
from papa_lightning.study.features.reading import LayerwiseReading
from papa_lightning.study.features.rows import SplitRows

CPU, LARGE = torch.device("cpu"), 10**9
SOME_HEADS = [(0, 1), (1, 0), (1, 3)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return cases.save_encoder(str(tmp_path_factory.mktemp("features_encoder")))


def features_size(task: Any, rows: Dataset, dtype: Any = "float32") -> int:
    """The size of stored features, without headers."""
    split = EncodedSplit(task, rows)
    return table_bytes(split.reading, split.index, dtype)


def store(task: Any, rows: Dataset, folder: Path, **arguments: Any) -> StoredFeatures:
    return store_features(task, rows, folder, **({"budget_bytes": LARGE, "batch_size": 4} | arguments))


def logits_of(task: Any, features: Any, numbers: list[int]) -> torch.Tensor:
    batch = features.batch(torch.tensor(numbers), CPU)
    return task.probe.classify(features.reading.inputs(task.probe, batch))


def expected_logits(task: Any, rows: Dataset, numbers: list[int]) -> torch.Tensor:
    batch = cases.as_batch(rows, numbers)
    logits = cases.padded_logits(task, task.probe, batch)
    return logits[batch["labels"] != -100] if batch["labels"].dim() == 2 else logits


@pytest.mark.parametrize("heads", [None, SOME_HEADS, "all"])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_logits_are_those_of_padded_hidden_states(
    encoder: str, tmp_path: Path, kind: str, layout: str, heads: Any
) -> None:
    task, rows = cases.make_task(encoder, kind, heads), cases.make_rows(11, kind, layout)
    if kind == "layerwise":
        torch.nn.init.normal_(task.probe.position_weights)
    stored, live = store(task, rows, tmp_path / "f"), LiveFeatures(task, rows)
    for numbers in ([3, 0, 7, 10, 1], [5], list(range(11))):
        expected = expected_logits(task, rows, numbers)
        assert expected.abs().max() > 0.1
        for features in (stored, live):
            torch.testing.assert_close(logits_of(task, features, numbers), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", cases.KINDS)
def test_stored_and_live_batches_say_the_same(encoder: str, tmp_path: Path, kind: str) -> None:
    task, rows = cases.make_task(encoder, kind), cases.make_rows(9, kind)
    stored, live = store(task, rows, tmp_path / "f"), LiveFeatures(task, rows)
    numbers = torch.tensor([8, 2, 0, 2])
    one, other = stored.batch(numbers, CPU), live.batch(numbers, CPU)
    torch.testing.assert_close(one.vectors[one.rows], other.vectors[other.rows], atol=1e-5, rtol=0)
    labels = cases.as_batch(rows, numbers.tolist())["labels"]
    assert torch.equal(one.labels, labels[labels != -100] if kind == "tokens" else labels)
    for name in ("labels", "counts", "positions"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert (len(stored), stored.index, stored.reading) == (len(live), live.index, live.reading)


def test_labels_are_of_the_sequences_also_where_places_are_as_many(encoder: str) -> None:
    rows = cases.make_rows(3, "layerwise").to_dict()
    rows |= {"attention_mask": [[1, 1] + [0] * 8, [0] * 10, [0, 1] + [0] * 8], "labels": [2, 1, 0]}
    live = LiveFeatures(cases.make_task(encoder, "layerwise"), Dataset.from_dict(rows))
    batch = live.batch(torch.tensor([0, 2]), CPU)
    assert batch.labels.tolist() == [2, 0]
    assert (batch.counts.tolist(), batch.positions.tolist()) == ([2, 1], [0, 1, 1])


@pytest.mark.parametrize("kind", cases.KINDS)
def test_gradients_of_the_probe(encoder: str, tmp_path: Path, kind: str) -> None:
    task, rows = cases.make_task(encoder, kind), cases.make_rows(6, kind, "segment")
    stored, numbers = store(task, rows, tmp_path / "f"), [4, 1, 5, 0]
    gradients = []
    for logits in (logits_of(task, stored, numbers), expected_logits(task, rows, numbers)):
        task.probe.zero_grad()
        logits.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in task.probe.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


def test_only_what_is_read_is_stored(encoder: str, tmp_path: Path) -> None:
    for kind in cases.KINDS:
        task, rows = cases.make_task(encoder, kind), cases.make_rows(7, kind)
        batch = cases.as_batch(rows)
        real, labelled = int(batch["attention_mask"].sum()), int((batch["labels"] != -100).sum())
        expected = {"layerwise": real * cases.LEVELS, "tokens": labelled * cases.LEVELS}.get(kind, 7) * cases.HIDDEN
        for dtype, size in (("float32", 4), ("float16", 2)):
            stored = store(task, rows, tmp_path / f"{kind}{dtype}", dtype=dtype)
            assert stored.nbytes == expected * size
            on_disk = sum(file.stat().st_size for file in stored.folder.iterdir())
            assert 0 < on_disk - features_size(task, rows, dtype) < 2048


@pytest.mark.parametrize("kind", cases.KINDS)
def test_float16_is_close(encoder: str, tmp_path: Path, kind: str) -> None:
    task, rows, numbers = cases.make_task(encoder, kind), cases.make_rows(6, kind), [5, 0, 3]
    exact = logits_of(task, LiveFeatures(task, rows), numbers)
    close = logits_of(task, store(task, rows, tmp_path / "f", dtype="float16"), numbers)
    assert close.dtype == torch.float32
    assert not torch.equal(close, exact)
    torch.testing.assert_close(close, exact, atol=5e-3, rtol=0)


def _noting_lengths(encode: Any, lengths: list[int], batch: Any) -> Any:
    lengths.append(batch["input_ids"].shape[1])
    return encode(batch)


def test_padding_is_cut_where_it_stands_at_the_end(encoder: str, tmp_path: Path) -> None:
    seen: dict[str, list[int]] = {}
    for layout in cases.LAYOUTS:
        task, rows = cases.make_task(encoder, "layerwise", packing=False), cases.make_rows(8, "layerwise", layout)
        lengths = seen.setdefault(layout, [])
        task.run_encoder = partial(_noting_lengths, task.run_encoder, lengths)
        store(task, rows, tmp_path / layout, batch_size=2)
    longest = sorted(cases.make_rows(8, "layerwise").with_format("torch")[:]["attention_mask"].sum(1).tolist())[::-1]
    assert seen["plain"] == longest[::2]
    assert seen["segment"] == [cases.LENGTH] * 4


@pytest.mark.parametrize("heads", [None, SOME_HEADS, "all"])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_packed_features_are_those_of_padded_rows(
    encoder: str, tmp_path: Path, kind: str, layout: str, heads: Any
) -> None:
    rows, tables = cases.make_rows(13, kind, layout), []
    for packing in (True, False):
        task, seen = cases.make_task(encoder, kind, heads, packing=packing), list[int]()
        task.run_encoder = partial(_noting_lengths, task.run_encoder, seen)
        tables.append(store(task, rows, tmp_path / str(packing), tokens_per_batch=20)._table)
        assert len(seen) > 3
        assert packing or layout == "plain" or set(seen) == {cases.LENGTH}
        assert not packing or seen == sorted(seen, reverse=True)
    torch.testing.assert_close(*tables, atol=1e-5, rtol=0)


@pytest.mark.parametrize("heads", [None, SOME_HEADS])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_rows_that_move_to_the_device_at_once(
    encoder: str, monkeypatch: pytest.MonkeyPatch, kind: str, layout: str, heads: Any
) -> None:
    task, rows, numbers = cases.make_task(encoder, kind, heads), cases.make_rows(13, kind, layout), [7, 0, 12, 3]
    each = EncodedSplit(task, rows).vectors(torch.tensor(numbers))
    for module in (encoding, rows_module):
        monkeypatch.setattr(module, "moves_at_once", lambda device: True)
    monkeypatch.setattr(rows_module, "_CHUNK", 5)
    read = SplitRows(task, rows)
    reads, split = list[int](), EncodedSplit(task, read)
    pack = task.pack
    task.pack = lambda inputs: reads.append(len(inputs["input_ids"])) or pack(inputs)
    torch.testing.assert_close(split.vectors(torch.tensor(numbers)), each, atol=1e-6, rtol=0)
    assert reads == [5, 5, 3]
    split.vectors(torch.tensor([1]))
    assert len(reads) == 3
    task.pack = lambda inputs: None
    monkeypatch.setattr(rows_module, "_tensors", dict)  # nothing is read again
    assert [len(chunk["labels"]) for chunk in read.chunks()] == [5, 5, 3]
    monkeypatch.undo()
    torch.testing.assert_close(EncodedSplit(task, rows).vectors(torch.tensor(numbers)), each, atol=1e-5, rtol=0)


def test_packed_batches_are_no_larger_than_padded_ones(encoder: str, tmp_path: Path) -> None:
    """Where the number of tokens is not given; else it is what bounds them."""
    task, rows, seen = cases.make_task(encoder, "mean"), cases.make_rows(30, "mean"), list[int]()
    original = task.run_encoder

    def noting(inputs: Any) -> Any:
        seen.append(inputs["input_ids"].numel())
        return original(inputs)

    task.run_encoder = noting
    store(task, rows, tmp_path / "f", batch_size=2)
    assert max(seen) <= 2 * cases.LENGTH
    seen.clear()
    store(task, rows, tmp_path / "g", batch_size=2, tokens_per_batch=10_000)
    assert len(seen) == 1
    with pytest.raises(PapaError, match="tokens_per_batch is 0"):
        store(task, rows, tmp_path / "h", tokens_per_batch=0)


def test_a_reading_of_padding_is_not_packed(encoder: str, tmp_path: Path) -> None:
    """A label at a token that the mask leaves out, whose hidden state only a padded batch has."""
    task, rows = cases.make_task(encoder, "tokens"), cases.make_rows(6, "tokens", "segment")
    columns = {name: [list(row) for row in rows[name]] for name in rows.column_names}
    columns["labels"][2][cases.LENGTH - 2] = 1
    columns["attention_mask"][2][cases.LENGTH - 2] = 0
    changed, seen = Dataset.from_dict(columns), list[int]()
    task.run_encoder = partial(_noting_lengths, task.run_encoder, seen)
    store(task, changed, tmp_path / "f")
    assert set(seen) == {cases.LENGTH}


def test_modes_and_random_numbers_are_left_alone(encoder: str, tmp_path: Path) -> None:
    task, rows = cases.make_task(encoder, "mean"), cases.make_rows(5, "mean")
    task.train()
    task.encoder.train()
    state = torch.get_rng_state()
    stored = store(task, rows, tmp_path / "f")
    assert task.encoder.training
    assert torch.equal(torch.get_rng_state(), state)
    task.encoder.eval()
    torch.testing.assert_close(logits_of(task.eval(), stored, [1]), expected_logits(task, rows, [1]))


def test_progress_counts_sequences(encoder: str, tmp_path: Path) -> None:
    done: list[int] = []
    rows = cases.make_rows(9, "mean")
    task = cases.make_task(encoder, "mean", packing=False)
    store(task, rows, tmp_path / "f", batch_size=4, progress=done.append)
    assert done == [4, 8, 9]
    done.clear()
    store(cases.make_task(encoder, "mean"), rows, tmp_path / "g", tokens_per_batch=1, progress=done.append)
    assert done == list(range(1, 10))


def test_budget_is_checked_before_anything_is_written(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, rows = cases.make_task(encoder, "layerwise"), cases.make_rows(5, "layerwise")
    needed = features_size(task, rows)
    with pytest.raises(
        PapaError, match=rf"budget_gigabytes leaves {needed - 1} .*take {needed} .*larger budget.*storage float16.*none"
    ):
        store(task, rows, tmp_path / "new" / "f", budget_bytes=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, needed - 1))
    with pytest.raises(PapaError, match=f"{needed - 1} bytes are free"):
        store(task, rows, tmp_path / "new" / "f")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert len(store(task, rows, tmp_path / "new" / "f", budget_bytes=needed)) == 5


def test_what_is_interrupted_leaves_nothing(encoder: str, tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        assert list(tmp_path.iterdir()) != []
        assert not (tmp_path / "f").exists()
        raise KeyboardInterrupt

    task, rows = cases.make_task(encoder, "mean"), cases.make_rows(5, "mean")
    with pytest.raises(KeyboardInterrupt):
        store(task, rows, tmp_path / "f", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_nothing_that_looks_finished(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, rows = cases.make_task(encoder, "mean"), cases.make_rows(5, "mean")

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # a killed process cleans nothing
    with pytest.raises(KeyboardInterrupt):
        store(task, rows, tmp_path / "f", progress=interrupt)
    monkeypatch.undo()
    (rest,) = tmp_path.iterdir()
    with pytest.raises(PapaError, match="damaged or holds no features"):
        StoredFeatures(rest)
    with pytest.raises(PapaError, match="does not exist"):
        StoredFeatures(tmp_path / "f")
    assert len(store(task, rows, tmp_path / "f")) == 5


def test_what_exists_is_taken_if_it_fits(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, rows = cases.make_task(encoder, "mean"), cases.make_rows(5, "mean")
    first = store(task, rows, tmp_path / "f")
    changed = Dataset.from_dict({**rows.to_dict(), "labels": [0] * 5})
    for other_task, other_rows, dtype in (
        (task, changed, "float32"),
        (task, rows, "float16"),
        (cases.make_task(encoder, "class_token"), rows, "float32"),
    ):
        with pytest.raises(PapaError, match="features of other rows, for another probe or in another dtype"):
            store(other_task, other_rows, tmp_path / "f", dtype=dtype)
    monkeypatch.setattr(features_module, "write_folder", None)  # called, it would be an error
    assert torch.equal(store(task, rows, tmp_path / "f").index.labels, first.index.labels)


def test_files_are_summed_once_when_written_and_again_when_opened(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summed: list[str] = []

    def note(path: Path) -> str:
        summed.append(path.name)
        return file_sum(path)

    monkeypatch.setattr("papa_lightning.study.features.folder.file_sum", note)
    store(cases.make_task(encoder, "mean"), cases.make_rows(5, "mean"), tmp_path / "f")
    assert summed == ["vectors.npy", "index.safetensors"]
    StoredFeatures(tmp_path / "f")
    assert summed == ["vectors.npy", "index.safetensors"] * 2


def truncate(folder: Path) -> None:
    content = (folder / "vectors.npy").read_bytes()
    (folder / "vectors.npy").write_bytes(content[:-4])


def edit(**changes: Any) -> Any:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["sha256"]  # as if by hand
        (folder / "manifest.json").write_text(json.dumps(manifest | changes))

    return damage


def replace_vectors(folder: Path) -> None:
    table = np.load(folder / "vectors.npy")
    np.save(folder / "vectors.npy", table.reshape(-1, table.shape[1] // 2))


def remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(content)


def lose_places(folder: Path) -> None:
    path = folder / "index.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-8] + b"\x7f" * 8)


DAMAGES = {
    "truncated": truncate,
    "other shape": replace_vectors,
    "other dtype": edit(dtype="float16"),
    "no such dtype": edit(dtype=3),
    "other format": edit(format="papa_lightning.features/0"),
    "other reading": edit(reading={"name": "layerwise", "levels": 3, "max_length": 10, "hidden_size": 16}),
    "no reading": edit(reading={"name": "max", "levels": 3, "max_length": 10, "hidden_size": 16}),
    "short positions": edit(reading={"name": "tokens", "levels": 3, "max_length": 2, "hidden_size": 16}),
    "reading is a number": edit(reading=3),
    "files is a number": edit(files=3),
    "files lack one": edit(files={"vectors.npy": "0"}),
    "another field": edit(sizes=3),
    "nested deeply": write("manifest.json", b"[" * 100_000),
    "manifest is a list": write("manifest.json", b"[]"),
    "manifest is no JSON": write("manifest.json", b"{"),
    "manifest is no text": write("manifest.json", b"\xff\xfe\x00"),
    "index is damaged": lose_places,
    "no vectors": remove("vectors.npy"),
    "no index": remove("index.safetensors"),
    "no manifest": remove("manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_refused(encoder: str, tmp_path: Path, damage: Any) -> None:
    task, rows = cases.make_task(encoder, "tokens"), cases.make_rows(5, "tokens")
    store(task, rows, tmp_path / "f")
    damage(tmp_path / "f")
    with pytest.raises(PapaError, match=r"damaged or holds no features .*remove it"):
        StoredFeatures(tmp_path / "f")
    with pytest.raises(PapaError, match="damaged or holds no features"):
        store(task, rows, tmp_path / "f")


@pytest.mark.filterwarnings("error")
def test_of_two_processes_that_store_the_same_the_first_wins(encoder: str, tmp_path: Path) -> None:
    task, rows = cases.make_task(encoder, "mean"), cases.make_rows(5, "mean")
    first: list[StoredFeatures] = []

    def store_meanwhile(done: int) -> None:
        first.append(store(task, rows, tmp_path / "f", batch_size=3))

    second = store(task, rows, tmp_path / "f", batch_size=5, progress=store_meanwhile)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert torch.equal(logits_of(task, second, [3, 1]), logits_of(task, first[0], [3, 1]))
    first[0].remove()
    second.remove()
    assert list(tmp_path.iterdir()) == []


def test_remove_deletes_the_folder(encoder: str, tmp_path: Path) -> None:
    task, rows = cases.make_task(encoder, "mean"), cases.make_rows(3, "mean")
    store(task, rows, tmp_path / "f").remove()
    assert list(tmp_path.iterdir()) == []


def test_float16_that_overflows_is_refused(encoder: str, tmp_path: Path) -> None:
    task, rows = cases.make_task(encoder, "class_token"), cases.make_rows(3, "class_token")
    torch.nn.init.constant_(task.encoder.encoder.layer[-1].output.LayerNorm.bias, 1e5)
    with pytest.raises(PapaError, match=r"features\.storage is 'float16', but a hidden state is 1e\+05"):
        store(task, rows, tmp_path / "f", dtype="float16")
    assert list(tmp_path.iterdir()) == []
    assert len(store(task, rows, tmp_path / "f")) == 3


def test_hidden_states_that_are_not_finite_are_refused(encoder: str) -> None:
    task, rows = cases.make_task(encoder, "class_token"), cases.make_rows(3, "class_token")
    torch.nn.init.constant_(task.encoder.encoder.layer[-1].output.LayerNorm.bias, float("nan"))
    with pytest.raises(PapaError, match=r"NaN or infinite hidden states for one of the sequences \[2\]"):
        LiveFeatures(task, rows).batch(torch.tensor([2]), CPU)


def without(rows: Dataset, column: str) -> Dataset:
    return rows.remove_columns([column])


def test_rows_that_do_not_fit_are_refused(encoder: str) -> None:
    task, rows = cases.make_task(encoder, "layerwise"), cases.make_rows(4, "layerwise")
    tokens, tags = cases.make_task(encoder, "tokens"), cases.make_rows(4, "tokens")
    ragged = Dataset.from_dict({**rows.to_dict(), "input_ids": [[1] * n for n in (3, 4, 5, 6)]})
    empty = {**tags.to_dict(), "labels": [[-100] * cases.LENGTH] * 4}
    wrong: tuple[tuple[Any, Dataset, str], ...] = (
        (task, rows.select([]), "rows is empty"),
        (task, without(rows, "labels"), "no labels"),
        (task, without(rows, "attention_mask"), "no attention_mask"),
        (task, Dataset.from_dict({**rows.to_dict(), "labels": [0, 1, 2, 7]}), "value 7"),
        (task, ragged, "different length"),
        (tokens, rows, "labels has shape"),
        (tokens, Dataset.from_dict(empty), "no token that the probe could read"),
    )
    for one, given, message in wrong:
        with pytest.raises(PapaError, match=message):
            LiveFeatures(one, given)


def test_encoders_that_are_not_frozen_are_refused(encoder: str) -> None:
    rows = cases.make_rows(4, "mean")
    with pytest.raises(PapaError, match="regime is 'fine_tune'"):
        LiveFeatures(cases.make_task(encoder, "mean", regime="fine_tune"), rows)
    with pytest.raises(PapaError, match="preset is 'reference'"):
        LiveFeatures(cases.make_task(encoder, "mean", preset="reference"), rows)


def test_arguments_are_checked(encoder: str, tmp_path: Path) -> None:
    task, rows = cases.make_task(encoder, "mean"), cases.make_rows(4, "mean")
    with pytest.raises(PapaError, match="dtype is 'int8'"):
        store(task, rows, tmp_path / "f", dtype="int8")
    with pytest.raises(PapaError, match="batch_size is 0"):
        store(task, rows, tmp_path / "f", batch_size=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(PapaError, match="cannot be written"):
        store(task, rows, tmp_path / "file" / "f")


def test_other_tasks_are_refused(encoder: str) -> None:
    task = cases.make_task(encoder, "mean")
    task.probe = torch.nn.Linear(2, 2)
    with pytest.raises(PapaError, match="SequenceClassificationTask with a Linear"):
        LiveFeatures(task, cases.make_rows(4, "mean"))


def test_position_weights_belong_to_their_slot_and_level() -> None:
    reading = LayerwiseReading(levels=2, max_length=3, hidden_size=1)
    levels = [torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[[4.0], [5.0], [6.0]]])]
    mask = torch.tensor([[1, 0, 1]])
    assert reading.collect(levels, mask, mask.bool()).flatten().tolist() == [1, 3, 4, 6]


def test_a_full_disk_is_an_error_of_one_line_and_leaves_nothing(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    task, rows = cases.make_task(encoder, "mean"), cases.make_rows(4, "mean")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="No space left on device"):
        store(task, rows, tmp_path / "new" / "train")
    assert list((tmp_path / "new").iterdir()) == []
