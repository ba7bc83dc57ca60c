"""Reading the weights that a run starts from."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import PolyditError
from .checkpoints import read_checkpoint

__all__ = ["difference", "is_on_meta", "read_weights"]

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
