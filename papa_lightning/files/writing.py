"""Files and folders that are written whole or not at all.

A part is written beside its target as ``.papa-<16 random digits>.part``, and locked by its process. Parts of killed
processes have no lock, and the next process that writes to the folder removes them (not on Windows, which locks in
another way).
"""

import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from papa_lightning.errors import OutputError

if sys.platform != "win32":
    import fcntl

_PART = re.compile(r"\.papa-[0-9a-f]{16}\.part")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
#: Another process may remove a new part before it is locked; it is created again then.
_TRIES = 100
#: Flags of renameat2(2) on Linux and renamex_np(2) on macOS.
_HERE, _EXCHANGE, _SWAP = -100, 2, 2


def write_atomically(path: str | Path, content: bytes) -> Path:
    """Write a file atomically: readers see the old content or the new one, also after a crash.

    Links and `~` are followed, the folder is created, and the path without `~` is returned. A path that is no regular
    file, or that the system refuses to write, as on a full disk, is an OutputError.
    """
    with staged_file(path) as file:
        file.write(content)
    return Path(path).expanduser()


@contextmanager
def staged_file(path: str | Path) -> Iterator[BinaryIO]:
    """A new file that replaces another one at the end, as in :func:`write_atomically`; an error changes nothing."""
    with refusing("path", path):
        target = _regular_target("path", path)
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_left(target.parent)
        with open_part(new_part(target.parent)) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if sys.platform == "win32":
                    file.close()  # Windows replaces no open file
                os.replace(file.name, target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise


@contextmanager
def staged_folder(target: Path, replace: bool = False, durable: bool = True) -> Iterator[Path]:
    """A new folder that gets its name at the end, in one step; after an error it is removed.

    With `replace`, it is exchanged with a folder of this name that has files; otherwise such a folder is an error.
    Without `durable`, its files need not be on the disk by then, for what nothing reads after a loss of power.
    """
    remedy = "pass a folder in a place that you may write to, with room for it"
    with refusing("folder", target, remedy), temporary_folder(target.parent) as staged:
        yield staged
        if durable:
            _settle(staged)
        if replace and target.is_dir() and any(target.iterdir()):
            _exchange(staged, target)
        else:
            os.rename(staged, target)  # over an empty folder too


@contextmanager
def temporary_folder(beside: Path) -> Iterator[Path]:
    """A new folder, removed at the end, or, after a killed process, by the next one."""
    beside.mkdir(parents=True, exist_ok=True)
    remove_left(beside)
    path, lock = _make_folder(beside)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def check_output(name: str, path: str | Path) -> None:
    """Refuse a file that could not be written, before the work that it is for; its folder is made."""
    with refusing(name, path, "pass a file in a folder that you may write to"):
        _check_writable(_regular_target(name, path).parent)


def check_output_folder(name: str, folder: str | Path) -> Path:
    """The path, without links, of a folder that can be made; the folder that it lies in is made."""
    try:
        path = Path(os.path.realpath(os.path.expanduser(folder)))
        _check_writable(path.parent)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{name} is {str(folder)!r}, which cannot be written ({getattr(error, 'strerror', None) or error}): pass a "
            "folder in a place that you may write to."
        ) from error
    return path


def check_exchange(name: str, folder: Path) -> None:
    """Refuse to replace a folder where no exchange in one step is possible: a stopped process could leave neither."""
    made = [_make_folder(folder.parent) for _ in range(2)]
    try:
        _exchange(*(path for path, _ in made))
    except OSError as error:
        raise OutputError(
            f"{name} is {str(folder)!r}, on a file system that cannot exchange two folders ({error.strerror}), so that "
            "a stopped run could leave neither: remove the folder that is there, or pass the name of a new one."
        ) from error
    finally:
        for path, lock in made:
            os.rmdir(path)
            os.close(lock)


def _check_writable(folder: Path) -> None:
    """Make a folder where it is missing, and a file in it that is removed at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with open_part(new_part(folder)) as file:
        os.unlink(file.name)


@contextmanager
def refusing(
    name: str, path: str | Path, remedy: str = "pass a file in a folder that you may write to, with room for it"
) -> Iterator[None]:
    """Turn errors of the system into an OutputError, on one line."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{name} is {str(path)!r}, which cannot be written ({reason}): {remedy}.") from error


def check_work_folder(name: str, folder: Path) -> None:
    """Refuse a folder in which files could not be written, without making it, also one below a file."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise OutputError(f"{name} is {str(folder)!r}, but {str(existing)!r} is a file: pass a folder.")
    if not os.access(existing, os.W_OK):
        raise OutputError(f"{name} is {str(folder)!r}, which cannot be written: pass a folder that you may write to.")


def remove_left(folder: Path) -> None:
    """Remove the parts of killed processes from a folder; those of live ones are locked."""
    if sys.platform == "win32":
        return
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if _PART.fullmatch(entry.name) and not entry.is_symlink()]
    for entry in found:
        with suppress(OSError):  # in use, gone, or of another user
            handle = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stat.S_ISDIR(os.fstat(handle).st_mode):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
            finally:
                os.close(handle)


def new_part(folder: Path, token: str = "", number: int = 0) -> Path:
    """A path for a part, new, or of the process `number` of several that share a token of 12 hexadecimal digits."""
    return folder / f".papa-{token + format(number, '04x') if token else secrets.token_hex(8)}.part"


def open_part(path: Path) -> BinaryIO:
    """Create a file of :func:`new_part`, which must not exist, and lock it until it is closed."""
    for _ in range(_TRIES):
        with suppress(FileExistsError):
            file = open(path, "xb")  # noqa: SIM115 (closed by the caller); never follows a link
            if _lock(file.fileno(), path):
                return file
            file.close()
        time.sleep(0.01)
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def _make_folder(beside: Path) -> tuple[Path, int]:
    """A new folder of :func:`new_part`, and the handle of its lock."""
    for _ in range(_TRIES):
        path = new_part(beside)
        os.mkdir(path)
        if sys.platform == "win32":
            return path, os.open(os.devnull, os.O_RDONLY)
        with suppress(FileNotFoundError):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            if _lock(handle, path):
                return path, handle
            os.close(handle)
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def _exchange(one: Path, other: Path) -> None:
    """Exchange two files or folders in one step."""
    if sys.platform == "win32":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    system = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(system, "renameat2"):
        failed = system.renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE)
    elif hasattr(system, "renamex_np"):
        failed = system.renamex_np(*names, _SWAP)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))


def _lock(handle: int, path: Path) -> bool:
    """Whether a new part is locked and still there: :func:`remove_left` may have been faster."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks, where no part is removed either
    return os.path.lexists(path) and os.path.samestat(os.fstat(handle), os.lstat(path))


def _regular_target(name: str, path: str | Path) -> Path:
    """The file of an output, with all links resolved; OutputError where it is no regular file."""
    target = Path(path).expanduser()
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except ValueError as error:
        raise OutputError(f"{name} is {str(path)!r}, which is no path ({error}): pass another one.") from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise OutputError(
            f"{name} is {str(path)!r}, which is {kind} and cannot be written as a file: pass the path of a file."
        )
    return Path(os.path.realpath(target))


def _settle(folder: Path) -> None:
    """Flush a folder to the disk, with the permissions of the folder itself: some libraries create private files."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    for path in [*folder.rglob("*"), folder]:
        os.chmod(path, mode if path.is_dir() else mode & 0o666)
        if sys.platform == "win32" and path.is_dir():
            continue
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
