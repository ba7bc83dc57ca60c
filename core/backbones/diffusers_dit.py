"""The native DiT as diffusers' ``DiTTransformer2DModel`` and back (DiT, arXiv 2212.09748).

diffusers keeps a copy of the timestep and label embedding in every block, so its DiT-XL/2 counts 749,826,464
parameters where ours has 674,834,720 that train. Two of its settings differ from what the published weights were
trained with, and :func:`dit_to_diffusers` corrects both: the timestep frequencies (``downscale_freq_shift`` 1 instead
of 0, about 3 % of the output) and the epsilon of the norms (1e-5 instead of 1e-6).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

from ..errors import PolyditError
from .dit import DiT
from .official import load_matching

__all__ = ["dit_from_diffusers", "dit_to_diffusers"]

# ours -> diffusers, once per model
MODEL_KEYS: dict[str, str] = {
    "patch_embed.proj": "pos_embed.proj",
    "final_layer.modulation": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
# ours, in block i -> diffusers, in transformer_blocks.i
BLOCK_KEYS: dict[str, str] = {
    "modulation": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
PACKED = "attn.qkv"
UNPACKED = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
# ours, once -> diffusers, in every block
SHARED_KEYS: dict[str, str] = {
    "time_embed.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "time_embed.mlp.2": "norm1.emb.timestep_embedder.linear_2",
    "label_embed.table": "norm1.emb.class_embedder.embedding_table",
}
PARTS = ("weight", "bias")

# what a native model must be to have a counterpart
PLAIN: dict[str, Any] = {
    "norm": "layer",
    "mlp": "gelu_tanh",
    "position": "sincos",
    "qk_norm": None,
    "modulation": "adaln_zero",
    "modulation_shift": True,
    "keep_sigma": True,
    "conv_kernel": 0,
    "window_size": None,
    "context_dim": None,
    "pooled_projection_dim": None,
    "mlp_ratio": 4.0,
}
# what a diffusers model must be
THEIRS_PLAIN: dict[str, Any] = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}


def _to_diffusers_keys(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    out = {}
    for part in PARTS:
        for ours, theirs in MODEL_KEYS.items():
            out[f"{theirs}.{part}"] = state[f"{ours}.{part}"]
        for i in range(depth):
            block, target = f"blocks.{i}", f"transformer_blocks.{i}"
            for ours, theirs in BLOCK_KEYS.items():
                out[f"{target}.{theirs}.{part}"] = state[f"{block}.{ours}.{part}"]
            for theirs, piece in zip(UNPACKED, state[f"{block}.{PACKED}.{part}"].chunk(3), strict=True):
                out[f"{target}.{theirs}.{part}"] = piece
            for ours, theirs in SHARED_KEYS.items():
                if f"{ours}.{part}" in state:  # the label table has no bias
                    out[f"{target}.{theirs}.{part}"] = state[f"{ours}.{part}"]
    return out


def _from_diffusers_keys(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    out = {}
    for part in PARTS:
        for ours, theirs in MODEL_KEYS.items():
            out[f"{ours}.{part}"] = state[f"{theirs}.{part}"]
        for i in range(depth):
            block, source = f"blocks.{i}", f"transformer_blocks.{i}"
            for ours, theirs in BLOCK_KEYS.items():
                out[f"{block}.{ours}.{part}"] = state[f"{source}.{theirs}.{part}"]
            out[f"{block}.{PACKED}.{part}"] = torch.cat(
                [state[f"{source}.{name}.{part}"] for name in UNPACKED]
            )
        for ours, theirs in SHARED_KEYS.items():
            copies = [state.get(f"transformer_blocks.{i}.{theirs}.{part}") for i in range(depth)]
            if copies[0] is None:
                continue
            for i, copy in enumerate(copies[1:], 1):
                if not torch.equal(copy, copies[0]):
                    raise PolyditError(
                        f"diffusers DiT: transformer_blocks.{i}.{theirs} differs from block 0's, and the native DiT "
                        "has only one; keep the diffusers model"
                    )
            out[f"{ours}.{part}"] = copies[0]
    return out


def dit_to_diffusers(model: DiT) -> DiTTransformer2DModel:
    """Build the diffusers model with the same weights and the same outputs.

    Args:
        model: a class-conditional native DiT as published: square, LayerNorm, GELU-tanh, adaLN-zero.

    Returns:
        The diffusers model on its own copy of the weights, in the same mode, dtype and device. Saving it with
        ``save_pretrained`` keeps the weights and ``norm_eps``, not the corrected frequencies: these live in code.

    Raises:
        PolyditError: the configuration has no counterpart in diffusers.
    """
    config = model.config
    for name, plain in PLAIN.items():
        if config[name] != plain:
            raise PolyditError(
                f"{name}={config[name]!r}: diffusers' DiT has only {plain!r}; keep the native model"
            )
    if config.num_classes is None or config.class_dropout_prob <= 0:
        raise PolyditError(
            "num_classes: diffusers' DiT has class labels and a null class; keep the native model"
        )
    if len(model.patch_size) != 2 or len(set(model.base_grid)) > 1 or len(set(model.patch_size)) > 1:
        raise PolyditError(f"input_size={config.input_size}: diffusers' DiT is square; keep the native model")
    with torch.device("meta"):
        twin = DiTTransformer2DModel(
            num_attention_heads=config.num_heads,
            attention_head_dim=config.hidden_size // config.num_heads,
            in_channels=config.in_channels,
            out_channels=model.out_channels,
            num_layers=config.depth,
            sample_size=model.base_grid[0] * model.patch_size[0],
            patch_size=model.patch_size[0],
            num_embeds_ada_norm=config.num_classes,
            norm_eps=1e-6,
        )
    state = model.state_dict()
    copies = {k: v.detach().clone() for k, v in _to_diffusers_keys(state, config.depth).items()}
    twin.load_state_dict(copies, assign=True)
    twin.pos_embed.pos_embed = state["pos_embed"].detach().clone()
    for block in twin.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return twin.train(model.training)


def dit_from_diffusers(model: DiTTransformer2DModel) -> DiT:
    """Build the native model from diffusers' weights.

    The native model computes timesteps and norms as the published weights were trained; a plain diffusers model does
    not (see the module's text), so its outputs are not quite the native ones.

    Args:
        model: a diffusers DiT, for instance ``DiTPipeline.from_pretrained(...).transformer``.

    Returns:
        The native model on its own copy of the weights, in the same mode and dtype.

    Raises:
        PolyditError: the copies of the embeddings differ between blocks, or a setting has no native counterpart.
    """
    config = model.config
    for name, plain in THEIRS_PLAIN.items():
        if config[name] != plain:
            raise PolyditError(
                f"diffusers DiT: {name}={config[name]!r} has no native counterpart, only {plain!r} has"
            )
    out_channels = config.out_channels or config.in_channels
    learn_sigma = out_channels == 2 * config.in_channels
    with torch.device("meta"):
        native = DiT(
            input_size=config.sample_size,
            patch_size=config.patch_size,
            in_channels=config.in_channels,
            out_channels=None if learn_sigma else out_channels,
            learn_sigma=learn_sigma,
            hidden_size=config.num_attention_heads * config.attention_head_dim,
            depth=config.num_layers,
            num_heads=config.num_attention_heads,
            num_classes=config.num_embeds_ada_norm,
        )
    state = _from_diffusers_keys(model.state_dict(), config.num_layers)
    state["pos_embed"] = model.pos_embed.pos_embed
    copies = {k: v.detach().clone() for k, v in state.items()}
    return load_matching(native, copies, "diffusers DiT", assign=True).train(model.training)
