"""Checkpoints from files and addresses: whole or refused, and never run."""

import functools
import io
import pickle
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from papa_lightning import PapaError, SequenceClassificationTask
from papa_lightning.tasks.checkpoints import read_checkpoint, read_weights

STATE = {"state_dict": {"weight": torch.arange(64.0)}, "hyper_parameters": {"encoder": "x"}}


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({str(self.trace)!r}, 'w').close()",))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Address of a server for the files of `tmp_path`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def saved(path: Path, content: Any = STATE) -> Path:
    torch.save(content, path)
    return path


def test_a_file_an_address_and_a_url_of_a_file(tmp_path: Path, address: str) -> None:
    path = saved(tmp_path / "good.ckpt")
    for place in (path, str(path), f"{address}/good.ckpt", path.as_uri()):
        assert torch.equal(read_checkpoint(place)["state_dict"]["weight"], torch.arange(64.0))


def test_an_address_is_read_anew(tmp_path: Path, address: str) -> None:
    saved(tmp_path / "last.ckpt")
    read_checkpoint(f"{address}/last.ckpt")
    saved(tmp_path / "last.ckpt", {"state_dict": {"weight": torch.ones(1)}})
    assert read_checkpoint(f"{address}/last.ckpt")["state_dict"]["weight"].tolist() == [1.0]


@pytest.mark.parametrize("where", ["{folder}/bad.ckpt", "file://{folder}/bad.ckpt", "{address}/bad.ckpt"])
def test_what_a_checkpoint_holds_is_not_run(where: str, tmp_path: Path, address: str) -> None:
    trace = tmp_path / "ran"
    saved(tmp_path / "bad.ckpt", {**STATE, "callbacks": Payload(trace)})
    with pytest.raises(PapaError, match=r"holds more than tensors and plain values \(.*exec\).*weights_only=False"):
        read_checkpoint(where.format(folder=tmp_path, address=address))
    assert not trace.exists()
    torch.load(tmp_path / "bad.ckpt", weights_only=False)
    assert trace.exists()  # the payload is one


def test_a_task_is_loaded_from_an_address_without_running_it(tmp_path: Path, address: str) -> None:
    trace = tmp_path / "ran"
    saved(tmp_path / f"{tmp_path.name}.ckpt", {**STATE, "callbacks": Payload(trace)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path / "home"))  # Lightning fetches there
        with pytest.raises(pickle.UnpicklingError):
            SequenceClassificationTask.load_from_checkpoint(f"{address}/{tmp_path.name}.ckpt")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{address}/none.ckpt", "404"),
        ("{folder}/none.ckpt", "there is no such file"),
        ("{folder}", "Is a directory"),
        ("http://127.0.0.1:1/x.ckpt", "which cannot be read"),
        ("nonsense://x.ckpt", "Protocol not known"),
        ("s3://bucket/x.ckpt", "s3"),
    ],
)
def test_places_without_a_checkpoint(place: str, message: str, tmp_path: Path, address: str) -> None:
    with pytest.raises(PapaError, match=message):
        read_checkpoint(place.format(folder=tmp_path, address=address))


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {},
        torch.ones(2),
        {"state_dict": [1]},
        {"state_dict": {1: torch.ones(1)}},
        {"state_dict": {}, "hyper_parameters": [1]},
        {"state_dict": {}, "hyper_parameters": None},
        {"state_dict": {}, "pytorch-lightning_version": 2},
    ],
)
def test_what_is_no_checkpoint(content: Any, tmp_path: Path) -> None:
    with pytest.raises(PapaError, match="which is no checkpoint: "):
        read_checkpoint(saved(tmp_path / "other.ckpt", content))


def test_no_cut_and_no_flipped_bit_is_accepted(tmp_path: Path) -> None:
    """A checkpoint accepted despite a flip, in unused names and dates, has the same content."""
    whole = saved(tmp_path / "whole.ckpt").read_bytes()
    damaged = tmp_path / "damaged.ckpt"
    refused = 0
    for place in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        for content in (bytes(flipped), whole[:place]):
            damaged.write_bytes(content)
            try:
                read = read_checkpoint(damaged)
            except PapaError:
                refused += 1
            else:
                assert torch.equal(read["state_dict"]["weight"], STATE["state_dict"]["weight"])
                assert read["hyper_parameters"] == STATE["hyper_parameters"]
    assert refused > len(whole) // 7  # all that are cut


def _zip(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, value in members.items():
            archive.writestr(zipfile.ZipInfo(name.replace("__", "/")), value)  # without the time of day
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text\n",
        b"PK\x03\x04 half",
        b"\x80\x02.",
        pickle.dumps({"state_dict": {}}),
        _zip(),
        _zip(readme=b"x"),
        _zip(archive__data=b"x"),
        _zip(**{"archive__data.pkl": b""}),
        _zip(**{"archive__data.pkl": b"\x80\x02garbage", "archive__version": b"3\n"}),
        _zip(**{"archive__data.pkl": pickle.dumps(1, 2), "archive__version": b"99\n"}),
    ],
)
def test_files_that_are_something_else(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.ckpt").write_bytes(content)
    with pytest.raises(PapaError, match=r"ckpt_path is .*(damaged or no checkpoint|which is no checkpoint)"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_a_bare_state_is_read_as_weights(tmp_path: Path) -> None:
    """Lightning writes such ones for itself, between forked ranks."""
    assert read_weights(saved(tmp_path / "state.pt", {"weight": torch.ones(1)}))["weight"].tolist() == [1.0]
