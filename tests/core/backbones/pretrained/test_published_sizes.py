"""The published configurations on the meta device: numbers of parameters, and the shapes that go in and out."""

# ruff: noqa: C408 - configurations read like the calls they are
from __future__ import annotations

import json

import diffusers
import pytest
import torch

from polydit.core.backbones.pretrained import load_transformer

SD35 = dict(sample_size=128, patch_size=2, in_channels=16, attention_head_dim=64, joint_attention_dim=4096,
            pooled_projection_dim=2048, out_channels=16)  # fmt: skip
COG5 = dict(num_attention_heads=48, num_layers=42, use_rotary_positional_embeddings=True)
XL = dict(
    num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28, patch_size=2
)

# class, what its configuration changes, parameters, latents (C, [T,] H, W), width of the text, tokens of the text
PUBLISHED = {
    "DiT-XL/2": ("DiT", dict(XL, sample_size=32, num_embeds_ada_norm=1000), 749_826_464, (4, 32, 32), None, None),
    "PixArt-alpha 1024": (
        "PixArt", dict(XL, sample_size=128, cross_attention_dim=1152, caption_channels=4096), 611_349_152,
        (4, 96, 160), 4096, 120,
    ),
    "PixArt-Sigma 1024": (
        "PixArt", dict(XL, sample_size=128, cross_attention_dim=1152, caption_channels=4096,
                       use_additional_conditions=False), 610_856_096, (4, 96, 160), 4096, 300,
    ),
    "SD3 medium": (
        "SD3", dict(SD35, num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192),
        2_028_328_000, (16, 96, 160), 4096, 333,
    ),
    "SD3.5 medium": (
        "SD3", dict(SD35, num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=384,
                    dual_attention_layers=list(range(13)), qk_norm="rms_norm"), 2_243_171_520, (16, 96, 160), 4096, 333,
    ),
    "SD3.5 large": (
        "SD3", dict(SD35, num_layers=38, num_attention_heads=38, caption_projection_dim=2432, pos_embed_max_size=192,
                    qk_norm="rms_norm"), 8_056_627_520, (16, 96, 160), 4096, 333,
    ),
    "FLUX.1 dev": ("Flux", dict(guidance_embeds=True), 11_901_408_320, (16, 96, 160), 4096, 512),
    "FLUX.1 schnell": ("Flux", {}, 11_891_178_560, (16, 96, 160), 4096, 512),
    "FLUX.1 Fill": (
        "Flux", dict(guidance_embeds=True, in_channels=384, out_channels=64), 11_902_391_360, (96, 96, 160), 4096, 512,
    ),
    "SANA 0.6B": (
        "Sana", dict(num_layers=28, num_attention_heads=36, num_cross_attention_heads=16, cross_attention_head_dim=72,
                     cross_attention_dim=1152), 591_747_872, (32, 24, 40), 2304, 300,
    ),
    "SANA 1.6B": ("Sana", {}, 1_604_462_752, (32, 24, 40), 2304, 300),
    "LTX-Video 2B": ("LTXVideo", {}, 1_923_385_472, (128, 4, 15, 22), 4096, 128),
    "Wan 2.1 1.3B": (
        "Wan", dict(num_attention_heads=12, ffn_dim=8960, num_layers=30), 1_418_996_800, (16, 3, 60, 104), 4096, 512,
    ),
    "Wan 2.1 14B": ("Wan", {}, 14_288_491_584, (16, 3, 60, 104), 4096, 512),
    "Wan 2.2 5B": (
        "Wan", dict(num_attention_heads=24, in_channels=48, out_channels=48, ffn_dim=14336, num_layers=30),
        4_999_787_712, (48, 3, 44, 80), 4096, 512,
    ),
    "CogVideoX 2B": ("CogVideoX", {}, 1_693_783_872, (16, 3, 60, 90), 4096, 226),
    "CogVideoX 5B": ("CogVideoX", COG5, 5_570_283_072, (16, 3, 60, 90), 4096, 226),
    "CogVideoX 1.5 5B": (
        "CogVideoX", dict(COG5, patch_size_t=2, patch_bias=False, sample_height=300, sample_width=300,
                          sample_frames=81, max_text_seq_length=224), 5_570_676_352, (16, 4, 96, 170), 4096, 224,
    ),
    "Qwen-Image": ("QwenImage", {}, 20_430_401_088, (16, 96, 160), 3584, None),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configuration(name, tmp_path):
    family, config, parameters, latents, width, length = PUBLISHED[name]
    video = family in ("LTXVideo", "Wan", "CogVideoX")
    model = f"{family}Transformer{3 if video else 2}DModel"
    assert set(config) <= set(getattr(diffusers, model)._get_init_keys(getattr(diffusers, model)))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": model, **config}))
    with torch.device("meta"):
        adapter = load_transformer(str(tmp_path), dtype="bfloat16")
    assert sum(p.numel() for p in adapter.parameters()) == parameters
    assert adapter.in_channels == latents[0]
    text = adapter.text_inputs
    assert (text and text.width, text and text.length) == (width, length)

    for blocks in ("transformer_blocks", "single_transformer_blocks", "blocks"):
        if hasattr(adapter.transformer, blocks):  # what all blocks do alike need not be done 60 times
            setattr(adapter.transformer, blocks, getattr(adapter.transformer, blocks)[:1])
    condition = {}
    with torch.device("meta"), torch.no_grad():
        if text is not None:
            condition["encoder_hidden_states"] = torch.empty(1, length or 50, width)
            if text.pooled_width:
                condition["pooled_projections"] = torch.empty(1, text.pooled_width)
        else:
            condition["class_labels"] = torch.zeros(1, dtype=torch.long)
        sample = adapter(torch.empty(1, *latents), torch.ones(1), **condition).sample
    assert sample.shape == (1, adapter.latent_channels, *latents[1:])
    assert adapter.latent_channels == {"FLUX.1 Fill": 16}.get(name, latents[0])
