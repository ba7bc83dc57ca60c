"""DiffDIS on Stable Diffusion's UNet, behind the call of the transformers: what the released weights are."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from ...core.backbones.diffdis_unet import INJECTED, DiffdisUNet

__all__ = ["UNetDichotomy"]


class UNetDichotomy(nn.Module):
    """A ``DiffdisUNet`` behind the call of ``DichotomousDiT``; it has DiffDIS' parts inside.

    Args:
        unet: the network.
    """

    def __init__(self, unet: DiffdisUNet) -> None:
        super().__init__()
        self.unet = unet

    @property
    def patch_size(self) -> tuple[int, int]:
        """Latents that the sides of the input divide by: what the UNet halves, and the smallest scale."""
        return (2**INJECTED,) * 2

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        scales: Sequence[Tensor] | None = None,
        halves: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
    ) -> UNet2DConditionOutput:
        """Predict the noise of mask and edge half, (2B, 2 C, h, w) -> ``.sample`` (2B, C, h, w)."""
        dtype = self.unet.dtype
        return self.unet(
            hidden_states,
            timestep,
            None if encoder_hidden_states is None else encoder_hidden_states.to(dtype),
            class_labels=None if halves is None else halves.to(dtype),
            rgb_token=None if scales is None else [hidden_states, *scales],
        )
