"""Loading what learned metrics need: from the user's files, never from the network, never random."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import PolyditError

__all__ = ["MissingWeightsError", "Weights", "load_into", "read_weights"]

Weights = str | Path | Mapping[str, Tensor]


class MissingWeightsError(PolyditError):
    """A metric was asked for without the weights that define it.

    Attributes:
        expected: the file by its published name.
        path: what was given instead, if anything.
    """

    def __init__(self, metric: str, expected: str, path: Path | None = None) -> None:
        """Name the metric, the published file and the path that is not there."""
        self.expected, self.path = expected, path
        given = f"{path}: no such file; " if path else ""
        super().__init__(f"{given}{metric} needs {expected}; give its path (it is not downloaded)")


def read_weights(weights: Weights | None, metric: str, expected: str) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file or of a PyTorch checkpoint, or a given state dict.

    Args:
        weights: path or tensors; None raises.
        metric: for messages, such as ``"LPIPS (alex)"``.
        expected: the published file, such as ``"alexnet-owt-7be5be79.pth from torchvision"``.

    Raises:
        MissingWeightsError: nothing was given, or the file is not there.
        PolyditError: the file cannot be read without running code, or holds no tensors.
    """
    if weights is None:
        raise MissingWeightsError(metric, expected)
    if isinstance(weights, Mapping):
        return dict(weights)
    path = Path(weights)
    if not path.is_file():
        raise MissingWeightsError(metric, expected, path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise nearly anything on bytes that are something else
        raise PolyditError(f"{path}: not a readable file of weights; {metric} needs {expected}") from error
    if isinstance(content, Mapping) and content and all(isinstance(v, Tensor) for v in content.values()):
        return dict(content)
    raise PolyditError(f"{path}: holds no plain state dict; {metric} needs {expected}")


def load_into(module: nn.Module, weights: Weights | None, metric: str, expected: str) -> None:
    """Load every key of ``module``; other keys in the file are ignored.

    Raises:
        PolyditError: a key is missing or has another shape, which is another network; see `read_weights`.
    """
    found = read_weights(weights, metric, expected)
    source = weights if isinstance(weights, (str, Path)) else "the given weights"
    wanted = module.state_dict()
    for key, value in wanted.items():
        if key not in found:
            raise PolyditError(f"{source}: lacks {key!r}; {metric} needs {expected}")
        if found[key].shape != value.shape:
            shapes = f"{tuple(found[key].shape)}, not {tuple(value.shape)}"
            raise PolyditError(f"{source}: {key!r} is {shapes}; {metric} needs {expected}")
    module.load_state_dict({key: found[key] for key in wanted})
