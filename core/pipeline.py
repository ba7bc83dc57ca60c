"""What the tasks' pipelines have in common beside diffusers' own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffusers import DiffusionPipeline

from .autoencoders import Autoencoder, as_autoencoder

if TYPE_CHECKING:
    from .adapters import LoadReport

__all__ = ["LoadsLora", "TaskPipeline"]


class LoadsLora:
    """A pipeline whose network takes LoRA files of any of the known formats."""

    def load_lora_weights(self, path: str | Path, scale: float = 1.0, adapter: str = "default") -> LoadReport:
        """Attach a LoRA file to the transformer, active beside those it has.

        Args:
            path: a safetensors file, as ``fit`` and ``export`` write it.
            scale: strength; 1 is as trained, 0 is off.
            adapter: name to give it.

        Returns:
            How many keys matched and at which scale; ``str`` of it is one line.

        Raises:
            PolyditError: the file is not a LoRA of this transformer; lists the first three modules that do not match.
        """
        from .adapters import load_lora

        return load_lora(self.transformer, path, scale, adapter)  # type: ignore[attr-defined]


class TaskPipeline(LoadsLora, DiffusionPipeline):
    """A pipeline with a ``transformer``, in pixel space where it has no ``vae``."""

    @property
    def space(self) -> Autoencoder:
        """Pixels or the autoencoder."""
        return as_autoencoder(getattr(self, "vae", None))
