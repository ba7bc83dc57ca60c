"""Networks small enough for a test, and pictures to run them on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from PIL import Image

from polydit.core.backbones import DiT
from polydit.core.conditioning import StreamDiT
from polydit.core.diffusion import DiscretePath, Objective, TimeConvention, make_scheduler
from polydit.tasks.super_resolution.formulation import Formulation
from polydit.tasks.super_resolution.pipeline import SuperResolutionPipeline


def wake(model: torch.nn.Module, seed: int = 0, amount: float = 0.1) -> torch.nn.Module:
    """Random weights where the initialisation has zeros, so that every path of the network is open."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return model


def backbone(conditioning: str, channels: int, condition_channels: int, scales: int, **options: Any) -> Any:
    settings = {
        "input_size": 16, "patch_size": 2, "hidden_size": 16, "depth": 2, "num_heads": 1, "position": "rope",
        "qk_norm": "rms", "num_classes": scales if scales > 1 else None, "class_dropout_prob": 0.0, **options,
    }  # fmt: skip
    torch.manual_seed(0)
    if conditioning == "stream":
        return StreamDiT(in_channels=channels, condition_channels=condition_channels, **settings)
    return DiT(in_channels=channels + condition_channels, out_channels=channels, **settings)


@pytest.fixture
def tiny() -> Callable[..., SuperResolutionPipeline]:
    """``tiny(conditioning, vae=..., ...)``: a pipeline with random weights; other arguments are of Formulation."""

    def build(
        conditioning: str = "stream",
        vae: Any = None,
        prediction: str = "x0",
        backbone_options: dict | None = None,
        **settings: Any,
    ) -> SuperResolutionPipeline:
        if vae is None:
            settings = {"residual_scale": 0.2, "scales": (2, 3, 4), **settings}
        formulation = Formulation(conditioning=conditioning, **settings)
        channels = 3 if vae is None else vae.config.latent_channels
        condition_channels = 6 if vae is None else 3 if formulation.low_condition else channels
        options = {"window_size": 4, "norm": "none"} if vae is None else {}
        model = backbone(
            conditioning,
            channels,
            condition_channels,
            len(formulation.scales),
            **{**options, **(backbone_options or {})},
        )
        objective = Objective(prediction=prediction)
        if (
            prediction == "epsilon"
        ):  # as LDM-SR has it; on the linear path pure noise says nothing about the data
            path = DiscretePath(schedule="scaled_linear", beta_start=0.0015, beta_end=0.0155)
            objective = Objective(path, prediction, time=TimeConvention(discrete=True))
        return SuperResolutionPipeline(
            transformer=wake(model).eval(),
            scheduler=make_scheduler("euler", objective),
            vae=vae,
            formulation=formulation.config(),
            parameterization=objective.config(),
        )

    return build


@pytest.fixture
def kl() -> AutoencoderKL:
    """Shrinks by 4, two latent channels."""
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(4, 4, 4),
        norm_num_groups=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=2,
        layers_per_block=1,
        scaling_factor=0.5,
    )


@pytest.fixture
def vq() -> VQModel:
    """LDM-SR's kind: shrinks by 4, three latent channels, quantised."""
    torch.manual_seed(1)
    return VQModel(
        block_out_channels=(4, 4, 4),
        norm_num_groups=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=3,
        layers_per_block=1,
        num_vq_embeddings=32,
        vq_embed_dim=3,
        scaling_factor=1.0,
    )


def texture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft noise with edges in it."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 255, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    picture = np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    picture[:: max(height // 5, 1)] = 255 - picture[:: max(height // 5, 1)]
    return Image.fromarray(picture)


@pytest.fixture
def make_texture() -> Callable[..., Image.Image]:
    return texture


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three pictures of 64 x 56."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        texture(64, 56, number).save(folder / f"picture_{number}.png")
    return folder
