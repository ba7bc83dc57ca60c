"""The latent codec as diffusers saves and loads it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from .codec import LatentCodec

__all__ = ["PictureCodec"]


class PictureCodec(LatentCodec, ModelMixin, ConfigMixin):
    """`LatentCodec` with ``save_pretrained`` and ``from_pretrained``.

    What is saved is ``frozen``: integers, and float32 for what no bit depends on. A precision that is asked for is that
    of the networks' computing; the weights stay as they are, since a file names them.

    Args:
        width: see `LatentCodec`, as the others.
        coarse_width: see there.
        latent_width: see there.
        pixel_width: see there.
        pixel_depth: see there.
        frozen: see there.
    """

    @register_to_config
    def __init__(
        self,
        width: int = 64,
        coarse_width: int = 32,
        latent_width: int = 96,
        pixel_width: int = 64,
        pixel_depth: int = 4,
        frozen: bool = False,
    ) -> None:
        super().__init__(width, coarse_width, latent_width, pixel_width, pixel_depth, frozen)

    def frozen_copy(self) -> PictureCodec:
        """A copy with integers, for coding; on the same device."""
        state = {name: value.detach().clone() for name, value in self.state_dict().items()}
        settings = {name: value for name, value in self.config.items() if not name.startswith("_")}
        copy = PictureCodec(**{**settings, "frozen": False}).to(self.colour.device)
        if self.config.frozen:
            copy.freeze()
        copy.load_state_dict(state)
        copy.freeze()
        copy.register_to_config(frozen=True)
        return copy.eval().requires_grad_(False)

    def to(self, *args: Any, **kwargs: Any) -> PictureCodec:
        """Move to a device. A floating type is that of computing from now on; no weight is converted."""
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None:
            self.compute_dtype = dtype
        if device is not None:
            torch.nn.Module.to(self, device=device, non_blocking=non_blocking)
        return self

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> PictureCodec:
        """Load a folder; see diffusers. Weights are read as they were written, whatever ``dtype`` is."""
        asked = kwargs.pop("torch_dtype", None)
        asked = kwargs.pop("dtype", asked)
        model = super().from_pretrained(*args, **{**kwargs, "low_cpu_mem_usage": False})
        if isinstance(asked, torch.dtype):
            model.compute_dtype = asked
        return model
