"""Parts of a study, and the locks that keep them apart."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from papa_lightning.errors import PapaError, StudyError
from papa_lightning.files import locking
from papa_lightning.study import store
from papa_lightning.study.artifacts import pieces_of
from papa_lightning.study.cells import Choice, Group
from papa_lightning.study.parts import StudyPart
from papa_lightning.study.store import StudyFolder


@pytest.mark.parametrize("total", [1, 2, 3, 7, 12])
def test_every_item_is_in_one_part(total: int) -> None:
    parts = [StudyPart(number, total).of(range(10)) for number in range(1, total + 1)]
    assert [one for part in parts for one in part] == list(range(10))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["3", "0/3", "4/3", "a/b", "1/0", "-1/3", "1/3/5", ""])
def test_parts_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(StudyError, match=r"^part is "):
        StudyPart.parse(text)


def test_a_part_reads_as_it_is_written() -> None:
    assert str(StudyPart.parse("3/10")) == "3/10"


def test_parts_share_a_folder_and_the_same_part_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_PATIENCE", 0.0)
    with StudyFolder(tmp_path).claimed(StudyPart(1, 2)), StudyFolder(tmp_path).claimed(StudyPart(2, 2)):
        with pytest.raises(PapaError, match="at work"), StudyFolder(tmp_path).claimed(StudyPart(2, 2)):
            pass
        with pytest.raises(PapaError, match="at work"), StudyFolder(tmp_path).claimed():
            pass
    refused = pytest.raises(PapaError, match="at work")
    with StudyFolder(tmp_path).claimed(), refused, StudyFolder(tmp_path).claimed(StudyPart(1, 2)):
        pass
    with StudyFolder(tmp_path).claimed(StudyPart(1, 2)):
        pass
    assert not list(tmp_path.iterdir()), "no lock stays"


def test_one_at_a_time_has_its_turn(tmp_path: Path) -> None:
    """The second waits for the first, and both get in."""
    order, begun = list[str](), threading.Event()

    def second() -> None:
        begun.set()
        with StudyFolder(tmp_path).turn("table"):
            order.append("second")

    with StudyFolder(tmp_path).turn("table"):
        thread = threading.Thread(target=second)
        thread.start()
        assert begun.wait(10)
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_file_system_without_locks_lets_all_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(FileLock):
        def acquire(self, *given: Any, **options: Any) -> Any:
            raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(locking, "FileLock", Refused)
    with StudyFolder(tmp_path).turn("table"), StudyFolder(tmp_path).turn("table"):
        pass


def test_work_is_divided_among_gpus() -> None:
    groups = [Group("e", "t", Choice(share / 10, "gate", "average"), (0, 1)) for share in range(5)]
    gpu = torch.device("cuda")
    assert [len(piece) for piece in pieces_of(groups, gpu)] == [5]
    assert [len(piece) for piece in pieces_of(groups, gpu, 2)] == [3, 2]
    assert [len(piece) for piece in pieces_of(groups, gpu, 9)] == [1] * 5
    assert [len(piece) for piece in pieces_of(groups, torch.device("cpu"), 2)] == [1] * 5
    assert [one for piece in pieces_of(groups, gpu, 2) for one in piece] == groups
