"""The joint block of DiT4SR: a low-resolution stream in SD3's attention and feed-forward (DiT4SR, ICCV 2025).

Parameter names are the official ones: every module that DiT4SR trains has ``control`` in its name.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward, JointTransformerBlock
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from torch import nn

__all__ = ["DiT4SRBlock", "LRInjectionFeedForward", "LRStreamAttnProcessor"]


class LRStreamAttnProcessor(JointAttnProcessor2_0):
    """Joint attention over image, low-resolution and text tokens, in that order.

    The low-resolution (LR) projections are compositions of the frozen image projection and a trained square
    one, ``to_q_control(to_q(lr))`` and so on. With ``compat="published"`` the LR keys are the image keys
    normalised twice, which is what the released ``dit4sr_q`` and ``dit4sr_f`` weights were trained with
    (``to_k_control`` is then never used); with ``"intended"`` they are ``norm_k(to_k_control(to_k(lr)))``.
    """

    def __init__(self, compat: str) -> None:
        super().__init__()
        self.compat = compat

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        lr_tokens: int = 0,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attend; the last ``lr_tokens`` of ``hidden_states`` are the LR stream. Shapes as they came."""
        if lr_tokens == 0:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)

        def heads(tokens: torch.Tensor) -> torch.Tensor:
            return tokens.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, N, head_dim)

        def norm(layer: nn.Module | None, tokens: torch.Tensor) -> torch.Tensor:
            return tokens if layer is None else layer(tokens)

        n_image = hidden_states.shape[1] - lr_tokens
        image, lr = hidden_states[:, :n_image], hidden_states[:, n_image:]

        queries = [
            norm(attn.norm_q, heads(attn.to_q(image))),
            norm(attn.norm_q, heads(attn.to_q_control(attn.to_q(lr)))),
        ]
        keys = [norm(attn.norm_k, heads(attn.to_k(image)))]
        # Where keys are normalised, the published code takes the image's (normalised twice) for the LR stream's.
        published = self.compat == "published" and attn.norm_k is not None
        keys.append(norm(attn.norm_k, keys[0] if published else heads(attn.to_k_control(attn.to_k(lr)))))
        values = [heads(attn.to_v(image)), heads(attn.to_v_control(attn.to_v(lr)))]
        if encoder_hidden_states is not None:
            queries.append(norm(attn.norm_added_q, heads(attn.add_q_proj(encoder_hidden_states))))
            keys.append(norm(attn.norm_added_k, heads(attn.add_k_proj(encoder_hidden_states))))
            values.append(heads(attn.add_v_proj(encoder_hidden_states)))

        # (B, heads, 2K + M, head_dim) each
        query, key, value = (torch.cat(parts, dim=2) for parts in (queries, keys, values))
        out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)  # (B, 2K + M, D)

        # The LR stream adds its own attention input before the output projection; the image stream does not.
        lr_out = attn.to_out_control(out[:, n_image : n_image + lr_tokens] + lr)
        hidden_states = attn.to_out[1](torch.cat([attn.to_out[0](out[:, :n_image]), lr_out], dim=1))
        if encoder_hidden_states is None:
            return hidden_states
        text = out[:, n_image + lr_tokens :]
        return hidden_states, text if attn.context_pre_only else attn.to_add_out(text)


class LRInjectionFeedForward(FeedForward):
    """SD3's feed-forward, plus a depthwise 3x3 convolution of the LR hidden map added to the image's.

    Input (B, 2K, D): image tokens, then LR tokens, both row by row over the same (h, w) grid, K = h * w. The
    LR half passes unchanged.
    """

    def __init__(self, dim: int, control_conv_factor: float) -> None:
        super().__init__(dim=dim, dim_out=dim, activation_fn="gelu-approximate")
        self.control_conv_factor = control_conv_factor
        self.control_conv = nn.Conv2d(4 * dim, 4 * dim, kernel_size=3, padding=1, groups=4 * dim)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """(B, 2K, D) -> (B, 2K, D); without ``grid`` the plain feed-forward on any tokens."""
        hidden_states = self.net[0](hidden_states)  # (B, 2K, 4D)
        if grid is not None:
            image, lr = hidden_states.chunk(2, dim=1)
            injected = self.control_conv(lr.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
            hidden_states = torch.cat([image + self.control_conv_factor * injected, lr], dim=1)
        return self.net[2](self.net[1](hidden_states))


class DiT4SRBlock(JointTransformerBlock):
    """SD3's joint block over [image; LR] tokens and text tokens.

    One adaLN modulation acts on the whole image-and-LR sequence. Without ``grid`` it is the plain SD3 block.
    The last block, which computes no text, returns the text as it came (SD3's returns None), because
    diffusers' block caches subtract what enters and leaves the stack.
    """

    def __init__(
        self,
        dim: int,
        num_attention_heads: int,
        attention_head_dim: int,
        context_pre_only: bool = False,
        qk_norm: str | None = None,
        use_dual_attention: bool = False,
        compat: str = "published",
        control_conv_factor: float = 1.2,
    ) -> None:
        super().__init__(
            dim, num_attention_heads, attention_head_dim, context_pre_only, qk_norm, use_dual_attention
        )
        processor = LRStreamAttnProcessor(compat)
        self.attn.set_processor(processor)
        if use_dual_attention:
            # The text projections of this image-only attention are never used. They stand in the published
            # checkpoints and in their parameter count, so they are kept: one layout for every checkpoint.
            self.attn2 = Attention(
                query_dim=dim,
                added_kv_proj_dim=dim,
                dim_head=attention_head_dim,
                heads=num_attention_heads,
                out_dim=dim,
                context_pre_only=context_pre_only,
                bias=True,
                processor=processor,
                qk_norm=qk_norm,
                eps=1e-6,
            )
        for attention in (self.attn, self.attn2):
            if attention is not None:
                for name in ("to_q_control", "to_k_control", "to_v_control", "to_out_control"):
                    setattr(attention, name, nn.Linear(dim, dim))
        self.ff = LRInjectionFeedForward(dim, control_conv_factor)
        self.reset_control()

    @torch.no_grad()
    def reset_control(self) -> None:
        """Start the trained modules from the frozen ones, which must hold their pretrained values by now."""
        for attention in (self.attn, self.attn2):
            if attention is not None:
                for layer in (attention.to_q_control, attention.to_k_control, attention.to_v_control):
                    nn.init.zeros_(layer.weight)
                    nn.init.zeros_(layer.bias)
                attention.to_out_control.weight.copy_(attention.to_out[0].weight)
                attention.to_out_control.bias.copy_(attention.to_out[0].bias)
        nn.init.zeros_(self.ff.control_conv.weight)
        nn.init.zeros_(self.ff.control_conv.bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        joint_attention_kwargs: dict[str, Any] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One block.

        Args:
            hidden_states: (B, 2K, D) image tokens, then LR tokens; (B, K, D) without ``grid``.
            encoder_hidden_states: text tokens (B, M, D).
            temb: (B, D) timestep and pooled text.
            joint_attention_kwargs: handed to the attention processor.
            grid: (h, w) of the tokens, K = h * w.

        Returns:
            Text tokens and image tokens, shaped as they came.
        """
        if grid is None:
            text, image = super().forward(hidden_states, encoder_hidden_states, temb, joint_attention_kwargs)
            return encoder_hidden_states if text is None else text, image
        kwargs = {**(joint_attention_kwargs or {}), "lr_tokens": grid[0] * grid[1]}

        if self.use_dual_attention:
            attn_in, gate_msa, shift_mlp, scale_mlp, gate_mlp, attn2_in, gate_msa2 = self.norm1(
                hidden_states, emb=temb
            )
        else:
            attn_in, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.norm1(hidden_states, emb=temb)
        if self.context_pre_only:
            text_in = self.norm1_context(encoder_hidden_states, temb)
        else:
            text_in, text_gate_msa, text_shift, text_scale, text_gate_mlp = self.norm1_context(
                encoder_hidden_states, emb=temb
            )

        attn_out, text_out = self.attn(hidden_states=attn_in, encoder_hidden_states=text_in, **kwargs)
        hidden_states = hidden_states + gate_msa[:, None] * attn_out
        if self.use_dual_attention:
            hidden_states = hidden_states + gate_msa2[:, None] * self.attn2(hidden_states=attn2_in, **kwargs)
        ff_in = self.norm2(hidden_states) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
        hidden_states = hidden_states + gate_mlp[:, None] * self.ff(ff_in, grid=grid)

        if self.context_pre_only:
            return encoder_hidden_states, hidden_states
        text = encoder_hidden_states + text_gate_msa[:, None] * text_out
        text_ff_in = self.norm2_context(text) * (1 + text_scale[:, None]) + text_shift[:, None]
        return text + text_gate_mlp[:, None] * self.ff_context(text_ff_in), hidden_states


def _register_block() -> None:
    """Tell diffusers' block caches which output is which, as it does for its own joint block."""
    try:
        from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
    except ImportError:  # a private module: without it block caches are unavailable, nothing else
        return
    TransformerBlockRegistry.register(
        DiT4SRBlock,
        TransformerBlockMetadata(return_hidden_states_index=1, return_encoder_hidden_states_index=0),
    )


_register_block()
