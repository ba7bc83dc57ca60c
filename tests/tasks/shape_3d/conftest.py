"""Tiny models and meshes for the tests of 3D shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polydit.core.autoencoders.triplane import TriplaneVAE
from polydit.core.backbones.d3d_dit import D3DDiT
from polydit.core.backbones.dit_3d import DiT3D
from polydit.core.diffusion import Objective, make_scheduler
from polydit.core.geometry.primitives import Placed, Union, box
from polydit.core.geometry.writing import mesh_bytes
from polydit.tasks.shape_3d.cloud_pipeline import PointCloudPipeline
from polydit.tasks.shape_3d.conditions import PictureEncoder
from polydit.tasks.shape_3d.triplane_pipeline import TriplanePipeline

VAE = {
    "resolution": 4, "latent_channels": 3, "plane_channels": 8, "frequencies": 4, "num_heads": 2, "head_dim": 16,
    "num_layers": 1, "block_out_channels": [16, 16], "decoder_layers": 1, "norm_groups": 8, "head_layers": 3,
    "head_width": 32,
}  # fmt: skip
DIT = {
    "resolution": 4, "in_channels": 3, "hidden_size": 48, "num_heads": 3, "depth": 2, "semantic_channels": 12,
    "pixel_channels": 12, "num_classes": 2,
}  # fmt: skip
ENCODER = {"size": 32, "widths": [8, 16], "semantic_channels": 12, "pixel_channels": 12}
CLOUD = {"input_size": 8, "patch_size": 2, "hidden_size": 24, "depth": 2, "num_heads": 2, "num_classes": 2}


def scattered(model, seed=0):
    """Also the layers that start at zero get weights, so that everything reaches the output."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture(scope="session")
def block():
    """A flat block of 1.9 x 0.6 x 1.2."""
    return Union([Placed(box(1.9, 0.6, 1.2), np.zeros(3))]).mesh(16)


@pytest.fixture(scope="session")
def block_file(block, tmp_path_factory):
    file = tmp_path_factory.mktemp("mesh") / "block.glb"
    file.write_bytes(mesh_bytes(block, "glb"))
    return file


@pytest.fixture
def cloud_pipe():
    objective = Objective()
    return PointCloudPipeline(
        scattered(DiT3D(**CLOUD)),
        make_scheduler("euler", objective),
        {"categories": ["chair", "table"], "points": 64, "mean": [0.0, 0.1, 0.0], "std": 0.4, "steps": 3},
        objective.config(),
    )


@pytest.fixture
def triplane_pipe():
    objective = Objective()
    return TriplanePipeline(
        scattered(TriplaneVAE(**VAE)),
        scattered(D3DDiT(**DIT), 1),
        scattered(PictureEncoder(**ENCODER), 2),
        scheduler=make_scheduler("euler", objective),
        formulation={"categories": ["chair", "table"], "size": 32, "guidance_scale": 2.0, "steps": 2},
        parameterization=objective.config(),
    )
