"""What the variants of Stable Diffusion's UNet have in common: configuration, start from a folder, official files.

The networks stay diffusers' ``UNet2DConditionModel``; a variant adds modules and keeps the names of the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ..errors import PolyditError
from .official import load_matching

__all__ = ["SD21", "build_from_official", "part_arguments", "read_config", "start_from"]

SD21: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
"""Stable Diffusion 2.1 and SD-Turbo: 865,910,724 parameters. ``attention_head_dim`` is the number of heads here."""

Variant = TypeVar("Variant", bound=UNet2DConditionModel)


def read_config(source: str | Path) -> dict[str, Any]:
    """The configuration of the UNet in a folder: its own, or ``unet`` in that of a pipeline.

    Raises:
        PolyditError: there is none.
    """
    where = {"subfolder": "unet"} if (Path(source) / "model_index.json").is_file() else {}
    try:
        config = UNet2DConditionModel.load_config(source, local_files_only=True, **where)
    except (OSError, ValueError) as error:
        raise _no_unet(source, error) from error
    if not str(config.get("_class_name", "")).endswith("UNet2DConditionModel"):
        raise PolyditError(
            f"{source}: a {config.get('_class_name')}, and a UNet of Stable Diffusion is needed"
        )
    return {name: value for name, value in config.items() if not name.startswith("_")}


def start_from(
    variant: type[Variant], source: str | Path | None, added: Mapping[str, Any], base: Mapping[str, Any]
) -> tuple[Variant, UNet2DConditionModel | None]:
    """A variant and the pretrained UNet that it starts from; the caller copies what their names share.

    While the default device is ``meta`` only configurations are read, and ``None`` is the published one.

    Args:
        variant: its class.
        source: folder of a Stable Diffusion pipeline, or of its UNet.
        added: arguments of the variant that differ from the folder's configuration.
        base: the configuration without a folder.

    Raises:
        PolyditError: there is no such UNet.
    """
    on_meta = torch.get_default_device().type == "meta"
    if source is None:
        if not on_meta:
            raise PolyditError(
                "--model.backbone.source: the folder of Stable Diffusion 2.1 or SD-Turbo in diffusers format is "
                "missing; name it"
            )
        return variant(**{**base, **added}), None
    config = read_config(source)
    model = variant(**{**config, **added})
    model.register_to_config(_name_or_path=str(source))
    if on_meta:
        return model, None
    where = {"subfolder": "unet"} if (Path(source) / "model_index.json").is_file() else {}
    try:
        pretrained = UNet2DConditionModel.from_pretrained(source, local_files_only=True, **where)
    except (OSError, ValueError, RuntimeError) as error:
        raise _no_unet(source, error) from error
    own, given = model.state_dict(), pretrained.state_dict()
    with torch.no_grad():
        for name, value in given.items():
            if own[name].shape == value.shape:
                own[name].copy_(value)
    return model.train(), pretrained


def build_from_official(
    system: str, variant: type[Variant], state_dict: dict[str, Tensor], config: Mapping[str, Any]
) -> Variant:
    """A variant with the weights of an official file, whose names are its own.

    Args:
        system: for messages.
        variant: its class.
        state_dict: the file's tensors; counters of batch norms may be missing.
        config: of the class; what is not given is Stable Diffusion 2.1's.

    Raises:
        PolyditError: unknown arguments, or names or shapes that do not fit.
    """
    known = inspect.signature(variant.__init__).parameters
    if unknown := [name for name in config if name not in known]:
        raise PolyditError(
            f"{system} has no argument {unknown[0]!r}; its arguments are those of {variant.__name__}"
        )
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = variant(**{**SD21, **config})
    counters = {
        f"{name}.num_batches_tracked": torch.tensor(0)
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    return load_matching(model, {**counters, **state_dict}, system, assign=True)


def part_arguments(
    system: str, config: Mapping[str, Any], needed: Sequence[str], optional: Sequence[str] = ()
) -> list[Any]:
    """The arguments of a part of an official network, in this order; None for optional ones that are not given.

    Raises:
        PolyditError: one is missing or unknown.
    """
    if unknown := [name for name in config if name not in (*needed, *optional)]:
        known = ", ".join((*needed, *optional))
        raise PolyditError(f"{system} has no argument {unknown[0]!r} beside {needed[0]!r}; it takes {known}")
    if missing := [name for name in needed if name not in config]:
        raise PolyditError(f"{system} with {needed[0]!r} also needs {missing[0]!r}; give it")
    return [config.get(name) for name in (*needed, *optional)]


def _no_unet(source: Any, error: Exception) -> PolyditError:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return PolyditError(
        f"{source}: no UNet of Stable Diffusion in diffusers format ({line[:200]}); give its folder"
    )
