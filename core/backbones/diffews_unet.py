"""DiffewS on Stable Diffusion: a second input convolution, for a picture with its mask.

"Unleashing the Potential of the Diffusion Model in Few-shot Semantic Segmentation" (NeurIPS 2024). The keys and values
that the query sees of its supports are no part of the network: ``polydit.core.conditioning.KeyValueBank`` carries them.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .embedding import widened
from .sd_unet import SD21, build_from_official, start_from
from .variant import extends

__all__ = ["DiffewsUNet", "diffews_from_official", "diffews_to_official"]


class _InputConv(nn.Conv2d):
    """The input convolution, which hands an input of other channels to another one."""

    reference: tuple[nn.Conv2d, ...] = ()  # in a tuple it is no child: its names are those of the network

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w), or (B, 2 C, h, w) -> (B, width, h, w)."""
        return super().forward(x) if x.shape[1] == self.in_channels else self.reference[0](x)


class DiffewsUNet(UNet2DConditionModel):
    """Stable Diffusion's UNet that also reads a picture with its mask, as twice the channels.

    Latents (B, C, h, w) are a query, (B, 2 C, h, w) a support: the picture's latents, then the mask's. Everything but
    the first convolution is shared, and called as in diffusers.

    Args:
        **kwargs: of ``UNet2DConditionModel``.
    """

    @extends(UNet2DConditionModel)
    @register_to_config
    def __init__(self, in_channels: int = 4, **kwargs: Any) -> None:
        super().__init__(in_channels=in_channels, **kwargs)
        plain: nn.Conv2d = self.conv_in
        shape: dict[str, Any] = {"kernel_size": plain.kernel_size, "padding": plain.padding}
        self.conv_in_ref = nn.Conv2d(2 * in_channels, plain.out_channels, **shape)
        own = _InputConv(in_channels, plain.out_channels, **shape)
        own.reference = (self.conv_in_ref,)
        self.conv_in: _InputConv = own
        self.reset_reference()

    def reset_reference(self) -> None:
        """Start the second convolution as two copies of the first, halved."""
        with torch.no_grad():
            self.conv_in_ref.weight.copy_(widened(self.conv_in.weight, 2 * self.config.in_channels))
            self.conv_in_ref.bias.copy_(self.conv_in.bias)

    @classmethod
    def from_folder(cls, source: str | None = None) -> DiffewsUNet:
        """Start training from Stable Diffusion 2.1; see :func:`start_from`.

        Args:
            source: folder of a Stable Diffusion pipeline in diffusers format, or of its UNet.

        Raises:
            PolyditError: there is no such UNet.
        """
        model, pretrained = start_from(cls, source, {}, SD21)
        if pretrained is not None:
            model.reset_reference()
        return model


def diffews_from_official(state_dict: dict[str, Tensor], **config: Any) -> DiffewsUNet:
    """The model of the released ``unet`` folder, 865,934,084 parameters; arguments of ``UNet2DConditionModel``."""
    return build_from_official("diffews", DiffewsUNet, state_dict, config)


def diffews_to_official(model: DiffewsUNet) -> dict[str, Tensor]:
    """Official names, which are ours."""
    return dict(model.state_dict())
