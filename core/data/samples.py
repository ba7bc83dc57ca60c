"""scikit-image's own pictures as samples for evaluation. They are never trained on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from ..errors import PolyditError
from .images import read_image, to_uint8

__all__ = ["PHOTOGRAPHS", "load_sample", "sample_names", "sample_path"]

# The photographs among them, in colour, that ship inside the wheel of scikit-image.
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left")
_OTHERS = (
    "brick",
    "camera",
    "cell",
    "clock_motion",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "ihc",
    "moon",
    "page",
    "retina",
    "text",
)


def _folder() -> Path:
    # Found without importing scikit-image, which takes its time.
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise PolyditError(
            "scikit-image: not installed, so there are no built-in samples; pip install scikit-image"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def sample_path(name: str) -> Path:
    """The file of a sample.

    Raises:
        PolyditError: unknown name (lists the known ones), or scikit-image is not installed.
    """
    folder = _folder()
    for suffix in (".png", ".jpg"):
        if name in PHOTOGRAPHS + _OTHERS and (path := folder / f"{name}{suffix}").is_file():
            return path
    raise PolyditError(f"sample '{name}': unknown; choose from {', '.join(sample_names())}")


def sample_names() -> list[str]:
    """Names of the samples that the installed scikit-image has, photographs in colour first."""
    folder = _folder()
    return [n for n in PHOTOGRAPHS + _OTHERS if any((folder / f"{n}{s}").is_file() for s in (".png", ".jpg"))]


def load_sample(name: str) -> np.ndarray:
    """A sample as (H, W, 3) uint8."""
    return to_uint8(read_image(sample_path(name))[0])
