"""The diffusion transformer that every task stands on.

DiT: "Scalable Diffusion Models with Transformers", arXiv 2212.09748. The same class is SiT (arXiv 2401.08740) and
LightningDiT (arXiv 2501.01423) by configuration, and reads pictures, videos, voxels and triplanes alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..attention import Attention, CrossAttention, Projection, project_gelu
from ..attention.attention import KeyValueHook, RMSNorm
from ..attention.masks import grid_coordinates
from ..attention.rotary import RotaryEmbed, rotary_axes_dim
from .embedding import LabelEmbed, PatchEmbed, TimestepEmbed, sincos_table, unpatchify
from .parallel import CONTEXT_PARALLEL_PLAN, TENSOR_PARALLEL_PLAN, register_block

__all__ = ["MLP", "DiT", "DiTBlock", "FinalLayer", "modulate"]


def modulate(x: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    """X * (1 + scale) + shift, the vectors broadcast over the tokens."""
    return x * (1 + scale) if shift is None else torch.addcmul(shift, x, 1 + scale)


def make_norm(kind: str, hidden_size: int) -> nn.Module:
    """The norm before each modulation.

    ``"layer"``: no affine, eps 1e-6 (DiT). ``"rms"``: a learned gain, eps 1e-6 (LightningDiT). ``"none"``: keeps the
    amplitude of the tokens, which restoration in pixel space needs (EDSR, arXiv 1707.02921, drops its norms for it).
    """
    if kind == "layer":
        return nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
    if kind == "rms":
        return RMSNorm(hidden_size, eps=1e-6)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"norm is {kind!r}; choose 'layer', 'rms' or 'none'")


class MLP(nn.Module):
    """The token-wise network of a block: GELU (tanh or exact) or SwiGLU, optionally mixing neighbours.

    With ``conv_kernel`` a convolution over the token grid is added to the hidden map, depthwise (the Mix-FFN of
    SegFormer, arXiv 2105.15203) or dense; it starts at zero, so it changes nothing at initialisation.
    """

    def __init__(
        self,
        hidden_size: int,
        mlp_ratio: float,
        kind: str,
        conv_kernel: int = 0,
        conv_dense: bool = False,
        axes: int = 2,
    ) -> None:
        super().__init__()
        inner = int(hidden_size * mlp_ratio)
        self.kind = kind
        if kind == "swiglu":
            inner = int(2 / 3 * inner)
            self.fc1 = Projection(hidden_size, 2 * inner)
            self.fc1._tp_packed_col_blocks = [inner, inner]  # type: ignore[assignment]
        elif kind in ("gelu", "gelu_tanh"):
            self.fc1 = Projection(hidden_size, inner)
            self.fc1._tp_packed_col_blocks = [inner]  # type: ignore[assignment]
        else:
            raise ValueError(f"mlp is {kind!r}; choose 'gelu_tanh', 'gelu' or 'swiglu'")
        self.fc2 = Projection(inner, hidden_size)
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[axes]
        self.conv = None
        if conv_kernel:
            groups = 1 if conv_dense else inner
            self.conv = conv(inner, inner, conv_kernel, padding=conv_kernel // 2, groups=groups)

    def hidden(self, x: Tensor) -> Tensor:
        """(B, N, D) -> the activated hidden map (B, N, inner)."""
        if self.kind == "swiglu":
            gate, value = self.fc1(x).chunk(2, dim=-1)
            return F.silu(gate) * value
        return project_gelu(self.fc1, x, approximate="tanh" if self.kind == "gelu_tanh" else "none")

    def mix(self, hidden: Tensor, grids: Sequence[Sequence[int] | None]) -> Tensor:
        """Add the convolution on each group's own grid; groups without one (text) pass."""
        if self.conv is None:
            return hidden
        sizes = [math.prod(g) if g is not None else 0 for g in grids]
        sizes = [s or hidden.shape[1] - sum(sizes) for s in sizes]  # at most one group has no grid
        parts = []
        for part, grid in zip(hidden.split(sizes, dim=1), grids, strict=True):
            parts.append(part if grid is None else part + convolve_tokens(self.conv, part, grid))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def forward(self, x: Tensor, grids: Sequence[Sequence[int] | None] = ()) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.fc2(self.mix(self.hidden(x), grids))


def convolve_tokens(conv: nn.Module, tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """Apply a convolution to row-major tokens (B, N, C) as a map of the given grid."""
    # Tokens (B, N, C) are the channels-last layout of (B, C, *grid). Unflattened first: from a transposed view a batch
    # of one gets strides that torch does not take for channels-last, and a depthwise kernel ten times slower.
    return conv(tokens.unflatten(1, tuple(grid)).movedim(-1, 1)).flatten(2).transpose(1, 2)


@register_block
class DiTBlock(nn.Module):
    """x += gate1 * Attn(mod(norm x)); [x += CrossAttn(x, context)]; x += gate2 * MLP(mod(norm x))."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        norm: str = "layer",
        mlp: str = "gelu_tanh",
        qk_norm: str | None = None,
        modulation: str = "adaln_zero",
        modulation_shift: bool = True,
        conv_kernel: int = 0,
        conv_dense: bool = False,
        axes: int = 2,
        cross_attention: bool = False,
        window_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.window_size = tuple(window_size) if window_size is not None else None
        self.modulation_shift = modulation_shift
        self.width = hidden_size
        vectors = 6 if modulation_shift else 4
        self.norm1 = make_norm(norm, hidden_size)
        self.attn = Attention(hidden_size, num_heads, qk_norm)
        self.cross_attn = CrossAttention(hidden_size, num_heads, qk_norm) if cross_attention else None
        self.norm2 = make_norm(norm, hidden_size)
        self.mlp = MLP(hidden_size, mlp_ratio, mlp, conv_kernel, conv_dense, axes)
        # adaLN-zero: every block has its own map; adaLN-single: one shared map plus this block's table.
        self.modulation = (
            nn.Linear(hidden_size, vectors * hidden_size) if modulation == "adaln_zero" else None
        )
        self.table = nn.Parameter(torch.zeros(vectors, hidden_size)) if modulation == "adaln_single" else None

    def modulation_vectors(
        self, conditioning: Tensor, token_group: Tensor | None = None
    ) -> list[Tensor | None]:
        """(shift, scale, gate) for attention, then for the MLP; each (B, 1, D), or (B, N, D) per token."""
        if self.modulation is not None:
            vectors = self.modulation(F.silu(conditioning)).unflatten(-1, (-1, self.modulation.in_features))
        else:
            vectors = self.table + conditioning.unflatten(-1, self.table.shape)
        if vectors.ndim == 3:  # (B, 6, D): one condition for the whole sequence
            vectors = vectors[:, None]
        elif token_group is not None:  # (B, G, 6, D): one per group of tokens
            vectors = vectors[:, token_group]
        parts: list[Tensor | None] = list(vectors.unbind(-2))
        if not self.modulation_shift:
            parts = [None, parts[0], parts[1], None, parts[2], parts[3]]
        return parts

    def forward(
        self,
        hidden_states: Tensor,
        conditioning: Tensor,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        rope: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        grids: Sequence[Sequence[int] | None] = (),
        token_group: Tensor | None = None,
        key_value_hook: KeyValueHook | None = None,
    ) -> Tensor:
        """One block.

        Args:
            hidden_states: (B, N, D).
            conditioning: (B, D), or (B, G, D) with ``token_group``; under adaLN-single (B, [G,] 6D).
            encoder_hidden_states: (B, M, D) for cross-attention.
            encoder_attention_mask: boolean (B, M), True = a real token.
            rope: rotary cosines and sines.
            attention_mask: boolean, True = may look.
            grids: token grid of each group in the sequence, for convolutions and windows.
            token_group: (N,) which group's conditioning each token takes.
            key_value_hook: see :class:`~polydit.core.attention.Attention`.

        Returns:
            (B, N, D).
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation_vectors(conditioning, token_group)
        window = self.window_size
        attended = self.attn(
            modulate(self.norm1(hidden_states), shift1, scale1),
            rope=rope,
            mask=attention_mask,
            window=window,
            grid=grids[0] if window is not None else None,
            key_value_hook=key_value_hook,
        )
        hidden_states = torch.addcmul(hidden_states, gate1, attended)
        if self.cross_attn is not None and encoder_hidden_states is not None:
            hidden_states = hidden_states + self.cross_attn(
                hidden_states, encoder_hidden_states, encoder_attention_mask
            )
        mixed = self.mlp(modulate(self.norm2(hidden_states), shift2, scale2), grids)
        return torch.addcmul(hidden_states, gate2, mixed)


class FinalLayer(nn.Module):
    """Modulated norm and the linear map from tokens to patches."""

    def __init__(self, hidden_size: int, patch_volume: int, out_channels: int, norm: str = "layer") -> None:
        super().__init__()
        self.norm = make_norm(norm, hidden_size)
        self.modulation = nn.Linear(hidden_size, 2 * hidden_size)
        self.linear = nn.Linear(hidden_size, patch_volume * out_channels)

    def forward(self, hidden_states: Tensor, conditioning: Tensor) -> Tensor:
        """(B, N, D), (B, D) -> (B, N, prod(patch)*C)."""
        shift, scale = self.modulation(F.silu(conditioning))[:, None].chunk(2, dim=-1)
        return self.linear(modulate(self.norm(hidden_states), shift, scale))


class DiT(ModelMixin, ConfigMixin, PeftAdapterMixin, CacheMixin):
    """Diffusion transformer over two spatial axes (pictures, latents) or three (video, voxels, triplanes).

    At initialisation every block is the identity and the output is exactly zero.

    Args:
        input_size: spatial size of the input that the additive positions are stored for. Other sizes are
            allowed in ``forward``; their positions are computed.
        patch_size: one number, or one per axis.
        in_channels: channels of the input.
        out_channels: channels of the output before ``learn_sigma``; default ``in_channels``.
        hidden_size: width D.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over D.
        num_classes: size of the label table, or None.
        class_dropout_prob: probability of the null class in training; above 0 it adds a row to the table.
        context_dim: width of the text or feature tokens for cross-attention, or None.
        pooled_projection_dim: width of one extra vector that joins the timestep embedding, or None.
        norm: ``"layer"``, ``"rms"`` or ``"none"``, see :func:`make_norm`.
        mlp: ``"gelu_tanh"``, ``"gelu"`` or ``"swiglu"``.
        position: ``"sincos"``, ``"rope"``, ``"sincos+rope"`` or ``"none"``.
        rope_axes_dim: channels of each head per axis; default an even split. One entry more than there are axes puts
            a group axis in front, which tells groups of tokens apart (:mod:`polydit.core.conditioning`).
        qk_norm: None, ``"rms"`` or ``"layer"``.
        modulation: ``"adaln_zero"`` (a map per block) or ``"adaln_single"`` (one shared map and a table per
            block, PixArt-alpha, arXiv 2310.00426).
        modulation_shift: False leaves the shifts out of the blocks (LightningDiT's ``wo_shift``).
        learn_sigma: the output has twice the channels, [prediction | variance].
        keep_sigma: False returns the first half of those channels only (SiT, LightningDiT).
        conv_kernel: size of the convolution on the MLP's hidden map; 0 is none.
        conv_dense: it mixes all channels; False is depthwise.
        window_size: attention window in tokens, one number or one per axis; None is global attention.
        gate_init: where the gates of the blocks start. 0, as published, makes every block the identity; a positive
            value lets a small model that is trained from scratch learn from its first step.
        global_every: with windows, every n-th block (counted from 1) attends globally; 0 is none.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DiTBlock"]
    _repeated_blocks = ["DiTBlock"]
    _skip_layerwise_casting_patterns = ["patch_embed", "pos_embed", "time_embed", "norm"]
    _cp_plan = CONTEXT_PARALLEL_PLAN
    _tp_plan = TENSOR_PARALLEL_PLAN

    @register_to_config
    def __init__(
        self,
        input_size: int | list[int] = 32,
        patch_size: int | list[int] = 2,
        in_channels: int = 4,
        out_channels: int | None = None,
        hidden_size: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        num_classes: int | None = None,
        class_dropout_prob: float = 0.1,
        context_dim: int | None = None,
        pooled_projection_dim: int | None = None,
        norm: str = "layer",
        mlp: str = "gelu_tanh",
        position: str = "sincos",
        rope_axes_dim: list[int] | None = None,
        qk_norm: str | None = None,
        modulation: str = "adaln_zero",
        modulation_shift: bool = True,
        learn_sigma: bool = False,
        keep_sigma: bool = True,
        conv_kernel: int = 0,
        conv_dense: bool = False,
        window_size: int | list[int] | None = None,
        global_every: int = 0,
        gate_init: float = 0.0,
    ) -> None:
        super().__init__()
        if position not in ("sincos", "rope", "sincos+rope", "none"):
            raise ValueError(f"position is {position!r}; choose 'sincos', 'rope', 'sincos+rope' or 'none'")
        if modulation not in ("adaln_zero", "adaln_single"):
            raise ValueError(f"modulation is {modulation!r}; choose 'adaln_zero' or 'adaln_single'")
        sizes = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
        axes = len(sizes)
        self.patch_size = (patch_size,) * axes if isinstance(patch_size, int) else tuple(patch_size)
        if axes not in (2, 3) or len(self.patch_size) != axes:
            raise ValueError(
                f"input_size {input_size} and patch_size {patch_size} must have the same 2 or 3 axes"
            )
        if any(s % p for s, p in zip(sizes, self.patch_size, strict=True)):
            raise ValueError(
                f"input_size {list(sizes)} does not divide by patch_size {list(self.patch_size)}"
            )
        window = (window_size,) * axes if isinstance(window_size, int) else window_size
        self.base_grid = tuple(s // p for s, p in zip(sizes, self.patch_size, strict=True))
        self.prediction_channels = out_channels or in_channels
        self.out_channels = self.prediction_channels * (2 if learn_sigma else 1)

        self.patch_embed = PatchEmbed(in_channels, hidden_size, self.patch_size)
        self.pos_embed = None
        if "sincos" in position:
            # A frozen parameter, not a buffer: published checkpoints and parameter counts contain it.
            self.pos_embed = nn.Parameter(sincos_table(self.base_grid, hidden_size), requires_grad=False)
        self._last_table: tuple[tuple[tuple[int, ...], torch.device], Tensor] | None = None
        self.rotary = None
        if "rope" in position:
            self.rotary = RotaryEmbed(rope_axes_dim or rotary_axes_dim(hidden_size // num_heads, axes))
        self.time_embed = TimestepEmbed(hidden_size)
        self.label_embed = LabelEmbed(num_classes, hidden_size, class_dropout_prob) if num_classes else None
        self.pooled_embed = _two_layers(pooled_projection_dim, hidden_size) if pooled_projection_dim else None
        self.context_embed = _two_layers(context_dim, hidden_size) if context_dim else None
        vectors = 6 if modulation_shift else 4
        self.shared_modulation = (
            nn.Linear(hidden_size, vectors * hidden_size) if modulation == "adaln_single" else None
        )
        self.blocks = nn.ModuleList(
            self.build_block(
                hidden_size,
                num_heads,
                mlp_ratio=mlp_ratio,
                norm=norm,
                mlp=mlp,
                qk_norm=qk_norm,
                modulation=modulation,
                modulation_shift=modulation_shift,
                conv_kernel=conv_kernel,
                conv_dense=conv_dense,
                axes=axes,
                cross_attention=context_dim is not None,
                window_size=None if global_every and (i + 1) % global_every == 0 else window,
            )
            for i in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, math.prod(self.patch_size), self.out_channels, norm)
        self.gradient_checkpointing = False
        self.initialize_weights()

    def build_block(self, hidden_size: int, num_heads: int, **options: Any) -> DiTBlock:
        """One block; a variant returns its own kind."""
        return DiTBlock(hidden_size, num_heads, **options)

    def initialize_weights(self) -> None:
        """The initialisation of DiT; one reason per line."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        conv = self.patch_embed.proj  # a linear map on patches, so it starts like one
        nn.init.xavier_uniform_(conv.weight.view(conv.weight.shape[0], -1))
        nn.init.zeros_(conv.bias)
        for layer in (self.time_embed.mlp[0], self.time_embed.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)  # the sinusoid is large: a quiet start
        if self.label_embed is not None:
            nn.init.normal_(self.label_embed.table.weight, std=0.02)
        for block in self.blocks:
            self.initialize_block(block)
        if self.shared_modulation is not None:
            nn.init.zeros_(self.shared_modulation.weight)  # gates start at zero here too
        nn.init.zeros_(self.final_layer.modulation.weight)
        nn.init.zeros_(self.final_layer.linear.weight)  # a fresh model predicts exactly zero

    def initialize_block(self, block: DiTBlock) -> None:
        """Zero what would keep the block from being the identity."""
        if block.modulation is not None:
            nn.init.zeros_(block.modulation.weight)  # zero gates: the identity
        if self.config.gate_init:
            vectors = (
                block.table
                if block.table is not None
                else block.modulation.bias.unflatten(0, (-1, block.width))
            )
            with torch.no_grad():
                vectors[[2, 5] if block.modulation_shift else [1, 3]] = self.config.gate_init
        if block.cross_attn is not None:
            nn.init.zeros_(block.cross_attn.proj.weight)  # cross-attention has no gate
        if block.mlp.conv is not None:
            nn.init.zeros_(block.mlp.conv.weight)  # adding the convolution to a trained model changes nothing
            nn.init.zeros_(block.mlp.conv.bias)

    # -- embed ---------------------------------------------------------------------------------------------

    def grid_of(self, hidden_states: Tensor) -> tuple[int, ...]:
        """Tokens per axis of an input (B, C, *spatial)."""
        spatial = hidden_states.shape[2:]
        if len(spatial) != len(self.patch_size) or any(
            s % p for s, p in zip(spatial, self.patch_size, strict=False)
        ):
            raise ValueError(
                f"input of size {list(spatial)} does not divide by patch_size {list(self.patch_size)}"
            )
        return tuple(s // p for s, p in zip(spatial, self.patch_size, strict=True))

    def embed_tokens(self, hidden_states: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B, N, D) with additive positions."""
        tokens = self.patch_embed(hidden_states)
        if self.pos_embed is not None:
            tokens = tokens + self.position_table(self.grid_of(hidden_states), tokens.device).to(tokens.dtype)
        return tokens

    def position_table(self, grid: tuple[int, ...], device: torch.device) -> Tensor:
        """Additive positions (1, N, D) of a grid. The last table that was computed is kept for the next call."""
        if grid == self.base_grid and self.pos_embed is not None:
            return self.pos_embed
        if torch.compiler.is_compiling():
            return sincos_table(grid, self.config.hidden_size).to(device)
        if self._last_table is None or self._last_table[0] != (grid, device):
            self._last_table = ((grid, device), sincos_table(grid, self.config.hidden_size).to(device))
        return self._last_table[1]

    def position_ids(self, grid: Sequence[int], device: torch.device | str | None = None) -> Tensor:
        """Coordinates (N, A) of a grid's tokens for the rotary positions, with a zero group axis if there is one."""
        ids = grid_coordinates(grid, device)
        if self.rotary is not None and len(self.rotary.axes_dim) == ids.shape[1] + 1:
            ids = F.pad(ids, (1, 0))
        return ids

    def embed_condition(
        self, timestep: Tensor, class_labels: Tensor | None = None, pooled_projections: Tensor | None = None
    ) -> Tensor:
        """The vector that modulates the blocks: (B, D), or (B, G, D) for timesteps (B, G), one per group of tokens."""
        c = self.time_embed(timestep)
        groups = (slice(None),) + (None,) * (timestep.ndim - 1)
        if self.label_embed is not None:
            if class_labels is None:
                raise ValueError(
                    "this DiT has class labels: pass class_labels (num_classes is the null class)"
                )
            c = c + self.label_embed(class_labels)[groups]
        if self.pooled_embed is not None and pooled_projections is not None:
            c = c + self.pooled_embed(pooled_projections)[groups]
        return c

    def block_conditioning(self, c: Tensor) -> Tensor:
        """What the blocks receive: ``c`` itself, or under adaLN-single the shared modulation of it."""
        return c if self.shared_modulation is None else self.shared_modulation(F.silu(c))

    # -- embed, blocks, head -------------------------------------------------------------------------------

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        attention_mask: Tensor | None = None,
        block_controlnet_hidden_states: Sequence[Tensor | None] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict.

        Args:
            hidden_states: (B, C, *spatial).
            timestep: (B,), on the scale that the weights were trained with.
            class_labels: (B,) in 0..num_classes; num_classes is the null class.
            encoder_hidden_states: (B, M, context_dim).
            encoder_attention_mask: boolean (B, M), True = a real token.
            pooled_projections: (B, pooled_projection_dim).
            attention_mask: boolean (N, N) or broadcastable to (B, H, N, N), True = may look.
            block_controlnet_hidden_states: for each block (B, N, D) to add to its output, or None; see
                :class:`~polydit.core.conditioning.SideBranch`.
            return_dict: False returns a plain tuple.

        Returns:
            An object with ``.sample`` (B, out_channels, *spatial).
        """
        grid = self.grid_of(hidden_states)
        x = self.embed_tokens(hidden_states)  # (B, N, D)
        c = self.embed_condition(timestep, class_labels, pooled_projections)  # (B, D)
        context = self.context_embed(encoder_hidden_states) if encoder_hidden_states is not None else None
        x = self.run_blocks(
            x,
            self.block_conditioning(c),
            context,
            encoder_attention_mask,
            residuals=block_controlnet_hidden_states,
            rope=self.rotary(self.position_ids(grid, x.device)) if self.rotary is not None else None,
            attention_mask=attention_mask,
            grids=(grid,),
        )
        sample = self.head(x, c, grid)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def run_blocks(
        self,
        hidden_states: Tensor,
        *args: Any,
        residuals: Sequence[Tensor | None] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """All blocks in order, (B, N, D) -> (B, N, D); the arguments are those of the block.

        ``residuals`` holds for each block what is added to its output, (B, N, D) or None.
        """
        if residuals is not None and len(residuals) != len(self.blocks):
            raise ValueError(
                f"{len(residuals)} residuals for {len(self.blocks)} blocks: give one each, or None"
            )
        for index, block in enumerate(self.blocks):
            hidden_states = self.run_block(lambda x, block=block: block(x, *args, **kwargs), hidden_states)
            residual = residuals[index] if residuals is not None else None
            if residual is not None:
                hidden_states = hidden_states + residual
        return hidden_states

    def run_block(self, call: Callable[[Tensor], Tensor], hidden_states: Tensor) -> Tensor:
        """``call`` one block; with gradient checkpointing it is called again in the backward pass."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(call, hidden_states)
        return call(hidden_states)

    def head(self, hidden_states: Tensor, conditioning: Tensor, grid: Sequence[int]) -> Tensor:
        """(B, N, D) -> (B, out_channels, *spatial)."""
        sample = unpatchify(self.final_layer(hidden_states, conditioning), grid, self.patch_size)
        return sample if self.config.keep_sigma else sample[:, : self.prediction_channels]


def _two_layers(in_features: int, hidden_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_features, hidden_size), nn.GELU(approximate="tanh"), nn.Linear(hidden_size, hidden_size)
    )
