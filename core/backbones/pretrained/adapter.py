"""What the adapters of all families have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from .hooks import adding

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

__all__ = ["DDPM", "FLOW", "PretrainedTransformer", "TextInputs"]

FLOW: dict[str, Any] = {
    "path": {"name": "linear"},
    "prediction": "velocity",
    "time": {"scale": 1000.0, "flip": False, "discrete": False},
}
"""Rectified flow: velocity from data to noise, time 0 .. 1000. The layout is ``Parameterization.config()``'s."""

DDPM: dict[str, Any] = {
    "path": {"name": "discrete", "schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "steps": 1000},
    "prediction": "epsilon",
    "time": {"scale": 1000.0, "flip": False, "discrete": True},
}
"""DDPM (arXiv 2006.11239) with linear betas: the noise, at whole indices 0 .. 999."""


@dataclass(frozen=True)
class TextInputs:
    """Which text a transformer reads.

    Attributes:
        width: Of ``encoder_hidden_states`` (B, tokens, width).
        pooled_width: Of ``pooled_projections`` (B, pooled_width); None if it takes none.
        length: Tokens, padding included, that the published pipeline passes.
        exact_length: True if no other number of tokens works.
        masked: Whether it takes ``encoder_attention_mask`` (B, tokens), 1 for a token and 0 for padding.
    """

    width: int
    pooled_width: int | None = None
    length: int | None = None
    exact_length: bool = False
    masked: bool = False


class PretrainedTransformer(nn.Module):
    """A diffusers transformer behind the call of a backbone.

    ``adapter(hidden_states, timestep, ...)`` takes latents (B, C, H, W) or (B, C, T, H, W) and returns an object whose
    ``.sample`` has their shape. Inputs are cast to the weights' dtype, the answer to that of the latents. Families for
    video take a picture (B, C, H, W) as one frame.

    Args:
        transformer: The loaded diffusers model; kept under the same name.

    Attributes:
        parameterization_config: What the network's output means: path, kind of prediction and time;
            ``polydit.core.diffusion.Parameterization.from_config`` reads it, ``Objective`` takes the same three.
        video: Whether the family takes (B, C, T, H, W).
        hidden_output: Which output of a block are the latents' tokens (B, tokens, width); None where it has only one.
        self_attention: Names, inside a block, of the attention among the latents' tokens.
        group_axis: Whether the group of ``position_ids`` has a part in them.
        timestep_per_token: Whether ``timestep`` may be (B, tokens).
        text_order: Where text shares the attention of the latents: ``"before"`` or ``"after"`` them in the sequence;
            None where it has an attention of its own.
    """

    parameterization_config: dict[str, Any] = FLOW
    video: ClassVar[bool] = False
    hidden_output: ClassVar[int | None] = None
    self_attention: ClassVar[tuple[str, ...]] = ("attn1",)
    group_axis: ClassVar[bool] = False
    timestep_per_token: ClassVar[bool] = False
    text_order: ClassVar[Literal["before", "after"] | None] = None

    def __init__(self, transformer: ModelMixin) -> None:
        super().__init__()
        self.transformer = transformer
        self.training = transformer.training

    def __call__(
        self,
        *args: Any,
        block_controlnet_hidden_states: Sequence[Tensor | None] | None = None,
        **kwargs: Any,
    ) -> Transformer2DModelOutput:
        """Run the family's ``forward``.

        Args:
            args: Of the family's ``forward``.
            block_controlnet_hidden_states: What is added to the latents' tokens behind each of :attr:`blocks`,
                (B, tokens, width) or None; what a side branch answers.
            kwargs: Of the family's ``forward``.
        """
        if block_controlnet_hidden_states is None:
            return super().__call__(*args, **kwargs)
        with adding(self.transformer, self.blocks, block_controlnet_hidden_states, self.hidden_output):
            return super().__call__(*args, **kwargs)

    # -- what a family answers -----------------------------------------------------------------------------

    @property
    def patch(self) -> tuple[int, ...]:
        """Latents per token along ([time,] height, width)."""
        return (self.config.patch_size,) * 2

    @property
    def columns_per_channel(self) -> int:
        """Columns of the input layer per channel of the latents: more than 1 where latents arrive packed."""
        return 1

    @property
    def config_channels(self) -> int:
        """What ``config.in_channels`` counts per channel of the latents."""
        return 1

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that it denoises, and of ``.sample``."""
        return (self.config.out_channels or self.config.in_channels) // self.config_channels

    @property
    def takes_position_ids(self) -> bool:
        """Whether ``forward`` has ``position_ids`` (tokens, 1 + axes): a group, then the place, for each token.

        What ``polydit.core.conditioning.Position.ids`` gives; without them tokens stand on their own grid.
        """
        return False

    @property
    def text_inputs(self) -> TextInputs | None:
        """Which text it reads; None for none."""
        raise NotImplementedError

    # -- what is passed through ----------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """That of the diffusers model."""
        return self.transformer.config

    @property
    def dtype(self) -> torch.dtype:
        """In which the diffusers model computes."""
        return self.transformer.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.device

    @property
    def in_channels(self) -> int:
        """Channels that ``hidden_states`` must have: those of the latents and of conditions concatenated to them."""
        return self.config.in_channels // self.config_channels

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks in the order they run."""
        return list(self.transformer.transformer_blocks)

    def grid_of(self, hidden_states: Tensor) -> tuple[int, ...]:
        """Tokens along ([time,] height, width) for latents that :meth:`enter` takes."""
        sizes = tuple(hidden_states.shape[2:])
        if self.video and len(sizes) == 2:
            sizes = (1, *sizes)
        return tuple(size // patch for size, patch in zip(sizes, self.patch, strict=True))

    def shallow_config(self, depth: int) -> dict[str, Any]:
        """Configuration of a model whose first ``depth`` blocks have this one's shapes."""
        return {**self.config, "num_layers": depth}

    @property
    def _repeated_blocks(self) -> list[str]:
        """Classes of the blocks; diffusers lists them for some families only."""
        return sorted({type(block).__name__ for block in self.blocks})

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compile each block, as diffusers does for the families that it knows the blocks of."""
        for block in self.blocks:
            block.compile(*args, **kwargs)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the blocks' activations in the backward pass."""
        self.transformer.enable_gradient_checkpointing()

    def disable_gradient_checkpointing(self) -> None:
        """Undo :meth:`enable_gradient_checkpointing`."""
        self.transformer.disable_gradient_checkpointing()

    # -- on the way in and out -----------------------------------------------------------------------------

    def enter(self, hidden_states: Tensor) -> Tensor:
        """Latents as the family takes them, (B, C, H, W) or (B, C, T, H, W), in the weights' dtype.

        Raises:
            ValueError: the axes, the channels or the sizes do not fit.
        """
        if self.video and hidden_states.ndim == 4:
            hidden_states = hidden_states.unsqueeze(2)
        axes = len(self.patch)
        name = type(self.transformer).__name__
        if hidden_states.ndim != axes + 2:
            layout = "(B, C, T, H, W) or (B, C, H, W)" if self.video else "(B, C, H, W)"
            raise ValueError(f"{name} takes latents {layout}, not {tuple(hidden_states.shape)}")
        if hidden_states.shape[1] != self.in_channels:
            raise ValueError(f"{name} takes {self.in_channels} channels, not {hidden_states.shape[1]}")
        sizes = tuple(hidden_states.shape[2:])
        if any(size % patch for size, patch in zip(sizes, self.patch, strict=True)):
            raise ValueError(
                f"latents of size {list(sizes)} do not divide by {name}'s patches {list(self.patch)}"
            )
        return hidden_states.to(self.dtype)

    def cast(self, value: Tensor | None) -> Tensor | None:
        """An embedding in the weights' dtype."""
        return None if value is None else value.to(self.dtype)

    def leave(self, sample: Tensor, hidden_states: Tensor) -> Transformer2DModelOutput:
        """The answer in the layout and dtype of the latents that came in."""
        if hidden_states.ndim == 4 and sample.ndim == 5:
            sample = sample.squeeze(2)
        return Transformer2DModelOutput(sample=sample.to(hidden_states.dtype))

    def guidance(self, guidance_scale: float | Tensor, hidden_states: Tensor) -> Tensor | None:
        """The scale as (B,) float32 for a guidance-distilled model, None for another."""
        if not self.config.guidance_embeds:
            return None
        scale = torch.as_tensor(guidance_scale, dtype=torch.float32, device=hidden_states.device)
        return scale.expand(hidden_states.shape[0])
