"""The package changes nothing in the process but its own entries in the registries of transformers."""

import gc
import json
import subprocess
import sys

import torch
from projects import LENGTH, Classifier, loaders
from torch.optim.optimizer import _global_optimizer_post_hooks

from papa_lightning import calibrate, restore_attention, swap_attention

PROGRAM = """
import json, sys, threading, warnings
import datasets, lightning.pytorch as L, lightning.pytorch.cli, pytorch_lightning, torch, torchmetrics, transformers
import lightning.pytorch.callbacks, lightning.pytorch.loggers
import torch.nn.modules.module as hooks_of_modules
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

steps = sys.modules["torch.optim.optimizer"]
CLASSES = [
    torch.optim.Optimizer, torch.optim.AdamW, LRScheduler, nn.Module, nn.Parameter, torch.Tensor, nn.Linear,
    transformers.PreTrainedModel, transformers.PretrainedConfig, transformers.BertModel, transformers.AutoModel,
    L.Trainer, L.Callback, L.LightningModule, L.LightningDataModule, L.cli.LightningCLI,
    pytorch_lightning.Trainer, pytorch_lightning.Callback, pytorch_lightning.LightningModule, torchmetrics.Metric,
]

def snapshot():
    def same(one):
        return id(one) if callable(one) or isinstance(one, (property, classmethod, staticmethod)) else repr(one)

    def attributes(cls):
        ours = {name: same(value) for name, value in vars(cls).items() if not name.startswith("_abc")}
        return {name: value for name, value in ours.items() if name not in ("__subclasshook__", "__weakref__")}

    found = {f"{cls.__module__}.{cls.__qualname__}": [attributes(cls), repr(cls.__bases__)] for cls in CLASSES}
    found["hooks of all modules"] = {
        name: repr(value) for name, value in vars(hooks_of_modules).items() if name.startswith("_global_")
    }
    found["hooks of all optimizers"] = {
        name: repr(value) for name, value in vars(steps).items() if name.startswith("_global_optimizer")
    }
    found["warnings"] = repr(warnings.filters), id(warnings.showwarning)
    found["finders"] = repr(sys.meta_path), repr(sys.path_hooks), sys.path
    found["hooks of python"] = id(sys.excepthook), id(threading.excepthook), id(sys.unraisablehook)
    found["torch"] = [
        torch.get_num_threads(), str(torch.get_default_dtype()), torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(), torch.initial_seed(),
    ]
    found["models of transformers"] = sorted({*CONFIG_MAPPING.keys()} - {"papa_transformer"})
    found["registered models"] = sorted(
        config.__name__ for config in MODEL_MAPPING._extra_content if config.__name__ != "TransformerConfig"
    )
    return found

before = snapshot()
import papa_lightning, papa_lightning.criteria, papa_lightning.study, papa_lightning.benchmark, papa_lightning.figures
import papa_lightning.cli.main
after = snapshot()
print(json.dumps([name for name in before if before[name] != after[name]]))
"""


def test_importing_the_package_leaves_the_process_as_it_was() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_restored_encoder_leaves_no_hook_on_optimizers() -> None:
    module, data = Classifier().eval(), loaders()["val_dataloaders"]
    gc.collect()  # encoders of other tests
    before = len(_global_optimizer_post_hooks)
    constants = calibrate(module.bert, data, LENGTH)
    swap_attention(module.bert, "constant", constants=constants, heads=[(0, 1), (1, 0)])
    assert len(_global_optimizer_post_hooks) == before
    with torch.no_grad():
        module(next(iter(data)))
    assert len(_global_optimizer_post_hooks) == max(before, 1), "one for all encoders"
    restore_attention(module.bert)
    gc.collect()
    assert len(_global_optimizer_post_hooks) == before
