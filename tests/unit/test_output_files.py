"""Files that are written whole or not at all."""

import os
import stat
import threading
from pathlib import Path

import pytest

from papa_lightning import files
from papa_lightning.files import write_atomically


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    assert write_atomically(path, b"one") == path
    assert write_atomically(str(path), b"") == path
    assert path.read_bytes() == b""
    write_atomically(path, b"\x00" * 100_000)
    assert path.read_bytes() == b"\x00" * 100_000
    assert names(path.parent) == ["file.bin"]


def test_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomically("file.bin", b"here")
    assert (tmp_path / "file.bin").read_bytes() == b"here"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_mode_is_that_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file.bin", b"x")
        (tmp_path / "other.bin").write_bytes(b"x")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file.bin", "other.bin")}
    assert len(modes) == 1


@pytest.mark.parametrize("function", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, function, error):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(files.os, function, fail)
    with pytest.raises(type(error)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_content_of_another_type_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "file.bin", "text")
    assert names(tmp_path) == []


def test_folder_in_the_way(tmp_path):
    (tmp_path / "file.bin").mkdir()
    with pytest.raises(OSError, match=r"file\.bin"):
        write_atomically(tmp_path / "file.bin", b"x")
    assert names(tmp_path) == ["file.bin"]
    (tmp_path / "plain").write_bytes(b"x")
    with pytest.raises(OSError, match=r"plain"):
        write_atomically(tmp_path / "plain" / "file.bin", b"x")


def test_readers_see_the_old_content_or_the_new(tmp_path):
    path = tmp_path / "file.bin"
    contents = {bytes([value]) * 50_000 for value in range(8)}
    write_atomically(path, next(iter(contents)))
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            seen.add(Path(path).read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    writers = [
        threading.Thread(target=write_atomically, args=(path, content)) for content in contents for _ in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    done.set()
    reader.join()
    assert seen
    assert seen <= contents
    assert names(tmp_path) == ["file.bin"]
