"""The one door for published checkpoints: official key names in, a native model out, and back."""

from __future__ import annotations

import pickle
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import PolyditError

__all__ = ["SYSTEMS", "load_official", "read_official_file", "save_official"]

# system -> module (relative to this package) that defines <system>_from_official and <system>_to_official
SYSTEMS: dict[str, str] = {
    "dit": ".official_dit",
    "sit": ".official_dit",
    "lightningdit": ".official_dit",
    "dit4sr": ".dit4sr_sd3",
    "layerdiffuse": "..autoencoders.official_transparency",
    "pdfnet": ".official_pdfnet",
    "diffdis": ".diffdis_unet",
    "diffews": ".diffews_unet",
    "dit_ic": ".official_dit_ic",
    "dit_3d": ".official_dit_3d",
    "eraserdit": ".official_eraserdit",
    "gencompositor": "..conditioning.official_gencompositor",
    "direct3d": ".official_direct3d",
}


def _adapter(system: str, direction: str) -> Any:
    if system not in SYSTEMS:
        raise PolyditError(f"system {system!r} is not known; choose one of {', '.join(sorted(SYSTEMS))}")
    return getattr(import_module(SYSTEMS[system], __package__), f"{system}_{direction}_official")


def load_official(system: str, state_dict: dict[str, Tensor], **config: Any) -> nn.Module:
    """Build the native model of a published system from its official state dict.

    Args:
        system: one of :data:`SYSTEMS`.
        state_dict: tensors under their official names; half precision is upcast to float32.
        **config: the official constructor arguments.

    Returns:
        The native model in eval mode. Called with the official positional arguments it returns an object
        whose ``.sample`` is the official output.

    Raises:
        PolyditError: for an unknown system, unknown arguments, or keys that do not fit.
    """
    state_dict = {k: v.float() if v.is_floating_point() else v for k, v in state_dict.items()}
    return _adapter(system, "from")(state_dict, **config).eval()


def save_official(system: str, model: nn.Module) -> dict[str, Tensor]:
    """The inverse of :func:`load_official`: a state dict under the official names."""
    return _adapter(system, "to")(model)


def read_official_file(path: str | Path, prefer_ema: bool = True) -> dict[str, Tensor]:
    """Read a checkpoint file: safetensors, or the official ``.pt`` layout without running its code.

    Training checkpoints of DiT, SiT and LightningDiT are ``{"model", "ema", "opt", "args"}``; the released
    ones are the bare state dict.

    Args:
        path: the file.
        prefer_ema: take the averaged weights where the file has both.

    Raises:
        PolyditError: if the file is missing, unreadable, or would run code when read.
    """
    path = Path(path)
    if not path.is_file():
        raise PolyditError(f"{path}: no such file; give the path of a .safetensors or .pt checkpoint")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        # Training files keep an argparse namespace beside the weights: plain data, allowed by name.
        import argparse

        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PolyditError(
            f"{path}: refused, this pickle would run code when read; convert it to safetensors where you trust it"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise PolyditError(f"{path}: not a readable checkpoint ({error}); download it again") from error
    for name in ("ema", "model") if prefer_ema else ("model", "ema"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise PolyditError(
            f"{path}: holds no state dict; expected tensors by name, or them under 'ema' or 'model'"
        )
    return content


Model = TypeVar("Model", bound=nn.Module)


def load_matching(model: Model, state_dict: dict[str, Tensor], system: str, assign: bool = False) -> Model:
    """Load strictly; a mismatch becomes one line that names the first keys. ``assign`` takes the tensors themselves."""
    own = model.state_dict()
    missing = [k for k in own if k not in state_dict]
    extra = [k for k in state_dict if k not in own]
    wrong = [k for k in own if k in state_dict and own[k].shape != state_dict[k].shape]
    if missing or extra or wrong:
        found = [f"missing {missing[:3]}"] * bool(missing) + [f"unexpected {extra[:3]}"] * bool(extra)
        found += [f"shape of {k} is {list(state_dict[k].shape)}, not {list(own[k].shape)}" for k in wrong[:1]]
        raise PolyditError(f"{system} checkpoint does not fit its configuration: {'; '.join(found)}")
    model.load_state_dict(state_dict, assign=assign)
    return model
