"""The two networks of latent transparency: an encoder of offsets and a decoder of colours and alpha.

"Transparent Image Layer Diffusion using Latent Transparency" (LayerDiffuse), arXiv 2402.17113; module names are those
of the released weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, get_down_block, get_up_block
from torch import Tensor, nn

__all__ = ["OffsetEncoder", "TransparencyDecoder"]


class OffsetEncoder(ModelMixin, ConfigMixin):
    """Where, relative to its spread, the latent of a padded picture has to go so that it also tells the alpha.

    Starts as zero: no offset. 1,181,764 parameters with four latent channels.

    Args:
        latent_channels: of the autoencoder.
        widths: of the four levels; three of them halve the picture.
    """

    @register_to_config
    def __init__(self, latent_channels: int = 4, widths: Sequence[int] = (32, 64, 128, 256)) -> None:
        super().__init__()
        first, second, third, fourth = widths
        plan = [
            (4, first, 1), (first, first, 1), (first, second, 2), (second, second, 1), (second, third, 2),
            (third, third, 1), (third, fourth, 2), (fourth, fourth, 1), (fourth, latent_channels, 1),
        ]  # fmt: skip
        layers: list[nn.Module] = []
        for inner, outer, stride in plan:
            layers += [nn.Conv2d(inner, outer, 3, stride, 1), nn.SiLU()]
        self.blocks = nn.Sequential(*layers[:-1])
        for parameter in self.blocks[-1].parameters():  # a fresh encoder moves nothing
            nn.init.zeros_(parameter)

    def forward(self, feed: Tensor) -> Tensor:
        """(B, 4, H, W) in [0, 1], alpha and padded colours in the weights' order, to (B, C, H / 8, W / 8)."""
        return self.blocks(feed)


class TransparencyDecoder(ModelMixin, ConfigMixin):
    """Colours and alpha from the picture that the frozen autoencoder decodes, and its latent.

    A UNet of diffusers' blocks without time; the latent joins at an eighth of the resolution through a 1x1
    convolution that starts at zero. 104,104,804 parameters as published.

    Args:
        latent_channels: of the autoencoder.
        block_out_channels: widths from the picture's resolution down.
        attention_levels: how many of the lowest levels attend.
        layers_per_block: residual blocks of a level on the way down; one more on the way up.
        attention_head_dim: width of a head.
        norm_num_groups: of the group norms.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        block_out_channels: Sequence[int] = (32, 32, 64, 128, 256, 512, 512),
        attention_levels: int = 3,
        layers_per_block: int = 2,
        attention_head_dim: int = 8,
        norm_num_groups: int = 4,
    ) -> None:
        super().__init__()
        widths = list(block_out_channels)
        levels, first = len(widths), len(widths) - attention_levels
        if levels < 4:
            raise ValueError(f"block_out_channels {widths}: the latent joins at the fourth level")
        shared: dict[str, Any] = {
            "temb_channels": None,
            "resnet_eps": 1e-5,
            "resnet_act_fn": "silu",
            "resnet_groups": norm_num_groups,
            "attention_head_dim": attention_head_dim,
            "resnet_time_scale_shift": "default",
        }
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.latent_conv_in = nn.Conv2d(latent_channels, widths[2], 1)
        self.down_blocks = nn.ModuleList(
            get_down_block(
                "AttnDownBlock2D" if level >= first else "DownBlock2D",
                num_layers=layers_per_block,
                in_channels=widths[max(level - 1, 0)],
                out_channels=widths[level],
                add_downsample=level < levels - 1,
                downsample_padding=1,
                **shared,
            )
            for level in range(levels)
        )
        self.mid_block = UNetMidBlock2D(
            in_channels=widths[-1],
            temb_channels=None,
            resnet_eps=1e-5,
            resnet_groups=norm_num_groups,
            attention_head_dim=attention_head_dim,
        )
        self.up_blocks = nn.ModuleList(
            get_up_block(
                "AttnUpBlock2D" if level >= first else "UpBlock2D",
                num_layers=layers_per_block + 1,
                in_channels=widths[max(level - 1, 0)],
                out_channels=widths[level],
                prev_output_channel=widths[min(level + 1, levels - 1)],
                add_upsample=level > 0,
                **shared,
            )
            for level in reversed(range(levels))
        )
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[0], eps=1e-5)
        self.conv_out = nn.Conv2d(widths[0], 4, 3, padding=1)
        for parameter in self.latent_conv_in.parameters():  # a fresh decoder sees the picture alone
            nn.init.zeros_(parameter)

    @property
    def multiple(self) -> int:
        """Sides of the picture must divide by it."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def forward(self, picture: Tensor, latent: Tensor) -> Tensor:
        """Predict, not clamped.

        Args:
            picture: (B, 3, H, W) in [0, 1], what the autoencoder decodes; sides divide by :attr:`multiple`.
            latent: (B, C, H / 8, W / 8), not scaled.

        Returns:
            (B, 4, H, W) in about [0, 1], in the weights' order of channels.
        """
        x = self.conv_in(picture)
        skips: tuple[Tensor, ...] = (x,)
        for level, block in enumerate(self.down_blocks):
            if level == 3:
                x = x + self.latent_conv_in(latent)
            x, passed = block(hidden_states=x, temb=None)
            skips += passed
        x = self.mid_block(x, None)
        for block in self.up_blocks:
            count = self.config.layers_per_block + 1
            x = block(x, skips[-count:], None)
            skips = skips[:-count]
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def views(picture: Tensor) -> list[Tensor]:
    """The eight flips and rotations of (B, C, H, W): four turns, then four turns of its mirror image."""
    return [torch.rot90(p, turns, (-2, -1)) for p in (picture, picture.flip(-1)) for turns in range(4)]


def unview(picture: Tensor, index: int) -> Tensor:
    """Undo view number ``index`` of :func:`views`."""
    turned = torch.rot90(picture, -(index % 4), (-2, -1))
    return turned.flip(-1) if index >= 4 else turned
