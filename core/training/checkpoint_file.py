"""The file of a checkpoint: written straight to the disk, read without running code, and of a known format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from ... import __version__
from ..errors import PolyditError

__all__ = ["FORMAT", "DiskCheckpointIO", "flush_folder", "read_checkpoint", "signature"]

FORMAT = 1
"""Number of the layout of our checkpoints; it grows when an older PolyDiT could not go on from a newer file."""


def signature() -> dict[str, Any]:
    """What a checkpoint says about the program that wrote it."""
    return {"format": FORMAT, "version": __version__}


class DiskCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint tensor by tensor into the file that it is given.

    Lightning's own goes through a copy of the whole checkpoint in memory and a second one in the system's temporary
    folder, which is often small, and where a killed process leaves it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write and wait until the bytes are on the disk.

        Raises:
            OSError: the disk is full or the file cannot be written.
        """
        try:
            with open(path, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except RuntimeError as error:
            # The writer of the archive complains about its place in the file; what happened is in the context.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def flush_folder(path: Path) -> None:
    """Have the names in a folder on the disk, so that a rename outlives a power failure."""
    if os.name != "posix":
        return  # other systems open no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A training checkpoint on the CPU.

    Raises:
        PolyditError: missing, unreadable, of a newer format, not finite, or something else than tensors and plain
            values (never unpickled).
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise PolyditError(f"--ckpt_path {path}: there is no such checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        with open(path, "rb") as file:
            bare = file.read(1) == b"\x80"  # a pickle that is not in torch's archive
        if bare or "weights_only" in str(error) or "Unsupported" in str(error):
            raise PolyditError(
                f"{path}: holds more than tensors and could run code; refused, give a checkpoint of `polydit fit`"
            ) from error
        raise PolyditError(
            f"{path}: is not a whole checkpoint; use another one, such as best.ckpt"
        ) from error
    if not isinstance(checkpoint, dict) or "polydit" not in checkpoint:
        raise PolyditError(
            f"{path}: is not a checkpoint of `polydit fit`; weights alone go to --model.init_weights"
        )
    written = checkpoint["polydit"]
    if written.get("format", 0) > FORMAT:
        raise PolyditError(
            f"{path}: was written by PolyDiT {written.get('version', '?')} in checkpoint format {written['format']}; "
            f"this is {__version__}, which reads up to format {FORMAT}: upgrade PolyDiT"
        )
    for part in ("state_dict", "current_model_state"):
        for name, value in checkpoint.get(part, {}).items():
            if not torch.isfinite(value).all():
                raise PolyditError(
                    f"{path}: weight {name} holds NaN or infinity; use another checkpoint, such as best.ckpt"
                )
    return checkpoint
