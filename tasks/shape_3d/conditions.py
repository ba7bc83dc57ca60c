"""Pictures as semantic and pixel-level tokens: a small convolutional encoder, or networks in transformers' format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ...core.errors import PolyditError

__all__ = ["PictureEncoder", "TransformersEncoder", "token_shapes"]


class PictureEncoder(ModelMixin, ConfigMixin):
    """A small convolutional network, trained with the transformer that reads it.

    Args:
        size: side of the pictures it is made for.
        widths: of its steps; each halves the picture.
        semantic_channels: width of the semantic tokens.
        pixel_channels: width of the pixel-level tokens.
    """

    @register_to_config
    def __init__(
        self,
        size: int = 64,
        widths: list[int] = [32, 64, 96],  # noqa: B006 - read only
        semantic_channels: int = 96,
        pixel_channels: int = 96,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inner = 4  # luma, alpha, and where: real photographs have colours that no rendering has
        for width in widths:
            layers += [nn.Conv2d(inner, width, 3, 2, 1), nn.GroupNorm(8, width), nn.SiLU()]
            layers += [nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(8, width), nn.SiLU()]
            inner = width
        self.body = nn.Sequential(*layers)
        self.to_pixel = nn.Conv2d(inner, pixel_channels, 1)
        self.to_semantic = nn.Linear(inner, semantic_channels)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 4, S, S), RGB in [-1, 1] and alpha, to tokens: semantic (B, 17, C), pixel-level (B, P, C')."""
        luma = (picture[:, :3] * picture.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(
            1, keepdim=True
        )
        axis = torch.linspace(-1, 1, picture.shape[-1], device=picture.device, dtype=picture.dtype)
        where = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).expand(len(picture), -1, -1, -1)
        features = self.body(torch.cat([luma, picture[:, 3:], where], dim=1))
        pixel = self.to_pixel(features).flatten(2).transpose(1, 2)
        summary = features.mean((2, 3))[:, None]
        parts = F.adaptive_avg_pool2d(features, 4).flatten(2).transpose(1, 2)
        return self.to_semantic(torch.cat([summary, parts], dim=1)), pixel


class TransformersEncoder(nn.Module):
    """Two vision networks of the user, such as CLIP ViT-L/14 for meaning and DINOv2-L for detail; frozen.

    Args:
        semantic: a network whose answer has ``last_hidden_state`` (B, M, C), its first token a summary.
        pixel: likewise; its tokens are the pixel-level ones.
        sizes: side of the pictures that each takes.
    """

    MEANS = ((0.4815, 0.4578, 0.4082), (0.485, 0.456, 0.406))
    DEVIATIONS = ((0.2686, 0.2613, 0.2758), (0.229, 0.224, 0.225))

    def __init__(self, semantic: nn.Module, pixel: nn.Module, sizes: tuple[int, int] = (224, 518)) -> None:
        super().__init__()
        self.semantic, self.pixel, self.sizes = semantic, pixel, sizes
        self.requires_grad_(False)

    @classmethod
    def from_folders(cls, semantic: str | None = None, pixel: str | None = None) -> TransformersEncoder:
        """Load both from folders in transformers' format; of a CLIP its vision part.

        While the device is ``meta``, a missing one stands for the published network's shapes.

        Raises:
            PolyditError: a folder is missing, or holds no vision network.
        """
        from transformers import (
            AutoConfig,
            AutoModel,
            CLIPVisionConfig,
            CLIPVisionModel,
            Dinov2Config,
            Dinov2Model,
        )

        if semantic is None and pixel is None and torch.get_default_device().type == "meta":
            wide = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
            clip = CLIPVisionModel(CLIPVisionConfig(**wide, intermediate_size=4096, image_size=224))
            return cls(clip, Dinov2Model(Dinov2Config(**wide, image_size=518)))

        networks, sizes = [], []
        for option, folder in (("semantic", semantic), ("pixel", pixel)):
            if folder is None or not Path(folder).is_dir():
                raise PolyditError(
                    f"--model.encoder.{option} {folder}: no such folder; give one in transformers' format"
                )
            try:
                config = AutoConfig.from_pretrained(folder)
                kind = CLIPVisionModel if config.model_type in ("clip", "clip_vision_model") else AutoModel
                network = kind.from_pretrained(folder, use_safetensors=True)
                sizes.append(int(network.config.image_size))
            except (OSError, ValueError, AttributeError) as error:
                line = " ".join(str(error).split())[:160]
                raise PolyditError(
                    f"--model.encoder.{option} {folder}: no vision network ({line})"
                ) from error
            networks.append(network)
        return cls(networks[0], networks[1], (sizes[0], sizes[1]))

    @torch.no_grad()
    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 4, S, S) to semantic and pixel-level tokens."""
        tokens = []
        for network, size, mean, deviation in zip(
            (self.semantic, self.pixel), self.sizes, self.MEANS, self.DEVIATIONS, strict=True
        ):
            shown = F.interpolate((picture[:, :3] + 1) / 2, (size, size), mode="bicubic", antialias=True)
            column = [shown.new_tensor(numbers)[:, None, None] for numbers in (mean, deviation)]
            tokens.append(network(((shown - column[0]) / column[1]).to(_dtype(network))).last_hidden_state)
        return tokens[0], tokens[1]


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


def token_shapes(encoder: Any, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens of no picture: zeros of the shapes that the encoder gives for one of this size, (1, M, C) each."""
    with torch.no_grad():
        semantic, pixel = encoder(torch.zeros(1, 4, size, size, device=device, dtype=_dtype(encoder)))
    return torch.zeros_like(semantic), torch.zeros_like(pixel)
