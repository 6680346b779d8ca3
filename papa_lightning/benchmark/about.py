"""What a benchmark was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from papa_lightning.benchmark.settings import BenchmarkSettings
from papa_lightning.study.versions import versions


def about(settings: BenchmarkSettings, device: torch.device) -> dict[str, Any]:
    """Machine, versions, and what else the numbers depend on; no path and no name of a machine.

    Args:
        settings: What was asked.
        device: Where it ran.
    """
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": device.type if device.type == "cpu" else f"{device.type} ({_device_name(device)})",
        "threads": settings.threads or torch.get_num_threads(),
        "dtype": settings.dtype,
        "seed": settings.seed,
        "repeats": settings.repeats,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }


def cpu_name() -> str:
    """The model of the processor, as the system has it."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
