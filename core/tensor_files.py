"""Safetensors files that others may read as far as they may read one's other files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

__all__ = ["save_tensors"]


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file, or over one; safetensors alone makes files that only their owner may read.

    Args:
        tensors: What it holds, on any device.
        path: The file.
        metadata: Entries of its header.

    Raises:
        OSError, SafetensorError: it cannot be written; the second is all that safetensors says of a full disk.
    """
    path.touch()
    mode = path.stat().st_mode  # the umask's, which cannot be asked for without changing it
    save_file(
        {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()},
        path,
        metadata=None if metadata is None else dict(metadata),
    )
    path.chmod(mode)
