"""Files and folders that are written whole or not at all."""

import os
import re
import signal
import socket
import stat
import threading
from pathlib import Path

import pytest

from papa_lightning.errors import OutputError, PapaError
from papa_lightning.files import writing as files
from papa_lightning.files.writing import (
    check_output,
    check_work_folder,
    new_part,
    open_part,
    staged_file,
    staged_folder,
    write_atomically,
)

FULL = OSError(28, "No space left on device")


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
        with staged_folder(tmp_path / "folder") as folder:
            (folder / "private.bin").touch(mode=0o600)
        (tmp_path / "other").mkdir()
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file.bin", "other.bin", "folder/private.bin")}
    assert len(modes) == 1
    assert len({stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("folder", "other")}) == 1


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()])
def test_failure_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, function, error):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(files.os, function, fail)
    with pytest.raises(type(error)) as caught:
        write_atomically(path, b"new")
    if error is FULL:
        assert isinstance(caught.value, PapaError)
        message = r"path is '.*file\.bin', which cannot be written \(No space left on device\): pass"
        assert re.match(message, str(caught.value))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_content_of_another_type_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "file.bin", "text")
    assert names(tmp_path) == []


def test_folder_in_the_way(tmp_path):
    (tmp_path / "file.bin").mkdir()
    with pytest.raises(OutputError, match=r"path is '.*file\.bin', which is a folder and cannot be written as a file"):
        write_atomically(tmp_path / "file.bin", b"x")
    assert names(tmp_path) == ["file.bin"]
    (tmp_path / "plain").write_bytes(b"x")
    with pytest.raises(OutputError, match=r"plain.*Not a directory"):
        write_atomically(tmp_path / "plain" / "file.bin", b"x")


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    socket.socket(socket.AF_UNIX).bind(str(path))


def make_device(path):
    path.symlink_to(os.devnull)


@pytest.mark.parametrize("make", [make_pipe, make_socket, make_device, Path.mkdir])
@pytest.mark.parametrize("linked", [False, True])
def test_only_regular_files_are_outputs(tmp_path, monkeypatch, make, linked):
    monkeypatch.chdir(tmp_path)  # names of sockets must be short
    make(Path("out"))
    before = os.stat("out")
    if linked:
        Path("link").symlink_to("out")
    given = "link" if linked else "out"
    for write in (lambda: write_atomically(given, b"x"), lambda: check_output("output", given)):
        with pytest.raises(OutputError, match=rf"(path|output) is '{given}', which is a \w+ and cannot be written"):
            write()
    assert os.path.samestat(os.stat("out"), before)
    assert names(tmp_path) == ["link", "out"] if linked else ["out"]


@pytest.mark.parametrize("exists", [True, False])
def test_links_stay_and_what_they_lead_to_is_replaced(tmp_path, exists):
    target, link = tmp_path / "other" / "file.bin", tmp_path / "link.bin"
    (tmp_path / "middle").symlink_to("link.bin")
    link.symlink_to("other/file.bin")
    if exists:
        target.parent.mkdir()
        target.write_bytes(b"old")
    check_output("output", link)
    write_atomically(tmp_path / "middle", b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert not target.is_symlink()
    assert names(tmp_path) == ["link.bin", "middle", "other"]
    assert names(target.parent) == ["file.bin"]


@pytest.mark.parametrize("given", ["x" * 300, "loop", "a\0b"])
def test_names_that_cannot_be_are_refused_before_the_work(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    for write in (lambda: write_atomically(given, b"x"), lambda: check_output("output", given)):
        with pytest.raises(OutputError):
            write()
    assert names(tmp_path) == ["loop"]


def test_the_longest_name(tmp_path):
    check_output("output", tmp_path / ("x" * 255))
    write_atomically(tmp_path / ("x" * 255), b"x")
    assert names(tmp_path) == ["x" * 255]


def test_parts_never_follow_a_planted_link(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    planted = new_part(tmp_path, "0123456789ab", 3)
    planted.symlink_to(victim)
    monkeypatch.setattr(files, "_TRIES", 2)
    with pytest.raises(FileExistsError):
        open_part(planted)
    assert victim.read_bytes() == b"mine"
    write_atomically(tmp_path / "file", b"x")
    assert names(tmp_path) == [planted.name, "file", "victim"]  # a link is none of ours


def test_names_of_parts_are_not_predictable(tmp_path):
    assert len({new_part(tmp_path) for _ in range(100)}) == 100
    assert {new_part(tmp_path, "0123456789ab", one).name for one in range(2)} == {
        ".papa-0123456789ab0000.part",
        ".papa-0123456789ab0001.part",
    }


def in_a_copy(function):
    """A copy of this process that runs a function and ends: nothing of torch is used there."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    return child


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_goes_and_what_a_live_one_writes_stays(tmp_path, kind):
    begun, go_on = os.pipe(), os.pipe()

    def write():
        with staged_file(tmp_path / "target") if kind == "file" else staged_folder(tmp_path / "target") as part:
            if kind == "file":
                part.write(b"half")
            else:
                (part / "inner").mkdir()
                (part / "inner" / "half").write_bytes(b"half")
            os.write(begun[1], b"x")
            os.read(go_on[0], 1)

    killed, live = in_a_copy(write), in_a_copy(write)
    assert len(os.read(begun[0], 1) + os.read(begun[0], 1)) == 2
    write_atomically(tmp_path / "other", b"x")
    assert len(names(tmp_path)) == 3  # both live
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    for kept in (".papa-own", ".target.part", ".papa-0123456789abcdef.part.txt"):
        (tmp_path / kept).write_bytes(b"mine")
    write_atomically(tmp_path / "other", b"x")
    assert len([name for name in names(tmp_path) if re.fullmatch(r"\.papa-[0-9a-f]{16}\.part", name)]) == 1
    os.write(go_on[1], b"x")
    os.waitpid(live, 0)
    assert names(tmp_path) == [".papa-0123456789abcdef.part.txt", ".papa-own", ".target.part", "other", "target"]


def test_a_folder_appears_whole_or_not(tmp_path):
    target = tmp_path / "new" / "folder"
    with pytest.raises(RuntimeError), staged_folder(target) as folder:  # noqa: PT012
        (folder / "file").write_bytes(b"x")
        raise RuntimeError
    assert names(target.parent) == []
    target.mkdir()  # an empty one is no hindrance
    with staged_folder(target) as folder:
        (folder / "file").write_bytes(b"one")
        assert not any(target.iterdir())
    assert (target / "file").read_bytes() == b"one"
    with pytest.raises(OutputError, match="Directory not empty"), staged_folder(target) as folder:
        (folder / "file").write_bytes(b"two")
    assert (target / "file").read_bytes() == b"one"
    with staged_folder(target, replace=True) as folder:
        (folder / "other").write_bytes(b"three")
    assert names(target) == ["other"]
    assert names(target.parent) == ["folder"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_while_a_folder_is_replaced(tmp_path, moment):
    target = tmp_path / "folder"
    with staged_folder(target) as folder:
        (folder / "file").write_bytes(b"old")

    def replace():
        exchange = files._exchange

        def dying(*paths):
            if moment == "after":
                exchange(*paths)
            os.kill(os.getpid(), signal.SIGKILL)

        files._exchange = dying
        with staged_folder(target, replace=True) as folder:
            (folder / "file").write_bytes(b"new")

    os.waitpid(in_a_copy(replace), 0)
    assert (target / "file").read_bytes() == (b"old" if moment == "before" else b"new")
    assert len(names(tmp_path)) == 2
    with staged_folder(target, replace=True) as folder:
        (folder / "file").write_bytes(b"newest")
    assert names(tmp_path) == ["folder"]
    assert (target / "file").read_bytes() == b"newest"


def test_there_is_no_moment_without_the_folder(tmp_path):
    target, seen, done = tmp_path / "folder", set(), threading.Event()
    with staged_folder(target) as folder:
        (folder / "file").write_bytes(b"0")

    def look():
        while not done.is_set():
            try:
                seen.add((target / "file").read_bytes())
            except FileNotFoundError:
                seen.add(target.exists())

    watcher = threading.Thread(target=look)
    watcher.start()
    for number in range(100):
        with staged_folder(target, replace=True) as folder:
            (folder / "file").write_bytes(str(number % 7).encode())
    done.set()
    watcher.join()
    assert False not in seen
    assert names(tmp_path) == ["folder"]


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


def test_a_work_folder_is_looked_at_and_not_made(tmp_path: Path) -> None:
    check_work_folder("output", tmp_path / "new" / "study")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "study"):
        with pytest.raises(OutputError, match=r"output is .*file' is a file: pass a folder"):
            check_work_folder("output", folder)
