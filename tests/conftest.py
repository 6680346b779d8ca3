"""Conditions of all tests: no hub, no home folder, and instructions that the processor has."""

import gc
import os

# Before torch and transformers are imported. Some virtual machines announce AMX instructions that they do not have, and
# half precision on the CPU would crash there.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
# The tests are of the CPU, where numbers repeat to the last bit, also on a machine with a GPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# Kernels for GPUs run on the CPU here, in Triton's interpreter; `make gpu` names a GPU, and runs tests/gpu on it.
if not os.environ["CUDA_VISIBLE_DEVICES"]:
    os.environ["TRITON_INTERPRET"] = "1"

from collections.abc import Iterator

import datasets
import pytest
import torch

# Where tests run in several processes, the first one reads their warnings in a thread for each, and threads that import
# a package at the same moment get halves of it.
import papa_lightning  # noqa: F401

# Tiny tensors gain nothing from threads, and lose much where other processes use the cores. Results must not hang on
# their number, so OMP_NUM_THREADS tries another.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the cache of the datasets library out of the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("hf_datasets_cache"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        patch.setenv("HF_DATASETS_CACHE", cache)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf_home")))
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


@pytest.fixture(scope="session", autouse=True)
def imports_stay() -> Iterator[None]:
    """Keep the garbage collector from looking at everything imported each time, a tenth of the time of the tests."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of a study that have everything imported already, in place of spawned ones."""
    from multiprocessing import forkserver

    from fresh_processes import context

    from papa_lightning.study import executors

    forkserver.ensure_running()  # not with the first worker: Ctrl-C is held back then, and would be in all others
    monkeypatch.setattr(executors, "get_context", lambda method: context)
