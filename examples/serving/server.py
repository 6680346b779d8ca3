"""A server of sentence embeddings in one process: a queue, a thread that batches what is waiting, and futures."""

import json
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from papa_lightning.encoders import Packer, similar_lengths

Row: TypeAlias = Sequence[int]
"""The token ids of a text, with its special tokens and without padding."""
Layout = Literal["plain", "segment"]
"""Where the tokens of a row stood when constants were calibrated: from slot 0 on, or the last one in the last slot."""
Array: TypeAlias = NDArray[Any]
Forward: TypeAlias = Callable[[Sequence[Row]], Array]
"""Embeddings (N, d) of the rows of a batch."""
Batching: TypeAlias = Callable[[Sequence[int]], Sequence[Sequence[int]]]
"""Batches of the rows that are waiting: from their numbers of tokens to the places of those of each batch."""


def by_tokens(tokens: int) -> Batching:
    """Rows of similar length together, at most so many tokens a batch; the shortest first, so that fewer rows wait."""
    return lambda counts: [batch.tolist() for batch in reversed(similar_lengths(torch.tensor(counts), tokens))]


def in_order(rows: int) -> Batching:
    """So many rows a batch in the order of their arrival, which is what by_tokens is compared with."""
    return lambda counts: [range(first, min(first + rows, len(counts))) for first in range(0, len(counts), rows)]


def arrange(rows: Sequence[Row], layout: Layout, length: int) -> dict[str, Array]:
    """The rows as a padded batch (B, T): T is the longest row, or the length of the constants where rows have holes."""
    width = length if layout == "segment" else max(map(len, rows))
    ids, mask = np.zeros((2, len(rows), width), dtype=np.int64)
    for place, row in enumerate(rows):
        columns = np.arange(len(row))
        if layout == "segment":
            columns[-1] = width - 1
        ids[place, columns], mask[place, columns] = row, 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def mean(hidden: Array, mask: Array) -> Array:
    """Mean of the hidden states of the real tokens: (B, T, d) and (B, T) to (B, d)."""
    weights = mask[:, :, None].astype(hidden.dtype)
    pooled: Array = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
    return pooled


@dataclass
class TorchForward:
    """An encoder of transformers, swapped or not, over the real tokens alone."""

    encoder: Any
    layout: Layout = "plain"
    length: int = 512

    def __post_init__(self) -> None:
        self.packer = Packer.of(self.encoder)

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Row]) -> Array:
        names = {"input_ids", "attention_mask"}
        padded = {name: torch.from_numpy(one) for name, one in arrange(rows, self.layout, self.length).items()}
        packed = self.packer.pack({name: one for name, one in padded.items() if name in names})
        if packed is None:
            raise SystemExit(f"a {self.encoder.config.model_type} cannot be packed in the layout {self.layout}")
        batch = packed.batch(torch.arange(len(rows)))
        with batch.prepared(self.encoder.device) as arguments:
            hidden = self.encoder(**arguments).last_hidden_state
        return mean(hidden.float().cpu().numpy(), batch.mask.numpy())


class OnnxForward:
    """An ONNX file in onnxruntime; one that takes position_ids gets real tokens with the places where they stood."""

    def __init__(self, path: str | Path, layout: Layout = "plain", length: int = 512) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads otherwise keep the cores busy for a while after each batch, and tokenizers and requests need them too.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [one.name for one in self.session.get_inputs()]
        self.layout, self.length, self.first = layout, length, 0
        if "position_ids" in self.inputs:
            self.first = json.loads((Path(path).parent / "papa.json").read_text())["first_position_id"]
        elif layout == "segment":
            raise SystemExit(
                "rows with holes need a graph with position_ids: papa export --onnx true --position_ids true"
            )

    def __call__(self, rows: Sequence[Row]) -> Array:
        batch = arrange(rows, self.layout, self.length)
        if "position_ids" in self.inputs:
            order = np.argsort(batch["attention_mask"] == 0, axis=1, kind="stable")[:, : max(map(len, rows))]
            batch = {name: np.take_along_axis(one, order, axis=1) for name, one in batch.items()}
            batch["position_ids"] = order + self.first
        (hidden,) = self.session.run(None, {name: batch[name] for name in self.inputs})
        return mean(hidden, batch["attention_mask"])


class Server:
    """Answers requests with the embeddings of their rows, batch by batch.

    The thread takes all requests that are waiting, divides them into batches, and answers them before it looks at the
    queue again: no request waits for later ones, and the more are waiting, the fuller are the batches. A queue of
    limited size makes those who ask wait where more comes in than goes out.
    """

    def __init__(self, forward: Forward, batching: Batching, most_waiting: int = 10_000) -> None:
        self._forward, self._batching = forward, batching
        self._waiting: queue.Queue[tuple[Row, Future[Array]] | None] = queue.Queue(most_waiting)
        self._thread = threading.Thread(target=self._serve, name="server", daemon=True)
        self.batches: list[tuple[int, int]] = []  # requests, and tokens with padding, of each batch

    def submit(self, row: Row) -> Future[Array]:
        """The future embedding (d,) of a row of at least one token."""
        if not row:
            raise ValueError("a request has no tokens: send at least one.")
        future: Future[Array] = Future()
        self._waiting.put((row, future))
        return future

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Answer what is waiting, and stop."""
        self._waiting.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while taken := self._take():
            requests = [one for one in taken if one is not None]
            for places in self._batching([len(row) for row, _ in requests]):
                self._answer([requests[place] for place in places])
            if len(requests) < len(taken):
                return

    def _take(self) -> list[tuple[Row, "Future[Array]"] | None]:
        """All that is waiting, at least one; None ends the server."""
        taken = [self._waiting.get()]
        while taken[-1] is not None:
            try:
                taken.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        return taken

    def _answer(self, requests: Sequence[tuple[Row, "Future[Array]"]]) -> None:
        requests = [one for one in requests if one[1].set_running_or_notify_cancel()]
        if not requests:
            return
        rows = [row for row, _ in requests]
        self.batches.append((len(rows), len(rows) * max(map(len, rows))))
        try:
            embeddings = self._forward(rows)
        except Exception as error:  # those who asked are told; the server goes on
            for _, future in requests:
                future.set_exception(error)
            return
        for (_, future), embedding in zip(requests, embeddings, strict=True):
            future.set_result(embedding)
