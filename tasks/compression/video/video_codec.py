"""The video codec as diffusers saves and loads it."""

from __future__ import annotations

from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from .latent_video import LatentVideoCodec

__all__ = ["VideoCodec"]


class VideoCodec(LatentVideoCodec, ModelMixin, ConfigMixin):
    """`LatentVideoCodec` with ``save_pretrained`` and ``from_pretrained``; what is saved is ``frozen``.

    Args:
        width: see `LatentVideoCodec`, as the others.
        coarse_width: see there.
        inter_width: see there.
        inter_coarse_width: see there.
        drop: see there.
        frozen: see there.
    """

    @register_to_config
    def __init__(
        self,
        width: int = 64,
        coarse_width: int = 32,
        inter_width: int = 48,
        inter_coarse_width: int = 24,
        drop: int = 20,
        frozen: bool = False,
    ) -> None:
        super().__init__(width, coarse_width, inter_width, inter_coarse_width, drop, frozen)

    def frozen_copy(self) -> VideoCodec:
        """A copy with integers, for coding."""
        state = {name: value.detach().clone() for name, value in self.state_dict().items()}
        settings = {name: value for name, value in self.config.items() if not name.startswith("_")}
        copy = VideoCodec(**{**settings, "frozen": False})
        if self.config.frozen:
            copy.freeze()
        copy.load_state_dict(state)
        copy.freeze()
        copy.register_to_config(frozen=True)
        return copy.eval().requires_grad_(False)

    def to(self, *args: Any, **kwargs: Any) -> VideoCodec:
        """Stays on the CPU, in the types of its weights: coding is arithmetic with whole numbers."""
        return self

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> VideoCodec:
        """Load a folder; see diffusers. Weights are read as they were written, whatever ``dtype`` is."""
        kwargs.pop("torch_dtype", None)
        kwargs.pop("dtype", None)
        return super().from_pretrained(*args, **{**kwargs, "low_cpu_mem_usage": False})
