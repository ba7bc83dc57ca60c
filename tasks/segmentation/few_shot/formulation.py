"""How masks become latents and back, and how a network is shown supports and asked; for training and pipeline alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ....core.conditioning import KeyValueBank

__all__ = ["Formulation"]

Text = Mapping[str, Tensor] | None


class Formulation:
    """The published one-step form of DiffewS.

    Args:
        timestep: what the network is always given as time.
    """

    def __init__(self, timestep: float = 1.0) -> None:
        self.timestep = timestep

    def config(self) -> dict[str, Any]:
        """JSON-ready; the constructor's arguments."""
        return {"timestep": self.timestep}

    def encode_mask(self, mask: Tensor, space: Any, sample: bool = False) -> Tensor:
        """Latents of a mask (B, 1, H, W) of 0 and 1: white on black, as a picture of three channels."""
        return space.encode((mask * 2 - 1).expand(-1, 3, -1, -1), sample=sample)

    def decode_mask(self, latents: Tensor, space: Any) -> Tensor:
        """Soft mask (B, 1, H, W) in [0, 1]: the mean of the colours, clipped."""
        return ((space.decode(latents).mean(1, keepdim=True) + 1) / 2).clamp(0, 1)

    def encode_supports(self, pictures: Tensor, masks: Tensor, space: Any, sample: bool = False) -> Tensor:
        """Pictures (B, S, 3, H, W) in [-1, 1] and masks (B, S, 1, H, W) to latents (B * S, 2 C, h, w)."""
        flat = [space.encode(pictures.flatten(0, 1), sample=sample)]
        flat.append(self.encode_mask(masks.flatten(0, 1), space, sample))
        return torch.cat(flat, dim=1)

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
        words = (
            {} if text is None else {"encoder_hidden_states": text["encoder_hidden_states"].to(latents.dtype)}
        )
        words = {name: value.expand(len(latents), -1, -1) for name, value in words.items()}
        return network(latents, timestep, **words).sample
