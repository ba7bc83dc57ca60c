"""Condition as a second stream of tokens inside every block (DiT4SR, ICCV 2025, arXiv 2503.23580).

The condition picture is embedded like the noisy one and runs through the same blocks. In attention both
streams see each other; the condition has its own square maps behind the shared projections, its attention
output gets its input added, and a depthwise convolution carries its MLP's hidden map into the noisy stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from ..attention import Attention
from ..attention.rotary import apply_rotary
from ..backbones.dit import DiT, DiTBlock, convolve_tokens, modulate
from ..backbones.embedding import PatchEmbed
from ..backbones.parallel import register_block
from ..backbones.variant import extends
from ..errors import PolyditError

if TYPE_CHECKING:
    from ..backbones.pretrained import PretrainedTransformer

__all__ = ["StreamAttention", "StreamBlock", "StreamDiT", "stream_on"]


def stream_on(
    base: PretrainedTransformer, compat: str = "intended", injection_factor: float = 1.0
) -> PretrainedTransformer:
    """Give a pretrained transformer a condition stream; its own weights are frozen and shared with the answer's.

    The blocks of a family have to be written anew for a stream: Stable Diffusion 3 has them (DiT4SR, whose start is no
    no-op, see ``DiT4SR.from_sd3``).

    Args:
        base: A ``PretrainedSD3``.
        compat: ``"intended"``, or ``"published"`` for the key handling of the first released weights.
        injection_factor: Strength of the injection of the condition's hidden map.

    Returns:
        What is called with ``condition=`` latents beside the noisy ones.

    Raises:
        PolyditError: another family.
    """
    from ..backbones.pretrained.dit4sr import PretrainedDiT4SR
    from ..backbones.pretrained.sd3 import PretrainedSD3

    if type(base) is not PretrainedSD3:
        raise PolyditError(
            f"{type(base.transformer).__name__}: only Stable Diffusion 3 has blocks with a condition stream; "
            "use a SideBranch, token groups or further channels"
        )
    from ..backbones.dit4sr_sd3 import DiT4SR

    model = DiT4SR.from_sd3(base.transformer, compat=compat, control_conv_factor=injection_factor)
    return PretrainedDiT4SR(model)


class StreamAttention(Attention):
    """Joint attention of [noisy; condition], each K tokens on one grid.

    Args:
        hidden_size: width D.
        num_heads: heads.
        qk_norm: as in :class:`Attention`.
        published_keys: what the released DiT4SR weights were trained with: the condition's keys are the noisy
            stream's keys normalised a second time, and ``control_k`` is never used.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, qk_norm: str | None = None, published_keys: bool = False
    ) -> None:
        super().__init__(hidden_size, num_heads, qk_norm)
        self.published_keys = published_keys
        self.control_q = nn.Linear(hidden_size, hidden_size)
        self.control_k = nn.Linear(hidden_size, hidden_size)
        self.control_v = nn.Linear(hidden_size, hidden_size)
        self.control_proj = nn.Linear(hidden_size, hidden_size)

    def project(
        self, hidden_states: Tensor, rope: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of both streams, (B, H, 2K, d)."""
        noisy, condition = self.qkv(hidden_states).chunk(2, dim=1)
        query, key, value = (self.heads(part) for part in noisy.chunk(3, dim=-1))
        condition_query, condition_key, condition_value = condition.chunk(3, dim=-1)
        query, key = self.q_norm(query), self.k_norm(key)
        condition_query = self.q_norm(self.heads(self.control_q(condition_query)))
        condition_value = self.heads(self.control_v(condition_value))
        if self.published_keys:
            condition_key = self.k_norm(key)
        else:
            condition_key = self.k_norm(self.heads(self.control_k(condition_key)))
        if rope is not None:  # both streams stand on the same places
            query, key = apply_rotary(query, *rope), apply_rotary(key, *rope)
            condition_query, condition_key = (
                apply_rotary(condition_query, *rope),
                apply_rotary(condition_key, *rope),
            )
        return (
            torch.cat([query, condition_query], dim=2),
            torch.cat([key, condition_key], dim=2),
            torch.cat([value, condition_value], dim=2),
        )

    def forward(
        self,
        hidden_states: Tensor,
        rope: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        window: Any = None,
        grid: Any = None,
        key_value_hook: Any = None,
    ) -> Tensor:
        """(B, 2K, D) -> (B, 2K, D)."""
        query, key, value = self.project(hidden_states, rope)
        if key_value_hook is not None:
            key, value = key_value_hook(key, value)
        noisy, condition = self.attend(query, key, value, mask, window, grid).chunk(2, dim=1)
        condition = condition + hidden_states.chunk(2, dim=1)[1]  # the LR residual
        return torch.cat([self.proj(noisy), self.control_proj(condition)], dim=1)


@register_block
class StreamBlock(DiTBlock):
    """A DiT block over [noisy; condition] with the injection of the condition's hidden map.

    Args:
        hidden_size: width D.
        num_heads: heads.
        published_keys: see :class:`StreamAttention`.
        injection_factor: strength of the injection (released inference code: 1.2).
        **options: of :class:`DiTBlock`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        published_keys: bool = False,
        injection_factor: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(hidden_size, num_heads, **options)
        self.injection_factor = injection_factor
        self.attn = StreamAttention(hidden_size, num_heads, options.get("qk_norm"), published_keys)
        inner = self.mlp.fc2.in_features
        conv = nn.Conv2d if options.get("axes", 2) == 2 else nn.Conv3d
        self.control_conv = conv(inner, inner, 3, padding=1, groups=inner)

    def forward(
        self,
        hidden_states: Tensor,
        conditioning: Tensor,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        rope: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        grids: Any = (),
    ) -> Tensor:
        """(B, 2K, D) -> (B, 2K, D); ``grids`` holds the one grid that both streams share."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation_vectors(conditioning)
        grid = grids[0]
        attended = self.attn(
            modulate(self.norm1(hidden_states), shift1, scale1),
            rope=rope,
            mask=attention_mask,
            window=self.window_size,
            grid=grid,
        )
        hidden_states = torch.addcmul(hidden_states, gate1, attended)
        if self.cross_attn is not None and encoder_hidden_states is not None:
            hidden_states = hidden_states + self.cross_attn(
                hidden_states, encoder_hidden_states, encoder_attention_mask
            )
        mixed = self.feed(modulate(self.norm2(hidden_states), shift2, scale2), grid)
        return torch.addcmul(hidden_states, gate2, mixed)

    def feed(self, tokens: Tensor, grid: Any) -> Tensor:
        """The MLP with the injection, before its gate."""
        hidden = self.mlp.hidden(tokens)
        injected = convolve_tokens(self.control_conv, hidden.chunk(2, dim=1)[1], grid)
        noisy, condition = self.mlp.mix(hidden, (grid, grid)).chunk(2, dim=1)
        hidden = torch.cat([noisy + self.injection_factor * injected, condition], dim=1)
        return self.mlp.fc2(hidden)


class StreamDiT(DiT):
    """DiT with a condition stream, the mechanism of DiT4SR on the native backbone.

    Args:
        condition_channels: channels of the condition when it has a patch embedding of its own; None shares
            the input's, as published.
        published_keys: compat switch for the key handling of the released weights.
        injection_factor: strength of the hidden-map injection.
        stream_init: ``"zero"`` for the condition's square maps, as published for a frozen pretrained model, or
            ``"identity"`` for training from scratch, where the condition starts as plain tokens.
        **kwargs: of :class:`DiT`.
    """

    _no_split_modules = ["StreamBlock"]
    _repeated_blocks = ["StreamBlock"]

    @extends(DiT)
    @register_to_config
    def __init__(
        self,
        condition_channels: int | None = None,
        published_keys: bool = False,
        injection_factor: float = 1.0,
        stream_init: str = "zero",
        **kwargs: Any,
    ) -> None:
        if stream_init not in ("zero", "identity"):
            raise ValueError(f"stream_init is {stream_init!r}; choose 'zero' or 'identity'")
        super().__init__(**kwargs)
        self.condition_embed = None
        if condition_channels is not None:
            self.condition_embed = PatchEmbed(condition_channels, self.config.hidden_size, self.patch_size)

    def build_block(self, hidden_size: int, num_heads: int, **options: Any) -> DiTBlock:
        """A block with the condition stream."""
        return StreamBlock(
            hidden_size,
            num_heads,
            published_keys=self.config.published_keys,
            injection_factor=self.config.injection_factor,
            **options,
        )

    def initialize_block(self, block: DiTBlock) -> None:
        """As in DiT; the output map starts as a copy of the shared one, the injection at zero."""
        super().initialize_block(block)
        attn = block.attn
        for layer in (attn.control_q, attn.control_k, attn.control_v):
            if self.config.stream_init == "zero":
                nn.init.zeros_(layer.weight)
            else:
                nn.init.eye_(layer.weight)
        with torch.no_grad():
            attn.control_proj.weight.copy_(attn.proj.weight)
            attn.control_proj.bias.copy_(attn.proj.bias)
        nn.init.zeros_(block.control_conv.weight)
        nn.init.zeros_(block.control_conv.bias)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        condition: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict from a noisy input (B, C, *spatial) and a condition of the same spatial size.

        Args:
            hidden_states: (B, C, *spatial).
            timestep: (B,).
            class_labels: (B,), or None for a model without labels.
            condition: (B, C or condition_channels, *spatial).
            encoder_hidden_states: as in :class:`DiT`.
            encoder_attention_mask: as in :class:`DiT`.
            pooled_projections: as in :class:`DiT`.
            return_dict: False returns a plain tuple.
        """
        if condition is None or condition.shape[2:] != hidden_states.shape[2:]:
            found = None if condition is None else list(condition.shape[2:])
            raise ValueError(
                f"the condition must have the input's size {list(hidden_states.shape[2:])}, not {found}"
            )
        grid = self.grid_of(hidden_states)
        noisy = self.embed_tokens(hidden_states)
        lr = self.embed_tokens(condition) if self.condition_embed is None else self.condition_embed(condition)
        x = torch.cat([noisy, lr], dim=1)  # (B, 2K, D)
        c = self.embed_condition(timestep, class_labels, pooled_projections)
        context = self.context_embed(encoder_hidden_states) if encoder_hidden_states is not None else None
        x = self.run_blocks(
            x,
            self.block_conditioning(c),
            context,
            encoder_attention_mask,
            rope=self.rotary(self.position_ids(grid, x.device)) if self.rotary is not None else None,
            grids=(grid,),
        )
        sample = self.head(x.chunk(2, dim=1)[0], c, grid)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)
