"""Loading: the class name in ``config.json`` chooses the family's file; nothing of the others is imported."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import nn

from ...errors import PolyditError
from .adapter import PretrainedTransformer

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

__all__ = ["FAMILIES", "adapt_transformer", "as_backbone", "load_transformer", "model_class"]

FAMILIES: dict[str, tuple[str, str]] = {
    "DiTTransformer2DModel": (".dit", "PretrainedDiT"),
    "PixArtTransformer2DModel": (".pixart", "PretrainedPixArt"),
    "SD3Transformer2DModel": (".sd3", "PretrainedSD3"),
    "DiT4SR": (".dit4sr", "PretrainedDiT4SR"),
    "FluxTransformer2DModel": (".flux", "PretrainedFlux"),
    "SanaTransformer2DModel": (".sana", "PretrainedSana"),
    "LTXVideoTransformer3DModel": (".ltx_video", "PretrainedLTXVideo"),
    "WanTransformer3DModel": (".wan", "PretrainedWan"),
    "CogVideoXTransformer3DModel": (".cogvideox", "PretrainedCogVideoX"),
    "QwenImageTransformer2DModel": (".qwen_image", "PretrainedQwenImage"),
    "CompositingTransformer": (".compositing", "PretrainedCompositing"),
}
"""Class, diffusers' unless it is ours -> module of this package, class of the adapter in it."""


class _Config(ConfigMixin):
    """Reads ``config.json`` of any model, from a folder or the hub."""

    config_name = "config.json"


def load_transformer(
    source: str | None = None,
    subfolder: str | None = "transformer",
    dtype: str | torch.dtype | None = None,
) -> PretrainedTransformer:
    """Load a diffusers transformer behind the adapter of its family, in eval mode.

    While the default device is ``meta`` only the configuration is read, and the model has shapes without values.

    Args:
        source: Folder of a pipeline or of the transformer itself, in diffusers format, or a hub id. Shipped configs
            leave it open.
        subfolder: Where a pipeline keeps it.
        dtype: Of the weights, such as ``bfloat16``; default float32.

    Raises:
        PolyditError: nothing there, a family that is not known, or weights that do not fit.
    """
    torch_dtype = _dtype(dtype)
    if source is None:
        raise PolyditError(
            "--model.backbone.source: the folder of a pretrained transformer in diffusers format is missing; name it"
        )
    source, where = _locate(source, subfolder)
    place = "/".join([source, *where.values()])
    try:
        config = _Config.load_config(source, **where)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise PolyditError(f"{place}: no transformer in diffusers format ({_first_line(error)})") from error
    chosen = model_class(str(config.get("_class_name")), place)
    if torch.get_default_device().type == "meta":
        transformer = chosen.from_config(config)
        torch.nn.Module.to(transformer, torch_dtype or torch.float32)  # diffusers' own warns, about nothing
        transformer.register_to_config(_name_or_path=place)
        return adapt_transformer(transformer.eval())
    try:
        transformer, info = chosen.from_pretrained(
            source, dtype=torch_dtype, output_loading_info=True, **where
        )
    except Exception as error:  # of diffusers, safetensors and torch: each has its own for a broken file
        raise PolyditError(f"{place}: the weights cannot be loaded ({_first_line(error)})") from error
    if missing := info["missing_keys"]:
        raise PolyditError(f"{place}: {len(missing)} weights are missing, {missing[0]} first; copy it anew")
    return adapt_transformer(transformer)


def as_backbone(model: nn.Module) -> nn.Module:
    """What is called as a backbone: a diffusers transformer's adapter, anything else as it is."""
    return adapt_transformer(model) if _known(model) else model


def refuse_other_latents(network: nn.Module, channels: int) -> None:
    """Refuse data of other channels than a backbone (see :func:`as_backbone`) predicts, where that is known.

    Raises:
        PolyditError: the autoencoder is missing, or one of other latents.
    """
    if isinstance(network, PretrainedTransformer):
        made_for = network.latent_channels
    else:
        made_for = getattr(network, "prediction_channels", channels)
    if made_for != channels:
        raise PolyditError(
            f"--model.autoencoder: the backbone predicts {made_for} channels and the data has {channels}; give the "
            "autoencoder that these latents are of"
        )


def adapt_transformer(transformer: ModelMixin) -> PretrainedTransformer:
    """Put a loaded diffusers transformer behind the adapter of its family.

    Raises:
        PolyditError: the family is not known.
    """
    module, adapter = _family(_known(transformer) or type(transformer).__name__, "transformer")
    return getattr(import_module(module, __package__), adapter)(transformer)


def _known(model: nn.Module) -> str | None:
    """Name of the model's family; strategies that wrap a model do so by a subclass."""
    return next((kind.__name__ for kind in type(model).__mro__ if kind.__name__ in FAMILIES), None)


def _family(name: str, place: str) -> tuple[str, str]:
    if name not in FAMILIES:
        raise PolyditError(
            f"{place}: {name} is not a transformer that is known; use one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def model_class(name: str, place: str = "transformer") -> Any:
    """The diffusers class of that name, if its family is known.

    Raises:
        PolyditError: it is not.
    """
    _family(name, place)
    if name == "DiT4SR":
        from ..dit4sr_sd3 import DiT4SR

        return DiT4SR
    if name == "CompositingTransformer":
        from ..compositing import CompositingTransformer

        return CompositingTransformer
    import diffusers

    return getattr(diffusers, name)


def _locate(source: str, subfolder: str | None) -> tuple[str, dict[str, Any]]:
    """The folder or hub id, and the subfolder as diffusers' functions take it."""
    where: dict[str, Any] = {} if subfolder is None else {"subfolder": subfolder}
    folder = Path(source).expanduser()
    if folder.is_dir():
        if subfolder is not None and not (folder / subfolder).is_dir() and (folder / "config.json").is_file():
            where = {}  # the transformer's own folder
        if not folder.joinpath(*where.values(), "config.json").is_file():
            raise PolyditError(
                f"{folder.joinpath(*where.values())}: holds no config.json; give a folder that diffusers saved"
            )
        return str(folder), where
    if folder.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
        raise PolyditError(f"{source}: no such folder, and no hub id; give a folder that diffusers saved")
    return source, where


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise PolyditError(f"dtype {dtype!r}: is none; use float32, bfloat16 or float16")
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
