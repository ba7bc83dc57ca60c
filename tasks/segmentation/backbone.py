"""The transformers of DiffDIS: the native DiT with its parts inside, and pretrained ones with the parts beside them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ...core.backbones.dit import DiT
from ...core.backbones.pretrained import PretrainedTransformer
from ...core.backbones.pretrained.hooks import surviving_checkpoints
from ...core.backbones.variant import extends
from .dichotomy import DichotomyParts
from .stem import ConvHead, ConvStem

__all__ = ["DichotomousDiT", "DichotomyModel", "PretrainedDichotomy", "parts_for"]


class DichotomousDiT(DiT):
    """The native DiT with BDE, DBIA and SWCI, see :mod:`.dichotomy`.

    Args:
        latent_channels: of the picture's latents, which SWCI reads.
        embed: BDE: needed where the batch has a mask half and an edge half.
        interact: DBIA.
        scales: of SWCI, 0 to 3.
        interact_gate: where DBIA's gate starts.
        stem: channels of the first map of a stem of convolutions, see :mod:`.stem`; 0 keeps the DiT's linear patches.
        **kwargs: of :class:`DiT`; ``in_channels`` counts picture and noise.
    """

    _cp_plan = None  # one half of the batch looks at the other

    @extends(DiT)
    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        embed: bool = True,
        interact: bool = True,
        scales: int = 3,
        interact_gate: float = 0.0,
        stem: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        config = self.config
        self.conv_head = None
        if stem:
            self.patch_embed = ConvStem(config.in_channels, config.hidden_size, stem, max(self.patch_size))
            self.conv_head = ConvHead(config.hidden_size, self.patch_embed.widths, self.out_channels)
            del self.final_layer  # unused weights trouble distributed training
        self._maps: list[Tensor] = []
        self.parts = DichotomyParts(
            config.hidden_size,
            config.num_heads,
            config.depth,
            latent_channels,
            config.qk_norm,
            embed,
            interact,
            scales,
            interact_gate,
        )
        self._scales: Sequence[Tensor] | None = None
        self._halves: Tensor | None = None

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        scales: Sequence[Tensor] | None = None,
        halves: Tensor | None = None,
        **kwargs: Any,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict; mask half first, then edge half.

        Args:
            hidden_states: (B, C, h, w), of two halves (2B, C, h, w): picture and noise as channels.
            timestep: (B,).
            scales: the picture at 1/2, 1/4, 1/8, (B, latent_channels, h', w') each; None injects nothing.
            halves: labels of the halves, see :func:`~.dichotomy.halves`.
            **kwargs: of :meth:`DiT.forward`.
        """
        self._scales, self._halves = scales, halves
        try:
            return super().forward(hidden_states, timestep, **kwargs)
        finally:
            self._scales = self._halves = None
            self._maps = []

    def embed_tokens(self, hidden_states: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D) with additive positions."""
        if self.conv_head is None:
            return super().embed_tokens(hidden_states)
        tokens, self._maps = self.patch_embed(hidden_states)
        if self.pos_embed is not None:
            tokens = tokens + self.position_table(self.grid_of(hidden_states), tokens.device).to(tokens.dtype)
        return tokens

    def head(self, hidden_states: Tensor, conditioning: Tensor, grid: Sequence[int]) -> Tensor:
        """(B, N, D) -> (B, out_channels, H, W)."""
        if self.conv_head is None:
            return super().head(hidden_states, conditioning, grid)
        return self.conv_head(hidden_states, self._maps, tuple(grid))

    def embed_condition(self, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """That of the DiT, and which half a row is of."""
        embedded = super().embed_condition(timestep, *args, **kwargs)
        return embedded if self._halves is None else embedded + self.parts.embed(self._halves)

    def run_blocks(
        self, hidden_states: Tensor, *args: Any, grids: Sequence[Any] = (), **kwargs: Any
    ) -> Tensor:
        """All blocks, with what the parts do behind them."""
        kwargs.pop("residuals", None)
        for number, block in enumerate(self.blocks):
            hidden_states = self.run_block(
                lambda x, block=block: block(x, *args, grids=grids, **kwargs), hidden_states
            )
            hidden_states = self.parts.behind(number, hidden_states, grids[0], self._scales)
        return hidden_states


class DichotomyModel(ModelMixin, ConfigMixin):
    """The parts for a transformer that is used as it is; a pipeline saves them beside it.

    Args:
        hidden_size: width of the transformer's tokens.
        num_heads: its heads.
        depth: its blocks.
        channels: of its latents.
        embed: BDE.
        interact: DBIA.
        scales: of SWCI.
        interact_gate: where DBIA's gate starts.
    """

    @register_to_config
    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        depth: int,
        channels: int,
        embed: bool = True,
        interact: bool = True,
        scales: int = 3,
        interact_gate: float = 0.0,
    ) -> None:
        super().__init__()
        self.parts = DichotomyParts(
            hidden_size, num_heads, depth, channels, None, embed, interact, scales, interact_gate
        )
        if self.parts.embedding is not None:
            # It is added to the tokens of a trained network, not to a timestep that nobody used before.
            nn.init.zeros_(self.parts.embedding[-1].weight)
            nn.init.zeros_(self.parts.embedding[-1].bias)


def parts_for(network: PretrainedTransformer, **options: Any) -> DichotomyModel:
    """Parts of the right size for a diffusers transformer."""
    config = network.config
    return DichotomyModel(
        hidden_size=config.num_attention_heads * config.attention_head_dim,
        num_heads=config.num_attention_heads,
        depth=len(network.blocks),
        channels=network.latent_channels,
        **options,
    )


class PretrainedDichotomy(nn.Module):
    """A diffusers transformer and its parts behind the call of :class:`DichotomousDiT`.

    The timestep embedding has another place in each family, so BDE is added to the tokens behind the first block.

    Args:
        network: the adapter; its input has been widened.
        model: the parts.
    """

    def __init__(self, network: PretrainedTransformer, model: DichotomyModel) -> None:
        super().__init__()
        self.network, self.model = network, model

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        scales: Sequence[Tensor] | None = None,
        halves: Tensor | None = None,
        **text: Any,
    ) -> Transformer2DModelOutput:
        """As :meth:`DichotomousDiT.forward`; ``text`` is of the family's ``forward``."""
        network, parts = self.network, self.model.parts
        offset = parts.embed(halves) if halves is not None else None
        grid = network.grid_of(hidden_states)[-2:]

        def context() -> ExitStack:
            stack = ExitStack()
            parts.hooks(stack, network.blocks, grid, scales, network.hidden_output, offset)
            return stack

        with surviving_checkpoints(network.transformer, context):
            return network(hidden_states, timestep, **text)
