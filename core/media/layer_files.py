"""A stack of layers and its files: one PNG per layer, and a JSON file that says how they lie on each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..alpha import BLEND_MODES, over
from ..errors import PolyditError
from .writer import OutputWriter

__all__ = ["LayerStack", "PictureLayer", "export_layers", "read_layers", "write_layers"]

FORMAT, VERSION = "polydit-layers", 1


@dataclass(frozen=True)
class PictureLayer:
    """One layer.

    Attributes:
        name: what programs show.
        pixels: 8-bit (h, w, 4), straight alpha.
        x: column of its left edge on the canvas; may be outside.
        y: row of its top edge.
        opacity: multiplies its alpha, in [0, 1].
        blend_mode: one of ``polydit.core.alpha.BLEND_MODES``.
        visible: whether it is part of the picture.
        role: what it is, for other programs to go by; empty if nothing special.
    """

    name: str
    pixels: NDArray[np.uint8]
    x: int = 0
    y: int = 0
    opacity: float = 1.0
    blend_mode: str = "normal"
    visible: bool = True
    role: str = ""

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 3 or self.pixels.shape[2] != 4:
            raise ValueError(
                f"layer {self.name!r}: 8-bit (h, w, 4), not {self.pixels.dtype} {self.pixels.shape}"
            )
        if self.blend_mode not in BLEND_MODES:
            raise ValueError(f"layer {self.name!r}: blend mode {self.blend_mode!r} is not known")
        if not 0 <= self.opacity <= 1:
            raise ValueError(f"layer {self.name!r}: opacity {self.opacity} lies outside of 0 and 1")

    def cropped(self) -> PictureLayer:
        """The same layer without rows and columns in which nothing is visible; an empty one keeps one pixel."""
        alpha = self.pixels[..., 3]
        rows, columns = np.nonzero(alpha.any(1))[0], np.nonzero(alpha.any(0))[0]
        if not len(rows):
            return replace(self, pixels=self.pixels[:1, :1])
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        return replace(
            self,
            pixels=np.ascontiguousarray(self.pixels[top:bottom, left:right]),
            x=self.x + int(left),
            y=self.y + int(top),
        )

    def on_canvas(self, width: int, height: int) -> NDArray[np.uint8]:
        """The layer on an empty canvas, (height, width, 4); what lies outside is cut off."""
        canvas = np.zeros((height, width, 4), np.uint8)
        h, w = self.pixels.shape[:2]
        top, left = max(self.y, 0), max(self.x, 0)
        bottom, right = min(self.y + h, height), min(self.x + w, width)
        if top < bottom and left < right:
            canvas[top:bottom, left:right] = self.pixels[
                top - self.y : bottom - self.y, left - self.x : right - self.x
            ]
        return canvas


@dataclass(frozen=True)
class LayerStack:
    """Layers on a canvas.

    Attributes:
        width: of the canvas.
        height: of the canvas.
        layers: bottom first.
        paper: colour under all layers, (red, green, blue); None is transparent.
    """

    width: int
    height: int
    layers: Sequence[PictureLayer] = field(default_factory=tuple)
    paper: tuple[int, int, int] | None = None

    def composite(self) -> NDArray[np.uint8]:
        """The picture that the layers make, 8-bit: (height, width, 3) on paper, else (height, width, 4)."""
        if self.paper is None:
            result = torch.zeros(4, self.height, self.width)
        else:
            result = torch.tensor(self.paper).view(3, 1, 1).expand(3, self.height, self.width) / 255
        for layer in self.layers:
            if layer.visible:
                picture = torch.from_numpy(layer.on_canvas(self.width, self.height)).permute(2, 0, 1) / 255
                result = over(picture, result, layer.blend_mode, layer.opacity)
        return (result.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()

    def with_paper(self) -> LayerStack:
        """The paper as a layer at the bottom: for files that know no paper."""
        if self.paper is None:
            return self
        sheet = np.empty((self.height, self.width, 4), np.uint8)
        sheet[:] = (*self.paper, 255)
        return replace(self, layers=(PictureLayer("paper", sheet, role="paper"), *self.layers), paper=None)

    def record(self, files: Sequence[str]) -> dict[str, Any]:
        """What ``layers.json`` says, with the name of each layer's file."""
        layers = [
            {
                "name": layer.name,
                "file": file,
                "role": layer.role,
                "blend_mode": layer.blend_mode,
                "opacity": layer.opacity,
                "visible": layer.visible,
                "x": layer.x,
                "y": layer.y,
                "width": layer.pixels.shape[1],
                "height": layer.pixels.shape[0],
            }
            for layer, file in zip(self.layers, files, strict=True)
        ]
        paper = list(self.paper) if self.paper is not None else None
        size = {"width": self.width, "height": self.height}
        return {"format": FORMAT, "version": VERSION, **size, "paper": paper, "layers": layers}


def file_names(stack: LayerStack, stem: str) -> list[str]:
    """A readable, unique PNG name for each layer."""
    names: list[str] = []
    for number, layer in enumerate(stack.layers):
        plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in layer.name).strip("-") or str(number)
        name = f"{stem}_{plain}.png"
        names.append(name if name not in names else f"{stem}_{number:02d}_{plain}.png")
    return names


def write_layers(writer: OutputWriter, stem: str, stack: LayerStack, composite: bool = True) -> list[str]:
    """Write ``<stem>_<layer>.png`` for each layer, ``<stem>_composite.png``, and last ``<stem>_layers.json``.

    The PNG files have the size of the layer, which may lie anywhere on the canvas; the JSON file lists them bottom
    first.

    Returns:
        The names of the files, the JSON file last.
    """
    names = file_names(stack, stem)
    for name, layer in zip(names, stack.layers, strict=True):
        writer.image(name, layer.pixels)
    if composite:
        writer.image(f"{stem}_composite.png", stack.composite())
    writer.json(f"{stem}_layers.json", stack.record(names))
    return [*names, *([f"{stem}_composite.png"] if composite else []), f"{stem}_layers.json"]


def read_layers(path: str | Path) -> LayerStack:
    """Read what :func:`write_layers` wrote.

    Args:
        path: the JSON file; the pictures lie beside it.

    Raises:
        PolyditError: it is missing or damaged, or one of its pictures is.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("format") != FORMAT:
            raise PolyditError(f"{path}: is no list of layers; give a file that `predict` wrote")
        paper = record.get("paper")
        layers = []
        for entry in record["layers"]:
            file = path.parent / Path(entry["file"]).name
            with Image.open(file) as picture:
                pixels = np.array(picture.convert("RGBA"))
            layers.append(
                PictureLayer(
                    entry["name"],
                    pixels,
                    int(entry.get("x", 0)),
                    int(entry.get("y", 0)),
                    float(entry.get("opacity", 1.0)),
                    entry.get("blend_mode", "normal"),
                    bool(entry.get("visible", True)),
                    entry.get("role", ""),
                )
            )
        return LayerStack(
            int(record["width"]), int(record["height"]), tuple(layers), tuple(paper) if paper else None
        )
    except FileNotFoundError as error:
        raise PolyditError(
            f"{error.filename}: not found; give the JSON file with its pictures beside it"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PolyditError(f"{path}: cannot be read ({error!r}); write the layers anew") from error


def export_layers(writer: OutputWriter, stem: str, stack: LayerStack, kind: str) -> str | None:
    """Write a stack as one file, ``<stem>.<kind>``.

    Args:
        writer: where to.
        stem: of the file's name.
        stack: what to.
        kind: ``zip``, ``ora``, ``psd``, or ``none`` for nothing.

    Returns:
        The name of the file.

    Raises:
        PolyditError: the kind is not known, or its library is missing.
    """
    if kind == "none":
        return None
    if kind not in ("zip", "ora", "psd"):
        raise PolyditError(f"--export {kind}: is not known; choose none, zip, ora or psd")
    from .open_raster import write_open_raster, write_zip
    from .photoshop import write_photoshop

    name = f"{stem}.{kind}"
    with writer.open(name) as file:
        if kind == "zip":
            write_zip(file, stack, stem)
        elif kind == "ora":
            write_open_raster(file, stack)
        else:
            write_photoshop(file, stack)
    return name
