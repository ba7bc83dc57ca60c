"""Tiny transformers of the families whose LoRA files are exchanged with other tools."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from polydit.core.adapters import LoraOptions, inject
from polydit.core.adapters.families import family_of
from polydit.core.adapters.lora import lora_layers
from polydit.core.adapters.targets import adaptable_modules, resolve_targets

# Family: class, pipeline, configuration.
MODELS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "flux": (
        "FluxTransformer2DModel",
        "FluxPipeline",
        {"patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 8,
         "num_attention_heads": 2, "joint_attention_dim": 10, "pooled_projection_dim": 6, "guidance_embeds": True,
         "axes_dims_rope": (2, 2, 4)},
    ),
    "sd3": (
        "SD3Transformer2DModel",
        "StableDiffusion3Pipeline",
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 64,
         "num_attention_heads": 2, "joint_attention_dim": 10, "caption_projection_dim": 128,
         "pooled_projection_dim": 6, "out_channels": 4, "pos_embed_max_size": 8, "dual_attention_layers": (0,)},
    ),
    "pixart": (
        "PixArtTransformer2DModel",
        None,  # its pipelines have no loader
        {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2,
         "cross_attention_dim": 16, "sample_size": 8, "caption_channels": 10, "use_additional_conditions": False},
    ),
    "wan": (
        "WanTransformer3DModel",
        "WanPipeline",
        {"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
         "out_channels": 4, "text_dim": 10, "freq_dim": 8, "ffn_dim": 20, "num_layers": 2, "image_dim": 1280,
         "added_kv_proj_dim": 24},
    ),
    "ltx-video": (
        "LTXVideoTransformer3DModel",
        "LTXPipeline",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8,
         "cross_attention_dim": 16, "num_layers": 2, "caption_channels": 10},
    ),
    "qwen-image": (
        "QwenImageTransformer2DModel",
        "QwenImagePipeline",
        {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16,
         "num_attention_heads": 2, "joint_attention_dim": 10, "axes_dims_rope": (8, 4, 4)},
    ),
    "sana": (
        "SanaTransformer2DModel",
        "SanaPipeline",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2,
         "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16,
         "caption_channels": 10, "sample_size": 8},
    ),
    "cogvideox": (
        "CogVideoXTransformer3DModel",
        "CogVideoXPipeline",
        {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4,
         "time_embed_dim": 6, "text_embed_dim": 10, "num_layers": 2, "sample_width": 8, "sample_height": 8,
         "sample_frames": 5, "max_text_seq_length": 4},
    ),
}  # fmt: skip


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def inputs(name: str) -> dict[str, Any]:
    """What the transformer of a family is called with."""
    text, t = {"encoder_hidden_states": noise(1, 3, 10)}, torch.tensor([300])
    if name == "flux":
        ids = {"img_ids": torch.arange(18).view(6, 3).float(), "txt_ids": torch.zeros(3, 3)}
        times = {"timestep": torch.tensor([0.3]), "guidance": torch.tensor([3.0])}
        return {"hidden_states": noise(1, 6, 4), "pooled_projections": noise(1, 6), **text, **ids, **times}
    if name == "sd3":
        return {"hidden_states": noise(1, 4, 8, 8), "pooled_projections": noise(1, 6), "timestep": t, **text}
    if name == "wan":
        image = noise(1, 5, 1280)
        return {
            "hidden_states": noise(1, 4, 2, 4, 4),
            "encoder_hidden_states_image": image,
            "timestep": t,
            **text,
        }
    if name == "ltx-video":
        size = {"num_frames": 2, "height": 2, "width": 2, "encoder_attention_mask": torch.ones(1, 3)}
        return {"hidden_states": noise(1, 8, 4), "timestep": t, **text, **size}
    if name == "qwen-image":
        more = {"encoder_hidden_states_mask": torch.ones(1, 3, dtype=torch.bool), "img_shapes": [[(1, 2, 2)]]}
        return {"hidden_states": noise(1, 4, 16), "timestep": torch.tensor([0.3]), **text, **more}
    if name == "cogvideox":
        return {
            "hidden_states": noise(1, 2, 4, 8, 8),
            "encoder_hidden_states": noise(1, 4, 10),
            "timestep": t,
        }
    more = {"added_cond_kwargs": {}} if name == "pixart" else {}
    return {"hidden_states": noise(1, 4, 8, 8), "timestep": t, **text, **more}


def make(name: str) -> nn.Module:
    """The same transformer at each call, every weight of which matters."""
    cls, _, config = MODELS[name]
    model = getattr(diffusers, cls)(**config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.15, generator=generator)
    return model.eval()


@torch.no_grad()
def call(name: str, model: nn.Module) -> Tensor:
    """Its output."""
    return model(**inputs(name), return_dict=False)[0]


def pipeline(name: str, transformer: nn.Module) -> Any:
    """The family's pipeline with this transformer and nothing else."""
    cls = getattr(diffusers, str(MODELS[name][1]))
    parts = inspect.signature(cls.__init__).parameters.values()
    needed = {p.name: None for p in parts if p.name != "self" and p.default is p.empty}
    return cls(**{**needed, "transformer": transformer})


def targets(name: str, model: nn.Module, which: str) -> list[str]:
    """``all`` linear layers, those in ``blocks``, or of ``attention``."""
    if which == "attention":
        return resolve_targets(model, "attention")
    names = [key for key, module in adaptable_modules(model).items() if isinstance(module, nn.Linear)]
    family = family_of(model)
    if family is not None and family.names is not None and family.names.rules:
        names = [key for key in names if family.names.from_module(key)]
    return [key for key in names if "block" in key] if which == "blocks" else names


def adapted(name: str, which: str | list[str] = "all", **options: Any) -> nn.Module:
    """The transformer with a LoRA that changes its output; scale 2 unless told otherwise."""
    model = make(name).requires_grad_(False)
    chosen = targets(name, model, which) if isinstance(which, str) else which
    inject(model, LoraOptions(targets=chosen, **{"rank": 4, "alpha": 8.0, **options}))
    generator = torch.Generator().manual_seed(9)
    for _, layer in lora_layers(model):
        for factor in (layer.lora_A["default"], layer.lora_B["default"]):
            factor.weight.data.normal_(0, 0.1, generator=generator)
    return model


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """``make``, ``adapted``, ``call``, ``pipeline`` of the families in ``names``."""
    diffusers.logging.set_verbosity_error()
    return SimpleNamespace(
        names=list(MODELS), make=make, adapted=adapted, call=call, pipeline=pipeline, targets=targets
    )
