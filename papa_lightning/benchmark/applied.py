"""Size and speed of the encoders of a study with the heads that its report proposes, in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from papa_lightning.benchmark.backends import REFERENCE, use_backend
from papa_lightning.benchmark.encoders import copy_of, make_batches
from papa_lightning.benchmark.settings import LEAST_REPEATS, BenchmarkSettings, Size
from papa_lightning.benchmark.timing import Spread, interleaved_times, synchronizer
from papa_lightning.calibration import AttentionConstants
from papa_lightning.encoders import SupportedEncoder, swap_attention
from papa_lightning.encoders.loading import load_plain_encoder
from papa_lightning.encoders.projections.trimmed import trimmed_state
from papa_lightning.errors import PapaError
from papa_lightning.export.build import count_parameters
from papa_lightning.ranking import HeadRanking
from papa_lightning.runtime import find_device, machine_facts
from papa_lightning.study.report.answer import Proposal, proposals
from papa_lightning.study.report.applied import Applied, load_applied, save_applied
from papa_lightning.study.report.data import read_study
from papa_lightning.study.report.page import write_report
from papa_lightning.study.store import StudyFolder

#: Sequences of a batch, and runs of each encoder after those that warm up.
BATCH, REPEATS, WARMUP = 16, LEAST_REPEATS, 2


def timed_report(folder: str | Path) -> tuple[Path, list[str]]:
    """The report of a study with the speed of the heads that it proposes, and what could not be timed."""
    notes = measure_proposals(folder)
    return write_report(folder), notes


def measure_proposals(folder: str | Path) -> list[str]:
    """Time the heads that the report of a study proposes against the stock encoder, where that was not done before.

    Encoders run with random tokens without padding, as in ``papa benchmark``. The measurements are a file of the study,
    so that its report is the same each time; they are repeated for other heads.

    Args:
        folder: Folder of a study.

    Returns:
        Sentences on encoders that could not be measured.
    """
    data = read_study(folder)
    settings = StudyFolder(data.folder).read()["settings"]
    known = {(one.encoder, one.task, one.heads, one.ranking): one for one in load_applied(data.folder)}
    found, failed = [], []
    for proposal in proposals(data):
        if (ranking := proposal.ranking_name) is None or proposal.constants is None:
            continue
        key = (proposal.encoder, proposal.task, proposal.heads, ranking)
        try:
            found.append(known.get(key) or _measure(proposal, settings))
        except PapaError as error:
            failed.append(f"{proposal.encoder} on {proposal.task} was not timed: {error}")
    if found != list(known.values()):
        save_applied(data.folder, found)
    return failed


def _measure(proposal: Proposal, settings: Mapping[str, Any]) -> Applied:
    """Time the proposed heads of one encoder on its own constants."""
    name = settings.get("encoders", {}).get(proposal.encoder)
    if not isinstance(name, str):
        raise PapaError(f"study.json does not say where encoder {proposal.encoder!r} is: run the study again.")
    assert proposal.constants is not None
    assert proposal.ranking is not None
    device = find_device(str(settings.get("device", "auto")))
    stock: nn.Module = load_plain_encoder(name).to(device)  # type: ignore[arg-type]
    constants = AttentionConstants.load(proposal.constants).filled()
    swapped = copy_of(SupportedEncoder.find(stock).model)
    heads = HeadRanking.load(proposal.ranking).first(proposal.heads)
    swap_attention(swapped, "constant", heads=heads, constants=constants)
    size = Size(0, 0, 0, BATCH, constants.max_length, 0.0)
    return _timed(proposal, stock, swapped, size, device)


def _timed(proposal: Proposal, stock: nn.Module, swapped: nn.Module, size: Size, device: torch.device) -> Applied:
    found = SupportedEncoder.find(swapped)
    parameters = count_parameters(found.model, trimmed_state(found))
    vocabulary = int(found.model.config.vocab_size)
    batches = make_batches(BenchmarkSettings(repeats=REPEATS), size, device, vocabulary)
    encoders = {"stock": SupportedEncoder.find(stock).model, "constant": found.model}
    for encoder in encoders.values():
        use_backend(encoder, REFERENCE)
    with torch.inference_mode():
        runs = {name: lambda own=encoder: own(**batches[0]) for name, encoder in encoders.items()}
        times = interleaved_times(runs, REPEATS, WARMUP, synchronizer(device))
    quotients = Spread.of([before / after for before, after in zip(times["stock"], times["constant"], strict=True)])
    before, after = (Spread.of(times[name]).median for name in ("stock", "constant"))
    return Applied(
        proposal.encoder,
        proposal.task,
        proposal.heads,
        str(proposal.ranking_name),
        f"{size.batch}x{size.length}",
        after,
        before,
        before / after,
        quotients.low,
        quotients.high,
        parameters,
        machine_facts(device),
    )
