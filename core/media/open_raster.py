"""OpenRaster (.ora): a zip file of PNGs that Krita, GIMP and MyPaint open as layers; and plain zip files of them."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ElementTree
import zipfile
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .layer_files import LayerStack, file_names

__all__ = ["write_open_raster", "write_zip"]

COMPOSITE_OPS = {
    "normal": "svg:src-over",
    "plus": "svg:plus",
    **{
        mode: f"svg:{mode}"
        for mode in (
            "multiply",
            "screen",
            "overlay",
            "darken",
            "lighten",
            "color-dodge",
            "color-burn",
            "hard-light",
            "soft-light",
            "difference",
            "exclusion",
        )
    },
}
"""Our blend modes as OpenRaster names them; ``exclusion`` is outside of its specification, but programs know it."""

_THUMBNAIL = 256


def write_open_raster(file: BinaryIO, stack: LayerStack, crop: bool = True) -> None:
    """Write a stack as OpenRaster 0.0.3.

    Args:
        file: where to.
        stack: what to; its paper becomes a layer.
        crop: cut layers to what is visible of them; their place is kept.
    """
    stack = stack.with_paper()
    image = ElementTree.Element("image", {"version": "0.0.3", "w": str(stack.width), "h": str(stack.height)})
    entries = ElementTree.SubElement(image, "stack")
    pictures: list[tuple[str, NDArray[np.uint8]]] = []
    for number, layer in reversed(list(enumerate(stack.layers))):  # topmost first
        part = layer.cropped() if crop else layer
        source = f"data/layer{number}.png"
        pictures.append((source, part.pixels))
        ElementTree.SubElement(
            entries,
            "layer",
            {
                "name": layer.name,
                "src": source,
                "x": str(part.x),
                "y": str(part.y),
                "opacity": f"{layer.opacity:.6g}",
                "visibility": "visible" if layer.visible else "hidden",
                "composite-op": COMPOSITE_OPS[layer.blend_mode],
            },
        )
    merged = stack.composite()
    small = Image.fromarray(merged)
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        # First and not compressed: programs tell the type by it.
        archive.writestr(zipfile.ZipInfo("mimetype"), "image/openraster", zipfile.ZIP_STORED)
        archive.writestr("stack.xml", ElementTree.tostring(image, encoding="UTF-8", xml_declaration=True))
        for name, pixels in pictures:
            archive.writestr(name, png(pixels), zipfile.ZIP_STORED)
        archive.writestr("mergedimage.png", png(merged), zipfile.ZIP_STORED)
        archive.writestr("Thumbnails/thumbnail.png", png(np.asarray(small)), zipfile.ZIP_STORED)


def write_zip(file: BinaryIO, stack: LayerStack, stem: str) -> None:
    """Write the files of ``write_layers`` as one zip file: a PNG per layer, the composite, and the JSON file."""
    names = file_names(stack, stem)
    record = json.dumps(stack.record(names), indent=2, ensure_ascii=False) + "\n"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, layer in zip(names, stack.layers, strict=True):
            archive.writestr(name, png(layer.pixels), zipfile.ZIP_STORED)
        archive.writestr(f"{stem}_composite.png", png(stack.composite()), zipfile.ZIP_STORED)
        archive.writestr(f"{stem}_layers.json", record)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """An 8-bit picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
