"""EraserDiT's released checkpoints: LTX-Video's transformer with the mask and the masked video as channels.

"EraserDiT: Fast Video Inpainting with Diffusion Transformer Model", arXiv 2506.12853. The keys are diffusers' own.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import LTXVideoTransformer3DModel
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from ..errors import PolyditError
from .official import load_matching
from .pretrained.ltx_video import PretrainedLTXVideo

__all__ = ["EraserDiTTransformer", "eraserdit_from_official", "eraserdit_to_official"]


class EraserDiTTransformer(nn.Module):
    """The transformer behind the official call; ``backbone`` is the one of every pipeline here.

    Args:
        backbone: 2 C + 1 channels in, C out.
    """

    def __init__(self, backbone: PretrainedLTXVideo) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        encoder_attention_mask: Tensor,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        rope_interpolation_scale: tuple[float, float, float] | None = None,
        cond_latents: Tensor | None = None,
        mask_values: Tensor | None = None,
    ) -> Transformer2DModelOutput:
        """Velocity.

        Args:
            hidden_states: (B, C, T, H, W), noisy.
            encoder_hidden_states: (B, tokens, width).
            timestep: (B,), 0 .. 1000.
            encoder_attention_mask: (B, tokens).
            num_frames: T; the latents say it themselves.
            height: H, likewise.
            width: W, likewise.
            rope_interpolation_scale: seconds of a latent frame, then 32 and 32 pixels.
            cond_latents: (B, C, T, H, W), of the masked video.
            mask_values: (B, 1, T, H, W).
        """
        assert cond_latents is not None
        assert mask_values is not None
        given = (num_frames, height, width)
        if any(n is not None and n != own for n, own in zip(given, hidden_states.shape[2:], strict=True)):
            raise ValueError(f"latents of {tuple(hidden_states.shape[2:])} and sizes {given}")
        seconds = rope_interpolation_scale[0] if rope_interpolation_scale is not None else 8 / 25
        return self.backbone(
            torch.cat([hidden_states, cond_latents, mask_values.to(hidden_states)], 1),
            timestep,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            frame_rate=self.backbone.temporal_factor / seconds,
        )


def eraserdit_from_official(state_dict: dict[str, Tensor], **config: Any) -> EraserDiTTransformer:
    """The native model with the weights of a released checkpoint.

    Raises:
        PolyditError: the channels are not those of the method, or keys do not fit.
    """
    channels = config.get("out_channels", 128)
    if config.get("in_channels") != 2 * channels + 1:
        raise PolyditError(
            f"eraserdit: in_channels {config.get('in_channels')} for out_channels {channels}; it takes 2 C + 1"
        )
    transformer = LTXVideoTransformer3DModel(**config)
    return EraserDiTTransformer(PretrainedLTXVideo(load_matching(transformer, state_dict, "eraserdit")))


def eraserdit_to_official(model: EraserDiTTransformer) -> dict[str, Tensor]:
    """The inverse: diffusers' names are the official ones."""
    return model.backbone.transformer.state_dict()
