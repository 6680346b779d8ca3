"""Run of a comparison of kinds: missing trainings are done, and finished ones are kept."""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import Any

import pandas as pd
import torch

from papa_lightning import datamodules, from_scratch, tasks  # noqa: F401 (settings name their classes)
from papa_lightning.calibration import AttentionConstants
from papa_lightning.callbacks import SwappedAttention, Throughput
from papa_lightning.datamodules.reading.files import content_hash
from papa_lightning.datamodules.rows.tokenizing import fingerprint
from papa_lightning.either_lightning import L
from papa_lightning.encoders import is_calibrated, swap_attention, swapped_layers
from papa_lightning.encoders.loading import check_plain, load_encoder
from papa_lightning.errors import PapaError
from papa_lightning.files.writing import write_atomically
from papa_lightning.from_scratch import FromScratchTask
from papa_lightning.lightning_project.filling import constants_in_use
from papa_lightning.progress import Progress
from papa_lightning.runtime import computing_versions, find_device, release_memory, versions
from papa_lightning.study.comparison.report import write_kinds_report
from papa_lightning.study.comparison.results import KindResult, kinds_table
from papa_lightning.study.comparison.settings import KindsSettings
from papa_lightning.study.executors import Backend, check_num_workers, do_pieces, gpus_of, useful_workers
from papa_lightning.study.store import StudyFolder, digest, encoder_identity, with_contents
from papa_lightning.study.workbench import build
from papa_lightning.tasks import EncoderTask

#: Arguments whose content the fingerprints of data module and tokenizer cover.
_FINGERPRINTED = ("data_dir", "files", "tokenizer")
#: Arguments that the task takes from its data.
_FROM_DATA = ("num_labels", "max_length", "metrics", "label_names")


class KindsStudy:
    """Scores, speed, memory and size of variants of a model, each trained for the same steps with every seed.

    Finished results are files named by a hash of the settings and of the content of files that these name. A comparison
    that was killed resumes.

    Args:
        settings: Settings of the comparison.
        seeds: Seeds of the initial weights and of the order of the examples.
        output: Folder of the study.

    Raises:
        StudyError: When the folder cannot hold a study.
    """

    def __init__(self, settings: KindsSettings, seeds: Sequence[int], output: str | Path) -> None:
        self.settings, self.seeds, self.folder = settings, list(seeds), StudyFolder(output)
        self.folder.check()

    def missing(self) -> list[tuple[str, int]]:
        """Variant and seed of the missing trainings, in their order."""
        return self._missing(cell_hashes(self.settings, self.seeds))

    def run(self, num_workers: int = 1, backend: Backend = "processes", progress: bool = True) -> pd.DataFrame:
        """Do the missing trainings, and write table, figures and page.

        Args:
            num_workers: Number of worker processes; on GPUs at most one works for each.
            backend: Where the workers run.
            progress: Whether to show a progress bar.

        Returns:
            The table, one row for each training.

        Raises:
            PapaError: For a bad `num_workers`; when another process works in the folder; when something cannot be built
                or trained. Finished results are kept.
        """
        check_num_workers(num_workers, backend)
        device = device_of(self.settings)
        num_workers = useful_workers(num_workers, backend, device)
        how: dict[str, Any] = {"num_workers": num_workers, "backend": backend, "gpus": gpus_of(device)}
        with self.folder.claimed():
            plain = asdict(self.settings)
            hashes = cell_hashes(self.settings, self.seeds)  # computed again, because files may have changed
            files = {"cells": [self.folder.relative(self.folder.cell(key)) for key in hashes.values()]}
            self.folder.clear(keep_features=False)
            self.folder.write({"kinds": plain, "seeds": self.seeds}, {"versions": versions()}, files)
            missing = [(*cell, hashes[cell]) for cell in self._missing(hashes)]
            with Progress(total=len(missing), desc="Training", unit="model", disable=not progress) as bar:

                def trained(cell: object, seconds: float) -> None:
                    bar.update()
                    self._table(hashes.values())

                work = partial(run_cell, json.dumps(plain), str(self.folder.path))
                name = "variant {0[0]}, seed {0[1]}".format
                do_pieces(work, missing, trained, name=name, **how)
            write_kinds_report(self.folder.path)
            return self._table(hashes.values())

    def _table(self, keys: Iterable[str]) -> pd.DataFrame:
        """Collect the finished results into the table, and write it."""
        finished = (key for key in keys if self.folder.cell(key).exists())
        table = kinds_table(self.folder.result(key, KindResult.load) for key in finished)
        write_atomically(self.folder.path / "kinds.csv", table.to_csv(index=False).encode())
        return table

    def _missing(self, hashes: Mapping[tuple[str, int], str]) -> list[tuple[str, int]]:
        """The missing trainings in their order, seed by seed."""
        cells = [(variant, seed) for seed in self.seeds for variant in self.settings.variants]
        return [cell for cell in cells if not self.folder.cell(hashes[cell]).exists()]


def device_of(settings: KindsSettings) -> torch.device:
    """The device that Lightning's Trainer will choose."""
    return find_device(settings.accelerator if settings.accelerator in ("auto", "cpu") else "auto")


def cell_hashes(settings: KindsSettings, seeds: Sequence[int]) -> dict[tuple[str, int], str]:
    """Hash of everything that each training depends on; files count by content, so that they may move."""
    encoders: dict[str, Any] = {}

    def contents(arguments: Mapping[str, Any]) -> Any:
        """Arguments with the content of files, and with the weights of a pretrained encoder."""
        name = arguments.get("encoder")
        if not isinstance(name, str):
            return with_contents(arguments)
        if name not in encoders:
            encoders[name] = encoder_identity(load_encoder(name))
        return with_contents({**arguments, "encoder": None}) | {"encoder": encoders[name]}

    plain = {name: value for name, value in asdict(settings).items() if name not in ("model", "data", "variants")}
    device = device_of(settings).type
    data = build(L.LightningDataModule, "kinds.data", settings.data)
    if hasattr(data, "fingerprint"):
        given = {k: value for k, value in (settings.data.get("init_args") or {}).items() if k not in _FINGERPRINTED}
        tokenizer = getattr(data, "tokenizer", None)
        known = [data.fingerprint(), None if tokenizer is None else fingerprint(tokenizer)]
        data = [settings.data["class_path"], with_contents(given), known]
    else:
        data = with_contents(settings.data)
    common = [plain, settings.model["class_path"], data, computing_versions(), device]
    models = {}
    for name in settings.variants:
        swap = settings.swap(name)
        start = {"constants": content_hash(swap["constants"])} if swap.get("constants") is not None else {}
        models[name] = [contents(settings.arguments(name)), {**swap, **start}]
    reference = models[settings.reference] if settings.equal_parameters else None
    return {
        (variant, seed): digest(["kinds", common, models[variant], reference, seed])
        for variant in settings.variants
        for seed in seeds
    }


def run_cell(settings: str, output: str, cell: tuple[str, int, str]) -> float:
    """Train one variant with one seed (`cell` ends with its hash), and write its result; returns the seconds."""
    start, (variant, seed, _) = time.perf_counter(), cell
    study = KindsSettings(**json.loads(settings))
    data = build(L.LightningDataModule, "kinds.data", study.data)
    L.seed_everything(seed, verbose=False)
    task = make_variant(study, variant, data)
    trainer = L.Trainer(
        max_steps=study.steps,
        max_epochs=-1,
        accelerator=study.accelerator,
        # Lightning would take the first GPU, and every worker has one of its own.
        devices=[torch.cuda.current_device()] if device_of(study).type == "cuda" else 1,
        precision=study.precision,  # type: ignore[arg-type] # Lightning refuses what it does not know
        gradient_clip_val=study.gradient_clip,
        callbacks=[throughput := Throughput(), *_learning_rates(study, variant, task)],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    release_memory()  # memory of the last training would hide that of this one
    trainer.fit(task, datamodule=data)
    trainer.limit_val_batches = 1.0
    scores = {name: float(one) for name, one in trainer.validate(task, datamodule=data, verbose=False)[0].items()}
    seconds = time.perf_counter() - start
    result = _result(study, cell, task, scores, throughput.facts, seconds)
    result.save(StudyFolder(output).cell(result.hash))
    return seconds


def _learning_rates(settings: KindsSettings, variant: str, task: EncoderTask) -> list[L.Callback]:
    """What gives the parameters that a kind adds to a pretrained encoder a learning rate of their own."""
    swap = settings.swap(variant)
    rate = swap.get("added_learning_rate")
    if rate is None:
        return []
    constants, length = swap.get("constants"), task.hparams["max_length"]
    callback = SwappedAttention(swap["kind"], swap.get("kind_options"), rate, length, constants, save_constants=False)
    if not any(list(callback.own_parameters(layer)) for layer in swapped_layers(task.encoder)):
        raise PapaError(
            f"kinds.variants.{variant} has added_learning_rate={rate!r}, but kind {swap['kind']!r} adds no parameters: "
            "leave it out."
        )
    return [callback]


def make_variant(settings: KindsSettings, variant: str, data: L.LightningDataModule) -> EncoderTask:
    """The task of a variant, with the attention of its kind, and as many parameters as the reference has."""
    task = _make(settings, variant, data)
    if not settings.equal_parameters or variant == settings.reference or not isinstance(task, FromScratchTask):
        return task
    wanted = learning_parameters(_make(settings, settings.reference, data))
    config = task.encoder.config
    of_a_column = config.num_hidden_layers * (2 * config.hidden_size + 1)
    width = config.intermediate_size + round((wanted - learning_parameters(task)) / of_a_column)
    if width < 1:
        raise PapaError(
            f"kinds.variants has {variant!r}, whose attention alone has more parameters than {settings.reference!r}: "
            "pass equal_parameters=false, or a larger model."
        )
    return _make(settings, variant, data, intermediate_size=width)


def learning_parameters(task: EncoderTask) -> int:
    """Number of trained parameters."""
    return sum(one.numel() for one in task.parameters() if one.requires_grad)


def _make(settings: KindsSettings, variant: str, data: L.LightningDataModule, **changed: Any) -> EncoderTask:
    arguments, swap = settings.arguments(variant) | changed, settings.swap(variant)
    for name in _FROM_DATA:
        value = getattr(data, name, None)
        if value is not None:
            arguments[name] = list(value) if isinstance(value, tuple) else value
    if isinstance(arguments.get("encoder"), str):
        check_plain(arguments["encoder"])
    path = settings.model["class_path"]
    cls = getattr(from_scratch, path, None) or locate(path)
    if "constants" not in swap and isinstance(cls, type) and issubclass(cls, FromScratchTask):
        arguments, swap = arguments | swap, {}
    task: EncoderTask = build(EncoderTask, "kinds.model", {**settings.model, "init_args": arguments})
    if swap.get("kind", "dynamic") != "dynamic":
        constants = None if "constants" not in swap else AttentionConstants.load(swap["constants"])
        if constants is not None:
            constants = constants_in_use(constants, None, task.hparams["preset"])
        length = task.hparams["max_length"]
        options = swap.get("kind_options")
        swap_attention(task.encoder, swap["kind"], constants=constants, max_length=length, options=options)
        if not is_calibrated(task.encoder):  # it would never be calibrated, and train the original attention
            raise PapaError(
                f"kinds.variants.{variant} has kind {swap['kind']!r} with kind_options {options}, which starts from "
                "averages of the encoder, but no constants: make them with `papa calibrate`, and add constants: FILE."
            )
    return task


def _result(
    study: KindsSettings,
    cell: tuple[str, int, str],
    task: EncoderTask,
    scores: Mapping[str, float],
    facts: Mapping[str, float],
    seconds: float,
) -> KindResult:
    kind = study.variants[cell[0]].get("kind", (study.model.get("init_args") or {}).get("kind", "dynamic"))
    return KindResult(
        variant=cell[0],
        kind=kind if isinstance(kind, str) else ",".join(kind),
        seed=cell[1],
        metric=task.score_name.removeprefix("val/"),
        score=scores[task.score_name],
        loss=scores["val/loss"],
        parameters=int(facts["parameters"]),
        steps=study.steps,
        seconds=seconds,
        versions=versions(),
        hash=cell[2],
        **{name: facts.get(name, math.nan) for name in ("steps_per_second", "peak_memory_bytes", "step_memory_bytes")},
    )
