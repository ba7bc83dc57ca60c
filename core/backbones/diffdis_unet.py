"""DiffDIS on Stable Diffusion: mask and edge map as two halves of a batch that exchange detail, in one step.

"High-Precision Dichotomous Image Segmentation via Probing Diffusion Capacity" (ICLR 2025). The network is diffusers'
UNet with eight input channels and a class embedding that tells the halves apart; added are an attention between the
halves in the middle block, and the picture's latents at smaller scales, which modulate skip connections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import Attention, BasicTransformerBlock
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from ..errors import PolyditError
from .embedding import widened
from .official import load_matching
from .pretrained.hooks import answering
from .sd_unet import SD21, build_from_official, part_arguments, start_from
from .variant import extends

__all__ = ["DBIABlock", "DiffdisUNet", "diffdis_from_official", "diffdis_to_official", "half_labels"]

INJECTED = 3  # down blocks whose last skip is modulated, at 1/2, 1/4 and 1/8 of the picture


def half_labels(batch: int) -> Tensor:
    """Labels (2 * batch, 4) of the halves: sine and cosine of (0, 1) for the masks, of (1, 0) for the edges."""
    label = torch.tensor([[0.0, 1.0], [1.0, 0.0]], device="cpu")
    return torch.cat([label.sin(), label.cos()], dim=1).repeat_interleave(batch, dim=0)


class HalvesAttention(Attention):
    """Attention in which the tokens of each half of the batch look at the other half's only."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """(2B, N, D), masks then edges -> (2B, N, D)."""
        others = hidden_states.roll(len(hidden_states) // 2, dims=0)
        answer: Tensor = super().forward(hidden_states, encoder_hidden_states=others, **kwargs)
        return answer


class DBIABlock(BasicTransformerBlock):
    """A transformer block with detail-balancing interactive attention, ``attn3``, behind its self-attention."""

    def __init__(self, dim: int, num_attention_heads: int, attention_head_dim: int, **kwargs: Any) -> None:
        super().__init__(dim, num_attention_heads, attention_head_dim, **kwargs)
        self.attn3 = HalvesAttention(query_dim=dim, heads=num_attention_heads, dim_head=attention_head_dim)
        self.norm2_ = nn.LayerNorm(dim)
        self.reset_exchange()

    def reset_exchange(self) -> None:
        """Start as a copy of the self-attention and its norm."""
        self.attn3.load_state_dict(self.attn1.state_dict())
        self.norm2_.load_state_dict(self.norm1.state_dict())

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        **_unused: Any,
    ) -> Tensor:
        """As diffusers' block with layer norms, and the exchange between its two attentions."""
        hidden_states = hidden_states + self.attn1(self.norm1(hidden_states), attention_mask=attention_mask)
        hidden_states = hidden_states + self.attn3(self.norm2_(hidden_states))
        hidden_states = hidden_states + self.attn2(
            self.norm2(hidden_states),
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=encoder_attention_mask,
        )
        return hidden_states + self.ff(self.norm3(hidden_states))


class DiffdisUNet(UNet2DConditionModel):
    """Stable Diffusion's UNet as DiffDIS changes it.

    Args:
        in_channels: the picture's latents and the noisy ones, in this order.
        class_embed_type: a projection of :func:`half_labels`, added to the time embedding.
        projection_class_embeddings_input_dim: their width.
        mid_extra_cross: the exchange in the middle block.
        use_swci: the scale-wise injection of the picture; it changes nothing at the start.
        **kwargs: of ``UNet2DConditionModel``.
    """

    @extends(UNet2DConditionModel)
    @register_to_config
    def __init__(
        self,
        in_channels: int = 8,
        class_embed_type: str | None = "projection",
        projection_class_embeddings_input_dim: int | None = 4,
        mid_extra_cross: bool = True,
        use_swci: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            class_embed_type=class_embed_type,
            projection_class_embeddings_input_dim=projection_class_embeddings_input_dim,
            **kwargs,
        )
        for parameter in self.class_embedding.parameters():
            parameter.lr_scale = 10.0  # published: it is new, the others are trained
        widths = list(self.config.block_out_channels)
        if mid_extra_cross:
            blocks = self.mid_block.attentions[0].transformer_blocks
            blocks[0] = _with_exchange(blocks[0])
        if use_swci:
            channels = in_channels // 2
            self.rgb_conv = nn.ModuleList(
                nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.GELU())
                for width in widths[:INJECTED]
            )
            self.rgb_proj = nn.ModuleList(_zero_conv(width) for width in widths[:INJECTED])
            self.rgb_proj1 = nn.ModuleList(_zero_conv(width) for width in widths[:INJECTED])

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        rgb_token: Sequence[Tensor] | None = None,
        **kwargs: Any,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Predict the noise of masks (first half of the batch) and edges (second half).

        Args:
            sample: (2B, 8, h, w).
            timestep: one, or (2B,).
            encoder_hidden_states: text (2B, tokens, width).
            class_labels: (2B, 4), see :func:`half_labels`.
            rgb_token: the picture's latents at full, 1/2, 1/4 and 1/8 size, each (2B, 4, ...); None injects nothing.
            **kwargs: of ``UNet2DConditionModel.forward``.
        """
        with ExitStack() as stack:
            if rgb_token is not None and self.config.use_swci:
                blocks = self.down_blocks[:INJECTED]
                for index, (block, latents) in enumerate(zip(blocks, rgb_token[1:], strict=True)):
                    stack.enter_context(answering(block, self._injecting(index, latents)))
            return super().forward(
                sample, timestep, encoder_hidden_states, class_labels=class_labels, **kwargs
            )

    def _injecting(self, index: int, latents: Tensor) -> Callable[[Any], Any]:
        """Modulates the last skip of a down block, and not what goes on."""

        def change(output: tuple[Tensor, tuple[Tensor, ...]]) -> tuple[Tensor, tuple[Tensor, ...]]:
            hidden, skips = output
            read = self.rgb_conv[index](latents)
            changed = skips[-1] * (1 + self.rgb_proj[index](read)) + self.rgb_proj1[index](read)
            return hidden, (*skips[:-1], changed)

        return change

    @classmethod
    def from_folder(cls, source: str | None = None) -> DiffdisUNet:
        """Start training from SD-Turbo or Stable Diffusion 2.1; see :func:`start_from`.

        Args:
            source: folder of a Stable Diffusion pipeline in diffusers format, or of its UNet.

        Raises:
            PolyditError: there is no such UNet.
        """
        added = {
            "in_channels": 8,
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": 4,
        }
        model, pretrained = start_from(cls, source, added, SD21)
        if pretrained is not None:
            with torch.no_grad():
                model.conv_in.weight.copy_(widened(pretrained.conv_in.weight, 8))
            model.mid_block.attentions[0].transformer_blocks[0].reset_exchange()
        return model


def _with_exchange(block: BasicTransformerBlock) -> DBIABlock:
    return DBIABlock(
        block.dim,
        block.num_attention_heads,
        block.attention_head_dim,
        cross_attention_dim=block.cross_attention_dim,
        activation_fn=block.activation_fn,
        attention_bias=block.attention_bias,
        upcast_attention=block.attn1.upcast_attention,
    )


def _zero_conv(width: int) -> nn.Conv2d:
    conv = nn.Conv2d(width, width, 3, padding=1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


def diffdis_from_official(
    state_dict: dict[str, Tensor], mode: str = "DBIA", **config: Any
) -> DiffdisUNet | DBIABlock:
    """The model of the released file, 912,924,804 parameters, or a block with the exchange where ``dim`` is given.

    Args:
        state_dict: its tensors.
        mode: the official name of the exchange, the only one that was published.
        **config: arguments of :class:`DiffdisUNet`; or of a block: ``dim``, ``heads``, ``head_dim``,
            ``cross_attention_dim``.

    Raises:
        PolyditError: unknown arguments, or names or shapes that do not fit.
    """
    if mode != "DBIA":
        raise PolyditError(f"mode {mode!r}: DiffDIS was published with 'DBIA'; leave it out")
    if "dim" in config:
        given = part_arguments("diffdis", config, ("dim", "heads", "head_dim"), ("cross_attention_dim",))
        block = DBIABlock(*given[:3], cross_attention_dim=given[3])
        return load_matching(block, state_dict, "diffdis")
    return build_from_official("diffdis", DiffdisUNet, state_dict, config)


def diffdis_to_official(model: DiffdisUNet | DBIABlock) -> dict[str, Tensor]:
    """Official names, which are ours."""
    return dict(model.state_dict())
