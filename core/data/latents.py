"""Latents and text embeddings that were computed before the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import PolyditError
from .pictures import sample_generator

__all__ = ["LatentPairs"]


class LatentPairs(Dataset[dict[str, Any]]):
    """Precomputed latents and text embeddings in DiT4SR's layout (arXiv:2503.23580), paired by stem.

    ``latent_hr/NAME.pt`` and ``latent_lr/NAME.pt`` (16, 64, 64), already shifted and scaled; if they are there, also
    ``prompt_embeds/NAME.pt`` (154, 4096), ``pooled_prompt_embeds/NAME.pt`` (2048,), and for dropped captions
    ``NULL_prompt_embeds.pt`` and ``NULL_pooled_prompt_embeds.pt`` in the root.

    Args:
        root: the folder.
        drop_caption: how often the caption is replaced by the empty one.
        seed: of these draws.

    Raises:
        PolyditError: no latents, a file without partner, or a file that is not a tensor.
    """

    _NULL = ("prompt_embeds", "pooled_prompt_embeds")

    def __init__(self, root: str | Path, *, drop_caption: float = 0.0, seed: int = 0) -> None:
        self.root, self.drop_caption, self.seed = Path(root).expanduser(), drop_caption, seed
        self.stems = sorted(path.stem for path in (self.root / "latent_hr").glob("*.pt"))
        if not self.stems:
            raise PolyditError(
                f"{self.root}: no latents (latent_hr/*.pt) in this folder; give a precomputed data set"
            )
        self.captioned = (self.root / "prompt_embeds").is_dir()
        folders = ["latent_lr", *(self._NULL if self.captioned else ())]
        for folder in folders:
            for stem in self.stems:
                if not (self.root / folder / f"{stem}.pt").is_file():
                    raise PolyditError(
                        f"{self.root / 'latent_hr' / stem}.pt: has no partner in {folder}; compute it"
                    )
        if drop_caption and not all((self.root / f"NULL_{name}.pt").is_file() for name in self._NULL):
            raise PolyditError(
                f"{self.root}: drop_caption needs NULL_prompt_embeds.pt and its pooled twin; compute them"
            )

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> dict[str, Any]:
        stem = self.stems[index % len(self.stems)]
        sample: dict[str, Any] = {"stem": stem}
        for folder in ("latent_hr", "latent_lr"):
            sample[folder] = self._tensor(self.root / folder / f"{stem}.pt")
        if self.captioned:
            chance = torch.rand((), generator=sample_generator(self.seed, index)).item()
            for name in self._NULL:
                empty = self.root / f"NULL_{name}.pt"
                sample[name] = self._tensor(
                    empty if chance < self.drop_caption else self.root / name / f"{stem}.pt"
                )
        return sample

    @staticmethod
    def _tensor(path: Path) -> Tensor:
        try:
            value = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for damaged files
            raise PolyditError(
                f"{path}: is not a saved tensor ({type(error).__name__}); compute it again"
            ) from error
        if not isinstance(value, Tensor):
            raise PolyditError(f"{path}: holds a {type(value).__name__}, not a tensor; compute it again")
        return value
