"""Which device and precision a command runs with."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from .errors import PolyditError

if TYPE_CHECKING:
    import torch

__all__ = ["check_device_name", "choose_device", "choose_dtype", "free_memory"]


def check_device_name(name: str) -> None:
    """Refuse what is no device at all, before torch is imported.

    Raises:
        PolyditError: with what there is.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise PolyditError(f"--device {name}: no such device; choose auto, cpu, cuda, cuda:N or mps")


def choose_device(name: str) -> torch.device:
    """The device for ``--device``; ``auto`` is the first of cuda, mps, cpu that this machine has.

    Raises:
        PolyditError: the machine does not have it.
    """
    import torch

    check_device_name(name)
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    device = torch.device(name)
    here = ["cpu"] + (["mps"] if mps else []) + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if (
        (device.type == "cuda" and not cuda)
        or (device.type == "mps" and not mps)
        or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count())
    ):
        build = "" if device.type != "cuda" or torch.version.cuda else " (this torch is built without CUDA)"
        raise PolyditError(f"--device {name}: not on this machine{build}; there is {', '.join(here)}")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision for ``--dtype``; ``auto`` is bfloat16 on CUDA that has it, else float32.

    On Apple's GPUs and on CPUs half precisions are slower or give black pictures in some models.
    """
    import torch

    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def free_memory(device: torch.device) -> int:
    """Bytes that a run on this device could take."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
