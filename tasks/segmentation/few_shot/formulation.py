"""How masks become latents and back, and how a network is shown supports and asked; for training and pipeline alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ....core.conditioning import KeyValueBank

__all__ = ["Formulation"]

Text = Mapping[str, Tensor] | None


@dataclass(frozen=True)
class Formulation:
    """The one-step form of DiffewS.

    Attributes:
        timestep: what the network is always given as time; 1 as published.
        size: side of the squares that pictures are resized to.
        threshold: of the hard mask.
        relative: the threshold is a share of the soft mask's greatest value, as published; False: of 1.
    """

    timestep: float = 1.0
    size: int = 512
    threshold: float = 0.25
    relative: bool = True

    def config(self) -> dict[str, Any]:
        """JSON-ready; the constructor's arguments."""
        return asdict(self)

    def encode_mask(self, mask: Tensor, space: Any, sample: bool = False) -> Tensor:
        """Latents of a mask (B, 1, H, W) of 0 and 1: white on black, as a picture of three channels."""
        return space.encode((mask * 2 - 1).expand(-1, 3, -1, -1), sample=sample)

    def decode_mask(self, latents: Tensor, space: Any) -> Tensor:
        """Soft mask (B, 1, H, W) in [0, 1]: the mean of the colours, clipped."""
        return ((space.decode(latents).mean(1, keepdim=True) + 1) / 2).clamp(0, 1)

    def cut(self, soft: Tensor, threshold: float | None = None) -> Tensor:
        """Hard mask of soft ones (B, 1, H, W), boolean; ``threshold`` None is the formulation's own."""
        level = torch.as_tensor(self.threshold if threshold is None else threshold, device=soft.device)
        if self.relative:
            level = level * soft.amax(dim=(1, 2, 3), keepdim=True)
        return soft > level

    def encode_supports(self, pictures: Tensor, masks: Tensor, space: Any, sample: bool = False) -> Tensor:
        """Pictures (B, S, 3, H, W) in [-1, 1] and masks (B, S, 1, H, W) to latents (B * S, 2 C, h, w)."""
        latents = space.encode(pictures.flatten(0, 1), sample=sample)
        return torch.cat([latents, self.encode_mask(masks.flatten(0, 1), space, sample)], dim=1)

    def show(
        self, network: nn.Module, bank: KeyValueBank, references: Tensor, shots: int, text: Text
    ) -> None:
        """Write supports (B * shots, 2 C, h, w), those of one query next to each other, into the bank."""
        with bank.writing(shots):
            self._run(network, references, text)

    def ask(self, network: nn.Module, bank: KeyValueBank, query: Tensor, text: Text) -> Tensor:
        """The network's raw answer to the query's latents (B, C, h, w): minus the latents of the mask."""
        with bank.reading():
            return self._run(network, query, text)

    def _run(self, network: nn.Module, latents: Tensor, text: Text) -> Tensor:
        timestep = latents.new_full((len(latents),), self.timestep)
        words = {
            name: value.to(latents.dtype).expand(len(latents), -1, -1) for name, value in (text or {}).items()
        }
        sample: Tensor = network(latents, timestep, **words).sample
        return sample
