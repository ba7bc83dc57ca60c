"""Official layouts of Direct3D (arXiv 2405.14832): its autoencoder and its transformer."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PolyditError
from .d3d_dit import D3DDiT
from .official import load_matching

__all__ = ["direct3d_from_official", "direct3d_to_official"]

VAE_NAMES = (
    (r"^encoder\.learnable_token$", "encoder.tokens"),
    (r"^pre_latent\.", "to_moments."),
    (r"^post_latent\.", "from_latents."),
    (r"^occ_decoder\.", "head."),
)
VAE_ARGUMENTS = {
    "triplane_res": "resolution",
    "latent_dim": "latent_channels",
    "triplane_dim": "plane_channels",
    "num_freqs": "frequencies",
    "num_attention_heads": "num_heads",
    "attention_head_dim": "head_dim",
    "num_encoder_layers": "num_layers",
    "num_geodecoder_layers": "head_layers",
    "block_out_channels": "block_out_channels",
    "mid_block_add_attention": "mid_attention",
    "latents_scale": "scaling_factor",
    "latents_shift": "shift_factor",
}
DIT_NAMES = (
    (r"^pos_embed\.proj\.", "patch_embed.proj."),
    (r"^adaln_single\.emb\.timestep_embedder\.linear_1\.", "time_embed.mlp.0."),
    (r"^adaln_single\.emb\.timestep_embedder\.linear_2\.", "time_embed.mlp.2."),
    (r"^adaln_single\.emb\.timestep_embedder\.cond_proj\.", "semantic_time."),
    (r"^adaln_single\.linear\.", "shared_modulation."),
    (r"^semantic_projection\.linear_1\.", "context_embed.0."),
    (r"^semantic_projection\.linear_2\.", "context_embed.2."),
    (r"^pixel_projection\.linear_1\.", "pixel_embed.0."),
    (r"^pixel_projection\.linear_2\.", "pixel_embed.2."),
    (r"^proj_out\.", "final_layer.linear."),
    (r"^scale_shift_table$", "final_layer.table"),
    (r"^transformer_blocks\.(\d+)\.scale_shift_table$", r"blocks.\1.table"),
    (r"^transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.", r"blocks.\1.mlp.fc1."),
    (r"^transformer_blocks\.(\d+)\.ff\.net\.2\.", r"blocks.\1.mlp.fc2."),
    (r"^transformer_blocks\.(\d+)\.attn1\.to_out\.0\.", r"blocks.\1.attn.proj."),
    (r"^transformer_blocks\.(\d+)\.attn2\.to_out\.0\.", r"blocks.\1.cross_attn.proj."),
)
ATTENTION = re.compile(r"^transformer_blocks\.(\d+)\.(attn1|attn2)\.to_([qkv])\.(weight|bias)$")


def direct3d_from_official(state_dict: dict[str, Tensor], **config: Any) -> nn.Module:
    """The autoencoder where ``triplane_res`` is among the arguments, else the transformer.

    Raises:
        PolyditError: an argument is unknown, or the weights do not fit.
    """
    if "triplane_res" in config:
        return _vae(state_dict, config)
    return _dit(state_dict, config)


def direct3d_to_official(model: nn.Module) -> dict[str, Tensor]:
    """The inverse of :func:`direct3d_from_official`."""
    state = dict(model.state_dict())
    if not isinstance(model, D3DDiT):
        state.pop("scaling", None)
        return _renamed(state, [(_plain(ours), _plain(theirs)) for theirs, ours in VAE_NAMES])
    back = {}
    for name, value in state.items():
        if name == "pos_embed":
            continue
        if match := re.match(r"^blocks\.(\d+)\.(attn|cross_attn)\.(qkv|q|kv)\.(weight|bias)$", name):
            layer = "attn1" if match[2] == "attn" else "attn2"
            for letter, part in zip(match[3], value.chunk(len(match[3])), strict=True):
                back[f"transformer_blocks.{match[1]}.{layer}.to_{letter}.{match[4]}"] = part
        else:
            back[name] = value
    rules = []
    for theirs, ours in DIT_NAMES:
        blocks = r"(\d+)" in theirs
        pattern = re.escape(ours).replace(r"\\1", r"(\d+)") if blocks else _plain(ours)
        target = (
            theirs.lstrip("^").rstrip("$").replace(r"(\d+)", "%d").replace("\\.", ".").replace("%d", r"\1")
        )
        rules.append((f"^{pattern.lstrip('^')}", target))
    return _renamed(back, rules)


def _vae(state_dict: dict[str, Tensor], config: dict[str, Any]) -> nn.Module:
    from ..autoencoders.triplane import TriplaneVAE

    config = {k: v for k, v in config.items() if k not in ("final_activation", "gradient_checkpointing")}
    if unknown := sorted(set(config) - set(VAE_ARGUMENTS)):
        raise PolyditError(
            f"direct3d has no argument {unknown[0]!r}; its arguments are {', '.join(VAE_ARGUMENTS)}"
        )
    model = TriplaneVAE(**{VAE_ARGUMENTS[name]: value for name, value in config.items()})
    return load_matching(model, {**_renamed(state_dict, VAE_NAMES), "scaling": model.scaling}, "direct3d")


def _dit(state_dict: dict[str, Tensor], config: dict[str, Any]) -> nn.Module:
    known = {
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "in_channels": 16,
        "num_layers": 28,
        "sample_size": (32, 96),
        "patch_size": 2,
        "semantic_channels": 1024,
        "pixel_channels": 1024,
        "attention_bias": False,
    }
    if unknown := sorted(set(config) - set(known)):
        raise PolyditError(f"direct3d has no argument {unknown[0]!r}; its arguments are {', '.join(known)}")
    official: dict[str, Any] = {**known, **config}
    model = D3DDiT(
        resolution=official["sample_size"][0],
        patch_size=official["patch_size"],
        in_channels=official["in_channels"],
        hidden_size=official["num_attention_heads"] * official["attention_head_dim"],
        num_heads=official["num_attention_heads"],
        depth=official["num_layers"],
        semantic_channels=official["semantic_channels"],
        pixel_channels=official["pixel_channels"],
    )
    own = model.state_dict()
    parts: dict[tuple[str, str, str], dict[str, Tensor]] = {}
    rest = {}
    for name, value in state_dict.items():
        if match := ATTENTION.match(name):
            parts.setdefault((match[1], match[2], match[4]), {})[match[3]] = value
        else:
            rest[name] = value
    ours = _renamed(rest, DIT_NAMES)
    ours["pos_embed"] = own["pos_embed"]
    for (block, layer, kind), found in parts.items():
        for packed in ("qkv",) if layer == "attn1" else ("q", "kv"):
            name = f"blocks.{block}.{'attn' if layer == 'attn1' else 'cross_attn'}.{packed}.{kind}"
            if all(letter in found for letter in packed):
                ours[name] = torch.cat([found[letter] for letter in packed])
    if not official["attention_bias"]:
        for name, value in own.items():
            if re.search(r"attn\.(qkv|q|kv)\.bias$", name):
                ours[name] = torch.zeros_like(value)
    return load_matching(model, ours, "direct3d")


def _renamed(state: dict[str, Tensor], rules: Any) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        new = name
        for pattern, replacement in rules:
            new, count = re.subn(pattern, replacement, new)
            if count:
                break
        renamed[new] = value
    return renamed


def _plain(pattern: str) -> str:
    """A rule's other side: a name as a pattern, and a pattern as a name."""
    if pattern.startswith("^"):
        return pattern.lstrip("^").rstrip("$").replace("\\.", ".")
    return "^" + re.escape(pattern) + ("" if pattern.endswith(".") else "$")
