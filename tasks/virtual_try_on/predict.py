"""``polydit virtual-try-on predict``: one person and one garment at a time."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.data.images import read_image, to_uint8
from ...core.errors import PolyditError
from ...core.media import OutputWriter, comparison_sheet
from .fitting import fit_garment, view_around
from .masks import from_parse, from_region, read_labels, read_mask

if TYPE_CHECKING:
    from .pipeline import VirtualTryOnPipeline

__all__ = ["predict_one"]


def predict_one(
    pipe: VirtualTryOnPipeline,
    source: Path,
    writer: OutputWriter,
    options: Namespace,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Dress one person: ``<stem>_<garment>.png``, of the person's size.

    The network sees the part of the photograph around the mask, at its own size; what it makes is enlarged again and
    put under the mask.

    Returns:
        A JSON-ready record: files, sizes, the part that was seen, the share of it that was made anew.

    Raises:
        PolyditError: no garment, nothing that says where it goes, or a picture that does not fit.
    """
    if options.garment is None:
        raise PolyditError("--garment: required; give a picture of the garment laid flat")
    person = to_uint8(read_image(source)[0])
    garment = to_uint8(read_image(options.garment)[0])
    mask = region(options, person.shape[:2])
    view = view_around(mask, (pipe.formulation.height, pipe.formulation.width))
    pipe.set_progress_bar_config(disable=True)  # the command has its own
    made = pipe(
        person,
        garment,
        mask,
        num_inference_steps=options.steps,
        generator=generator,
        guidance_scale=options.guidance_scale,
        repaint=options.repaint,
        output_type="np",
    ).images[0]
    result = to_uint8(np.asarray(made))
    name = f"{source.stem}_{options.garment.stem}"
    files = [writer.image(f"{name}.png", result).name]
    if options.strip:
        files.append(writer.image(f"{name}_strip.png", strip(person, mask, garment, result)).name)
    return {
        "files": files,
        "garment": str(options.garment),
        "size": [person.shape[1], person.shape[0]],
        "view": {"left": view.left, "top": view.top, "width": view.width, "height": view.height},
        "network_size": [pipe.formulation.width, pipe.formulation.height],
        "mask_share": round(float(view.cut(mask).mean()), 4),
    }


def region(options: Namespace, size: tuple[int, ...]) -> NDArray[np.bool_]:
    """What is to be made anew, (H, W), by ``--mask`` or ``--parse``.

    Raises:
        PolyditError: both were given or neither, or the picture does not fit.
    """
    if options.mask is not None and options.parse is not None:
        raise PolyditError(f"--parse {options.parse}: does not go with --mask; give one of the two")
    if options.mask is not None:
        for flag, value, default in (
            ("--labels", options.labels, "lip"),
            ("--category", options.category, "upper"),
        ):
            if value != default:
                raise PolyditError(f"{flag} {value}: is for the map of --parse; leave it out with --mask")
        mask = read_mask(options.mask, (size[0], size[1]))
    elif options.parse is not None:
        labels = read_labels(options.parse)
        if labels.shape != size[:2]:
            raise PolyditError(
                f"{options.parse}: {labels.shape[1]}x{labels.shape[0]}, but the person is {size[1]}x{size[0]}; "
                "give a parse map of the same size"
            )
        try:
            mask = from_parse(labels, options.labels, options.category)
        except PolyditError as error:
            raise PolyditError(f"{options.parse}: {error}") from error
    else:
        raise PolyditError(
            "--mask: required, or --parse; paint white what is to be dressed anew, whole arms too "
            "(`polydit virtual-try-on demo` has a brush)"
        )
    return from_region(mask) if options.hull else mask


def strip(
    person: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    garment: NDArray[np.uint8],
    result: NDArray[np.uint8],
) -> Any:
    """Person, what the network saw, garment and result side by side."""
    hidden = np.where(mask[..., None], np.uint8(128), person)
    flat = fit_garment(garment, (person.shape[0], person.shape[1]))
    panels = [("person", person), ("masked", hidden), ("garment", flat), ("result", result)]
    return comparison_sheet(panels, panel_width=min(400, max(160, person.shape[1])))
