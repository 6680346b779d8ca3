"""New processes that have everything imported already: one server imports it, and is copied for each of them.

To start Python and import what the package needs takes seconds, longer than most tests do anything. The server has done
no more than that, so a process of it is as new as one that was spawned: what it is given travels by pickle.
"""

import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

context = multiprocessing.get_context("forkserver")
# No studies: a test asks whether the command line does without.
context.set_forkserver_preload(
    [
        "papa_lightning.cli.main",
        "papa_lightning.cli.trainer_verbs",
        "transformers.models.bert.modeling_bert",
        "transformers.models.roberta.modeling_roberta",
        "torch.distributed.fsdp",
        "lightning.pytorch.strategies",
        "pytest",
    ]
)


def in_a_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return value of a function of a module in a new process."""
    with ProcessPoolExecutor(1, context) as pool:
        return pickle.loads(pool.submit(_call, pickle.dumps((function, arguments))).result())


def _call(work: bytes) -> bytes:
    """As bytes, because torch would share the memory of tensors, which ends with the process."""
    torch.set_num_threads(1)
    function, arguments = pickle.loads(work)
    return pickle.dumps(function(*arguments))
