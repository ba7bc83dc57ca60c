"""Condition by concatenated channels: the patch embedding gets new input columns that start at zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..backbones.pretrained import PretrainedTransformer

__all__ = ["INPUT_LAYERS", "duplicate_input", "find_input_layer", "widen_input"]

# Where the models keep the layer that reads their input, first match wins.
INPUT_LAYERS: tuple[str, ...] = (
    "patch_embed.proj",  # our DiT, SANA, CogVideoX
    "pos_embed.proj",  # diffusers' DiT, PixArt, SD3
    "patch_embedding",  # Wan
    "x_embedder",  # FLUX
    "img_in",  # Qwen-Image
    "proj_in",  # LTX-Video
    "conv_in",  # UNets
)


def find_input_layer(model: nn.Module) -> str:
    """Name of the linear or convolutional layer that reads the model's input."""
    names = dict(model.named_modules())
    for name in INPUT_LAYERS:
        if isinstance(names.get(name), (nn.Linear, nn.Conv2d, nn.Conv3d)):
            return name
    raise ValueError(f"{type(model).__name__} has none of the known input layers {', '.join(INPUT_LAYERS)}")


def widen_input(model: nn.Module, extra_channels: int, layer: str | None = None) -> nn.Module:
    """Let a model read ``extra_channels`` more input channels, in place.

    The new weights are zero: until they are trained the model's output does not depend on the new channels
    and equals the original's exactly.

    Args:
        model: our DiT, a :class:`PretrainedTransformer`, a diffusers transformer or UNet.
        extra_channels: channels of the condition, concatenated behind the input's own. Of a diffusers transformer that
            takes packed latents (FLUX, LTX-Video, Qwen-Image) they are packed channels; of a
            :class:`PretrainedTransformer` they are always the condition's own.
        layer: name of the input layer when it is none of :data:`INPUT_LAYERS`.

    Returns:
        The same model; its ``config.in_channels`` says the new number.
    """
    if isinstance(model, PretrainedTransformer):
        columns, config = model.columns_per_channel, model.config_channels
        _widen(model.transformer, extra_channels * columns, extra_channels * config, layer)
        return model
    return _widen(model, extra_channels, extra_channels, layer)


def duplicate_input(model: nn.Module, copies: int = 2, layer: str | None = None) -> nn.Module:
    """Let a model read ``copies`` times its input channels, in place: each copy through 1 / ``copies`` of the weights.

    With the same content in all copies the output is the original's. Marigold (arXiv 2312.02145), DiffDIS and DiffewS
    read picture and noise like this.

    Args:
        model: as in :func:`widen_input`.
        copies: how many.
        layer: name of the input layer when it is none of :data:`INPUT_LAYERS`.

    Returns:
        The same model; its ``config.in_channels`` says the new number.
    """
    inner = model.transformer if isinstance(model, PretrainedTransformer) else model
    name = layer or find_input_layer(inner)
    old: Any = inner.get_submodule(name).weight
    channels = model.in_channels if isinstance(model, PretrainedTransformer) else old.shape[1]
    widen_input(model, (copies - 1) * channels, layer)
    with torch.no_grad():
        # Packed latents have their channels slowest, so that a further copy stands behind the first there, too.
        inner.get_submodule(name).weight.copy_(torch.cat([old] * copies, dim=1) / copies)
    return model


def _widen(model: nn.Module, columns: int, channels: int, layer: str | None) -> nn.Module:
    """Add input columns to the layer, and channels to the configuration."""
    name = layer or find_input_layer(model)
    parent_name, _, child = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    old = getattr(parent, child)
    weight = old.weight
    zeros = torch.zeros(weight.shape[0], columns, *weight.shape[2:], dtype=weight.dtype, device=weight.device)
    options: dict[str, Any] = {"bias": old.bias is not None, "device": weight.device, "dtype": weight.dtype}
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features + columns, old.out_features, **options)
    else:
        new = type(old)(
            old.in_channels + columns,
            old.out_channels,
            old.kernel_size,
            stride=old.stride,
            padding=old.padding,
            **options,
        )
    with torch.no_grad():
        new.weight.copy_(torch.cat([weight, zeros], dim=1))
        if old.bias is not None:
            new.bias.copy_(old.bias)
    new.requires_grad_(weight.requires_grad).train(old.training)
    setattr(parent, child, new)
    if hasattr(model, "register_to_config") and "in_channels" in model.config:
        # The output keeps its width: without this a model built again from its config would widen it too.
        out = model.config.get("out_channels") or model.config.in_channels
        changes = {"in_channels": model.config.in_channels + channels}
        if "out_channels" in model.config:
            changes["out_channels"] = out
        model.register_to_config(**changes)
    return model
