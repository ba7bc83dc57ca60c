"""``predict`` for LayerDecomp's pipeline: picture and mask to background, foreground and their composite."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.data.images import image_size, list_images, read_image, to_uint8
from ...core.errors import PolyditError
from ...core.media import LayerStack, OutputWriter, PictureLayer, export_layers, write_layers
from .pipeline import LayerDecompositionOutput, LayerDecompositionPipeline, to_mask

__all__ = ["find_mask", "object_stack", "predict_object"]


def predict_object(
    pipe: LayerDecompositionPipeline,
    source: Path,
    writer: OutputWriter,
    options: Namespace,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Write ``<stem>_background.png``, ``<stem>_foreground.png``, ``<stem>_composite.png``, ``<stem>_layers.json``.

    Returns:
        A JSON-ready record: files, sizes, what there is to note.
    """
    mask_file = find_mask(options.mask, source)
    size, mask_size = image_size(source), image_size(mask_file)
    if size != mask_size:  # before a large picture is decoded
        raise PolyditError(
            f"{mask_file}: is {mask_size[0]}x{mask_size[1]} and {source.name} {size[0]}x{size[1]}; "
            "give a mask of the picture's size"
        )
    image, info = read_image(source)
    notes = []
    if info.alpha is not None and info.alpha.min() < info.alpha.max():
        notes.append("the picture has transparency: it was shown over white")
    made = pipe(
        to_uint8(image),
        (to_mask(mask_file) * 255).round().astype(np.uint8),
        num_inference_steps=options.steps or 1,
        generator=generator,
        size=options.size,
        progress=getattr(options, "progress", None),
    )
    if made.empty:
        notes.append(
            "the mask is empty: the background is a copy of the picture, the foreground has nothing in it"
        )
    for note in notes:
        print(f"{source.name}: {note}", file=sys.stderr, flush=True)  # noqa: T201
    stack = object_stack(made)
    composite = writer.image(f"{source.stem}_composite.png", made.composite)
    exported = export_layers(writer, source.stem, stack, options.export)
    files = write_layers(writer, source.stem, stack, composite=False)
    return {
        "files": [*files[:-1], composite.name, *([exported] if exported else []), files[-1]],
        "mask": str(mask_file),
        "size": [stack.width, stack.height],
        "empty_mask": made.empty,
        "foreground_share": round(float(made.foreground[..., 3].mean() / 255), 6),
        "notes": notes,
    }


def object_stack(made: LayerDecompositionOutput) -> LayerStack:
    """Background and foreground as a stack of layers of the picture's size."""
    height, width = made.background.shape[:2]
    opaque = np.dstack([made.background, np.full((height, width), 255, np.uint8)])
    layers = (
        PictureLayer("background", opaque, role="background"),
        PictureLayer("foreground", made.foreground, role="foreground"),
    )
    return LayerStack(width, height, layers)


def find_mask(given: Path | None, source: Path) -> Path:
    """The mask of a picture: the file that was given, or the one of the same stem in the folder.

    Raises:
        PolyditError: none was given, or the folder has none for this picture, or several.
    """
    if given is None:
        raise PolyditError(
            "--mask: required by these weights; give a picture that is white where the object is, or a folder of them"
        )
    given = given.expanduser()
    if not given.exists():
        raise PolyditError(f"--mask {given}: no such file or folder")
    if given.is_file():
        return given
    found = [path for path in list_images(given, recursive=False) if path.stem == source.stem]
    if len(found) != 1:
        # Not of the option alone: other pictures may have theirs.
        what = "no mask" if not found else f"{len(found)} masks"
        raise PolyditError(f"{source.name}: --mask {given} has {what} called {source.stem}.*; one is needed")
    return found[0]
