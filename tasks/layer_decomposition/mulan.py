"""MULAN's layout (mulan-dataset/v1.0): one compressed pickle a picture, read without running what it may hold."""

from __future__ import annotations

import io
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ...core.alpha import composite, join
from ...core.data.images import read_image, to_uint8
from ...core.errors import PolyditError
from .simulated import as_sample

__all__ = ["MulanLayers", "find_mulan", "mulan_layers", "read_mulan"]

_LARGEST = 2**30
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}
"""What a pickle of arrays, numbers, texts and dictionaries needs; nothing else is looked up, let alone called."""


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_mulan(path: str | Path) -> dict[str, Any]:
    """The contents of a ``*.p.zl`` file, of which only arrays, numbers, texts and dictionaries are accepted.

    Raises:
        PolyditError: the file is damaged, far too large, or asks for anything else.
    """
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(Path(path).read_bytes(), _LARGEST)
        if inflate.unconsumed_tail:
            raise PolyditError(f"{path}: is larger than {_LARGEST >> 20} MB unpacked; not one of MULAN's")
        content = _Restricted(io.BytesIO(data)).load()
    except (
        OSError,
        zlib.error,
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        AttributeError,
        ImportError,
    ) as error:
        raise PolyditError(f"{path}: refused, it is no file of arrays ({error})") from error
    if not isinstance(content, dict) or "background" not in content or "instances" not in content:
        raise PolyditError(f"{path}: has no background and instances, so it is none of MULAN's")
    return content


def mulan_layers(content: dict[str, Any], image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The layers (H, W, 4) uint8 of a picture, bottom first.

    A layer's colours are the picture's where the layer is seen, plus the ``inpainted_delta``; the background is opaque.

    Args:
        content: from :func:`read_mulan`.
        image: (H, W, 3), the picture that the file belongs to (COCO's or LAION's).

    Raises:
        PolyditError: sizes differ.
    """
    instances = content["instances"]
    ordered = (
        [instances[key] for key in sorted(instances)] if isinstance(instances, dict) else list(instances)
    )
    layers = []
    for number, part in enumerate([content["background"], *ordered]):
        seen = _map(part["original_image_mask"])
        if seen.shape != image.shape[:2]:
            raise PolyditError(f"layers of {seen.shape[::-1]} do not fit a picture of {image.shape[1::-1]}")
        colour = np.asarray(part["inpainted_delta"], np.float32) + image * (seen > 0.5)[..., None]
        alpha = _map(part["instance_alpha"]) if number else np.ones_like(seen)
        layers.append(np.dstack([colour.clip(0, 255), alpha * 255]).round().astype(np.uint8))
    return layers


def _map(values: Any) -> NDArray[np.float32]:
    """(H, W) in [0, 1] of a mask stored as bool, as 0..1 or as 0..255, with or without a channel axis."""
    array = np.asarray(values)
    array = array[..., 0] if array.ndim == 3 else array
    scale = 255.0 if array.dtype == np.uint8 and array.max(initial=0) > 1 else 1.0
    return (array.astype(np.float32) / scale).clip(0, 1)


def find_mulan(root: str | Path, images: str | Path) -> list[tuple[Path, Path]]:
    """Files of a MULAN folder and their pictures, by the stem.

    Raises:
        PolyditError: there are none, or a picture is missing.
    """
    pictures = {
        path.stem: path for path in Path(images).rglob("*") if path.suffix.lower() in (".jpg", ".png")
    }
    found = []
    for file in sorted(Path(root).rglob("*.p.zl")):
        stem = file.name.removesuffix(".p.zl")
        if stem not in pictures:
            raise PolyditError(f"{file}: its picture {stem} is not in {images}")
        found.append((file, pictures[stem]))
    if not found:
        raise PolyditError(f"{root}: holds no *.p.zl files of MULAN")
    return found


class MulanLayers(Dataset[dict[str, Any]]):
    """MULAN's topmost instance over everything below it, scaled to squares.

    Args:
        files: from :func:`find_mulan`.
        size: side in pixels.
    """

    def __init__(self, files: Sequence[tuple[Path, Path]], size: int) -> None:
        self.files, self.size = list(files), size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, picture = self.files[index % len(self.files)]
        layers = [
            self._scaled(layer) for layer in mulan_layers(read_mulan(file), to_uint8(read_image(picture)[0]))
        ]
        if len(layers) < 2:
            raise PolyditError(f"{file}: has no instance above its background")
        background, front = composite(layers[:-1], backdrop=layers[0][:3]), layers[-1]
        image = composite([front], backdrop=background)
        return as_sample(image, (front[3:] > 0.5).float(), background, front)

    def _scaled(self, layer: NDArray[np.uint8]) -> Tensor:
        tensor = torch.from_numpy(layer).permute(2, 0, 1).float()[None] / 255
        colour, alpha = tensor[:, :3] * tensor[:, 3:], tensor[:, 3:]
        small = F.interpolate(torch.cat([colour, alpha], 1), (self.size, self.size), mode="area")[0]
        return join((small[:3] / small[3:].clamp(min=1e-6)).clamp(0, 1), small[3:])
