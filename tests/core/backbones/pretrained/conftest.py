"""Tiny randomly initialised checkpoints of every family, and how its pipeline in diffusers calls it."""

# ruff: noqa: C408 - configurations read like the calls they are
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import CogVideoXPipeline, FluxPipeline, LTXPipeline, QwenImagePipeline
from torch import Tensor

TEXT = 6


@dataclass
class Family:
    """One checkpoint.

    Attributes:
        model: diffusers class.
        config: of the tiny model.
        latents: (C, [T,] H, W).
        condition: names of what is passed beside latents and times -> shape without the batch.
        direct: the call that the pipeline makes: (transformer, latents, timestep, **condition) -> like latents.
        discrete: whether times are whole.
    """

    model: str
    config: dict[str, Any]
    latents: tuple[int, ...]
    condition: dict[str, tuple[int, ...]]
    direct: Callable[..., Tensor]
    discrete: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def build(self, seed: int = 0, **changes: Any) -> Any:
        torch.manual_seed(seed)
        return getattr(diffusers, self.model)(**{**self.config, **changes}).eval()

    def inputs(self, batch: int = 2, seed: int = 1) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Latents, times and conditions."""
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(batch, *self.latents, generator=g)
        t = torch.tensor([700, 130]) if self.discrete else torch.tensor([701.5, 130.25])
        condition = {}
        for name, shape in self.condition.items():
            if name == "class_labels":
                condition[name] = torch.arange(batch)
            elif name.endswith("mask"):
                condition[name] = (torch.arange(shape[0]) < torch.tensor([[4], [5]])[:batch]).long()
            else:
                condition[name] = torch.randn(batch, *shape, generator=g)
        return x, t[:batch], {**condition, **self.extra}


def dit(model, x, t, class_labels):
    return model(x, timestep=t, class_labels=class_labels).sample.chunk(2, dim=1)[0]


def pixart(model, x, t, encoder_hidden_states, encoder_attention_mask):
    size = {"resolution": None, "aspect_ratio": None}
    if model.config.sample_size == 128:
        size = {
            "resolution": torch.tensor([[8.0 * x.shape[2], 8.0 * x.shape[3]]] * len(x)),
            "aspect_ratio": torch.tensor([[x.shape[2] / x.shape[3]]] * len(x)),
        }
    text = dict(encoder_hidden_states=encoder_hidden_states, encoder_attention_mask=encoder_attention_mask)
    return model(x, timestep=t, added_cond_kwargs=size, **text).sample.chunk(2, dim=1)[0]


def sd3(model, x, t, encoder_hidden_states, pooled_projections):
    return model(x, encoder_hidden_states, pooled_projections, t).sample


def flux(model, x, t, encoder_hidden_states, pooled_projections, guidance_scale=None):
    b, c, h, w = x.shape
    tokens = model(
        hidden_states=FluxPipeline._pack_latents(x, b, c, h, w),
        timestep=t / 1000,
        guidance=torch.full((b,), guidance_scale) if model.config.guidance_embeds else None,
        pooled_projections=pooled_projections,
        encoder_hidden_states=encoder_hidden_states,
        txt_ids=torch.zeros(encoder_hidden_states.shape[1], 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float32),
    ).sample
    return FluxPipeline._unpack_latents(tokens, h * 8, w * 8, 8)


def sana(model, x, t, encoder_hidden_states, encoder_attention_mask, guidance_scale=None):
    guidance = torch.full((len(x),), guidance_scale) * 0.1 if model.config.guidance_embeds else None
    text = dict(encoder_hidden_states=encoder_hidden_states, encoder_attention_mask=encoder_attention_mask)
    return model(x, timestep=t * model.config.timestep_scale, guidance=guidance, **text).sample


def ltx(model, x, t, encoder_hidden_states, encoder_attention_mask, frame_rate=25.0):
    frames, h, w = x.shape[2:]
    p, p_t = model.config.patch_size, model.config.patch_size_t  # the published models have 1
    tokens = model(
        hidden_states=LTXPipeline._pack_latents(x, p, p_t),
        encoder_hidden_states=encoder_hidden_states,
        timestep=t,
        encoder_attention_mask=encoder_attention_mask,
        num_frames=frames // p_t,
        height=h // p,
        width=w // p,
        rope_interpolation_scale=(8 / frame_rate, 32, 32),
    ).sample
    return LTXPipeline._unpack_latents(tokens, frames // p_t, h // p, w // p, p, p_t)


def wan(model, x, t, encoder_hidden_states, encoder_attention_mask, encoder_hidden_states_image=None):
    text = encoder_hidden_states * encoder_attention_mask[..., None]  # padded by zeros, as the pipeline does
    return model(x, t, text, encoder_hidden_states_image).sample


def cogvideox(model, x, t, encoder_hidden_states):
    frames, h, w = x.shape[2:]
    rotary = None
    if model.config.use_rotary_positional_embeddings:
        pipeline = SimpleNamespace(transformer=model, vae_scale_factor_spatial=8)
        rotary = CogVideoXPipeline._prepare_rotary_positional_embeddings(
            pipeline, h * 8, w * 8, frames, "cpu"
        )
    ofs = torch.full((1,), 2.0) if model.config.ofs_embed_dim else None
    frames_first = x.transpose(1, 2)
    out = model(frames_first, encoder_hidden_states, t, ofs=ofs, image_rotary_emb=rotary).sample
    return out.transpose(1, 2)


def qwen(model, x, t, encoder_hidden_states, encoder_attention_mask, additional_t_cond=None):
    pictures = x.unsqueeze(2) if x.ndim == 4 else x
    b, c, n, h, w = pictures.shape
    packed = [QwenImagePipeline._pack_latents(pictures[:, :, i], b, c, h, w) for i in range(n)]
    tokens = model(
        hidden_states=torch.cat(packed, dim=1),
        timestep=t / 1000,
        encoder_hidden_states_mask=encoder_attention_mask,
        encoder_hidden_states=encoder_hidden_states,
        img_shapes=[[(1, h // 2, w // 2)] * n] * b,
        additional_t_cond=additional_t_cond,
    ).sample
    parts = [QwenImagePipeline._unpack_latents(part, h * 8, w * 8, 8) for part in tokens.chunk(n, dim=1)]
    out = torch.cat(parts, dim=2)
    return out.squeeze(2) if x.ndim == 4 else out


DIT = Family(
    "DiTTransformer2DModel",
    dict(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
         num_embeds_ada_norm=10),
    (4, 8, 8),
    {"class_labels": ()},
    dit,
    discrete=True,
)  # fmt: skip
PIXART = Family(
    "PixArtTransformer2DModel",
    dict(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
         cross_attention_dim=16, caption_channels=12, use_additional_conditions=False),
    (4, 8, 4),
    {"encoder_hidden_states": (TEXT, 12), "encoder_attention_mask": (TEXT,)},
    pixart,
    discrete=True,
)  # fmt: skip
SD3 = Family(
    "SD3Transformer2DModel",
    dict(sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8,
         num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=10,
         pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm"),
    (4, 8, 4),
    {"encoder_hidden_states": (TEXT, 12), "pooled_projections": (10,)},
    sd3,
)  # fmt: skip
FLUX = Family(
    "FluxTransformer2DModel",
    dict(in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
         joint_attention_dim=12, pooled_projection_dim=10, guidance_embeds=True, axes_dims_rope=(4, 6, 6)),
    (4, 8, 4),
    {"encoder_hidden_states": (TEXT, 12), "pooled_projections": (10,)},
    flux,
    extra={"guidance_scale": 2.5},
)  # fmt: skip
SANA = Family(
    "SanaTransformer2DModel",
    dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
         num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=12,
         sample_size=8, timestep_scale=0.5),
    (4, 8, 4),
    {"encoder_hidden_states": (TEXT, 12), "encoder_attention_mask": (TEXT,)},
    sana,
)  # fmt: skip
LTX = Family(
    "LTXVideoTransformer3DModel",
    dict(in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
         num_layers=2, caption_channels=12),
    (8, 3, 4, 2),
    {"encoder_hidden_states": (TEXT, 12), "encoder_attention_mask": (TEXT,)},
    ltx,
    extra={"frame_rate": 24.0},
)  # fmt: skip
WAN = Family(
    "WanTransformer3DModel",
    dict(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
         text_dim=12, freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32),
    (4, 3, 8, 4),
    {"encoder_hidden_states": (TEXT, 12), "encoder_attention_mask": (TEXT,)},
    wan,
)  # fmt: skip
COGVIDEOX = Family(
    "CogVideoXTransformer3DModel",
    dict(num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
         text_embed_dim=12, num_layers=2, sample_width=8, sample_height=6, sample_frames=9, max_text_seq_length=TEXT,
         use_rotary_positional_embeddings=True),
    (4, 3, 8, 4),
    {"encoder_hidden_states": (TEXT, 12)},
    cogvideox,
    discrete=True,
)  # fmt: skip
QWEN = Family(
    "QwenImageTransformer2DModel",
    dict(in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
         joint_attention_dim=12, axes_dims_rope=(4, 6, 6)),
    (4, 8, 4),
    {"encoder_hidden_states": (TEXT, 12), "encoder_attention_mask": (TEXT,)},
    qwen,
)  # fmt: skip

FAMILIES = {
    "dit": DIT, "pixart": PIXART, "sd3": SD3, "flux": FLUX, "sana": SANA, "ltx": LTX, "wan": WAN,
    "cogvideox": COGVIDEOX, "qwen": QWEN,
}  # fmt: skip


def altered(family: Family, latents: tuple[int, ...] | None = None, **changes: Any) -> Family:
    """A relative of the same family."""
    condition = {**family.condition, **changes.pop("condition", {})}
    extra = {**family.extra, **changes.pop("extra", {})}
    return Family(
        family.model, {**family.config, **changes}, latents or family.latents, condition, family.direct,
        family.discrete, extra,
    )  # fmt: skip


RELATIVES = {
    "pixart-alpha at 1024": altered(
        PIXART, sample_size=128, use_additional_conditions=True, num_attention_heads=3, cross_attention_dim=24
    ),
    "sd3 without dual attention": altered(SD3, dual_attention_layers=(), qk_norm=None),
    "flux-schnell": altered(FLUX, guidance_embeds=False),
    "flux-fill": altered(FLUX, in_channels=40, out_channels=16, latents=(10, 8, 4)),
    "sana-sprint": altered(SANA, guidance_embeds=True, timestep_scale=0.001, extra={"guidance_scale": 4.5}),
    "ltx with patches": altered(
        LTX, in_channels=64, out_channels=64, patch_size=2, patch_size_t=2, latents=(8, 4, 4, 6)
    ),
    "wan image to video": altered(
        WAN, in_channels=9, image_dim=6, added_kv_proj_dim=24, latents=(9, 3, 8, 4),
        condition={"encoder_hidden_states": (512, 12), "encoder_attention_mask": (512,),
                   "encoder_hidden_states_image": (257, 6)},
    ),
    "cogvideox-2b": altered(COGVIDEOX, use_rotary_positional_embeddings=False),
    "cogvideox-2b at its size": altered(COGVIDEOX, use_rotary_positional_embeddings=False, latents=(4, 3, 6, 8)),
    "cogvideox wide": altered(COGVIDEOX, latents=(4, 3, 4, 12)),
    "cogvideox-1.5": altered(COGVIDEOX, patch_size_t=2, patch_bias=False, latents=(4, 4, 4, 8)),
    "cogvideox-1.5 image to video": altered(
        COGVIDEOX, patch_size_t=2, patch_bias=False, in_channels=8, ofs_embed_dim=8, latents=(8, 4, 4, 8)
    ),
    "qwen-image-edit": altered(QWEN, zero_cond_t=True, latents=(4, 3, 8, 4)),
    "qwen-image-layered": altered(
        QWEN, use_layer3d_rope=True, use_additional_t_cond=True, latents=(4, 3, 8, 4),
        extra={"additional_t_cond": torch.zeros(2, dtype=torch.long)},
    ),
}  # fmt: skip


@pytest.fixture(params=[*FAMILIES, *RELATIVES])
def checkpoint(request: pytest.FixtureRequest) -> Family:
    """Every family and its relatives."""
    return {**FAMILIES, **RELATIVES}[request.param]


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    """Every family once."""
    return FAMILIES[request.param]


@pytest.fixture(params=[name for name in FAMILIES if name != "sana"])
def softmax_family(request: pytest.FixtureRequest) -> Family:
    """Every family whose latents attend to each other by softmax."""
    return FAMILIES[request.param]


@pytest.fixture
def families() -> dict[str, Family]:
    """All families by a short name."""
    return {**FAMILIES, **RELATIVES}
