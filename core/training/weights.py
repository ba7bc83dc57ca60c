"""The weights that a run starts from: reading them, and seeing before a run whether they fit."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path

import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import PolyditError
from .checkpoints import read_checkpoint

__all__ = ["check_saved", "check_weights", "difference", "is_on_meta", "read_weights"]

PACKAGE = Path(__file__).resolve().parents[2]
"""Where ``demos/weights`` lies, which shipped configs name; they work from any folder."""


def is_on_meta(module: nn.Module) -> bool:
    """Whether a module has shapes but no values."""
    return any(p.is_meta for p in module.parameters())


def find_files(source: str) -> list[Path]:
    """The safetensors files of a file, a saved model, or the ``transformer`` of a saved pipeline.

    Raises:
        PolyditError: there is none.
    """
    path = Path(source).expanduser()
    if not path.exists() and (PACKAGE / source).exists():
        path = PACKAGE / source
    if not path.exists():
        raise PolyditError(
            f"--model.init_weights {source}: there is no such file or folder; give a saved model"
        )
    if path.is_file():
        if path.suffix != ".safetensors":
            raise PolyditError(
                f"--model.init_weights {source}: neither safetensors nor a .ckpt of fit; convert it first"
            )
        return [path]
    for folder in (path, path / "transformer", path / "backbone"):
        files = sorted(folder.glob("*.safetensors"))
        if files:
            return files
    raise PolyditError(
        f"--model.init_weights {source}: the folder holds no *.safetensors; give a saved model"
    )


def difference(own: Mapping[str, Tensor], given: Mapping[str, Tensor], needed: Set[str]) -> str:
    """What keeps a state dict from fitting a model, with the first three names; empty if it fits."""
    for problem, names in (
        ("lacks", needed - given.keys()),
        ("has unknown", given.keys() - own.keys()),
        (
            "has other shapes for",
            {name for name in own.keys() & given.keys() if own[name].shape != given[name].shape},
        ),
    ):
        if names:
            return f"{problem} {len(names)} of {len(needed)} weights ({', '.join(sorted(names)[:3])})"
    return ""


def read_weights(source: str, model: nn.Module) -> dict[str, Tensor]:
    """A state dict for ``model`` out of a file or folder.

    Raises:
        PolyditError: it is missing, unreadable, of another model, or not finite.
    """
    state: dict[str, Tensor] = {}
    if source.endswith(".ckpt"):  # of another run: the average of its weights
        trained = read_checkpoint(source)["state_dict"]
        state = {
            name.removeprefix("backbone."): v for name, v in trained.items() if name.startswith("backbone.")
        }
    else:
        for file in find_files(source):
            try:
                state.update(load_file(file))
            except (SafetensorError, OSError) as error:
                raise PolyditError(
                    f"{file}: cannot be read as safetensors ({error}); get the file again"
                ) from error
    own = model.state_dict()
    problem = difference(own, state, own.keys())
    if problem:
        raise PolyditError(
            f"--model.init_weights {source}: {problem} of {type(model).__name__}; "
            "use the backbone settings it was saved with"
        )
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise PolyditError(
                f"--model.init_weights {source}: weight {name} holds NaN or infinity; use another file"
            )
    return state


def check_weights(source: str, backbone: nn.Module) -> bool:
    """Whether weights have the names and shapes of the backbone, by the headers of their files.

    Raises:
        PolyditError: they are missing, unreadable or of another model.
    """
    prefix = "backbone."
    given: dict[str, Tensor] = {}
    if source.endswith(".ckpt"):
        state = read_checkpoint(source)["state_dict"]
        given = {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
    else:
        for file in find_files(source):
            given |= shapes_in(file)
    own = backbone.state_dict()
    problem = difference(own, given, own.keys())
    if problem:
        raise PolyditError(
            f"--model.init_weights {source}: {problem} of {type(backbone).__name__}; "
            "use the backbone settings it was saved with"
        )
    return True


def check_saved(model: ModelMixin) -> None:
    """Whether the folder that a model without values says it comes from holds its weights.

    Shapes are not compared: a task may have widened some since. Nor are names where the folder's model is of another
    class, which the task's own starts from.

    Raises:
        PolyditError: they are missing or incomplete.
    """
    source = getattr(model.config, "_name_or_path", None)
    places = [] if not source else [Path(source), Path(source) / "transformer"]
    folder = next((place for place in places if (place / "config.json").is_file()), None)
    if folder is None:
        return  # from the hub, or made here
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise PolyditError(f"{folder}: holds a config.json and no *.safetensors; copy the weights there")
    given: set[str] = set()
    for file in files:
        given |= shapes_in(file).keys()
    if type(model).__name__ != model.load_config(folder, local_files_only=True).get("_class_name"):
        return
    if lacks := sorted(model.state_dict().keys() - given):
        raise PolyditError(
            f"{folder}: lacks {len(lacks)} weights of {type(model).__name__} ({', '.join(lacks[:3])}); copy all of its "
            "files"
        )


def shapes_in(file: Path) -> dict[str, Tensor]:
    """What a safetensors file says it holds, on the meta device.

    Raises:
        PolyditError: it cannot be read.
    """
    try:
        with safe_open(file, "pt") as tensors:
            names = tensors.keys()
            return {name: torch.empty(tensors.get_slice(name).get_shape(), device="meta") for name in names}
    except (SafetensorError, OSError) as error:
        raise PolyditError(f"{file}: cannot be read as safetensors ({error}); get the file again") from error
