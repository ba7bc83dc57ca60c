"""A tiny DiT-IC with random weights, of diffusers' own classes."""

import pytest
import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel

from polydit.core.backbones.dit_ic import DC_AE, DiTICLatentCodec, LatentPrompter
from polydit.core.backbones.elic import ElicAnalysis
from polydit.tasks.compression.dit_ic.pipeline import DiTICPipeline

SANA = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2,
    "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 12,
    "mlp_ratio": 2.0, "sample_size": 8, "patch_size": 1,
}  # fmt: skip
VAE = {
    **DC_AE, "latent_channels": 4, "attention_head_dim": 4, "encoder_block_types": ["ResBlock"] * 6,
    "decoder_block_types": ["ResBlock"] * 6, "encoder_block_out_channels": [4] * 6,
    "decoder_block_out_channels": [4] * 6, "encoder_layers_per_block": [1] * 6, "decoder_layers_per_block": [1] * 6,
    "encoder_qkv_multiscales": [[]] * 6, "decoder_qkv_multiscales": [[]] * 6,
}  # fmt: skip


def tiny_parts(seed=0):
    torch.manual_seed(seed)
    parts = {
        "transformer": SanaTransformer2DModel(**SANA),
        "codec": DiTICLatentCodec(4, 16),
        "prompter": LatentPrompter(16, 12, 7, 4),
        "vae": AutoencoderDC(**VAE),
        "features": ElicAnalysis(8, 16),
    }
    codec = parts["codec"]
    with torch.no_grad():  # enough to code, and no more than the scales expect
        codec.g_a.analysis_transform[-1].ffn[-1].weight.mul_(5)
        codec.g_a.pre1[0].weight.mul_(1.5)
        codec.entropy_bottleneck.quantiles[:, 0, 1] = torch.randn(8)
        for out in codec.context.adapter_out:
            out[-1].bias[16:] = torch.linspace(0.5, 6, 16)
    codec.count()
    return {name: part.eval() for name, part in parts.items()}


@pytest.fixture(scope="session")
def parts_with_seed():
    return tiny_parts


@pytest.fixture(scope="session")
def pipeline():
    return DiTICPipeline(**tiny_parts())


@pytest.fixture(scope="session")
def folder(pipeline, tmp_path_factory):
    place = tmp_path_factory.mktemp("dit_ic")
    pipeline.save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def picture():
    torch.manual_seed(3)
    coarse = torch.rand(1, 3, 5, 7) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (300, 410), mode="bicubic").clamp(-1, 1)[0]
