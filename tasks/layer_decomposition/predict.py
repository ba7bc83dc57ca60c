"""``polydit layer-decomposition predict``: one picture at a time, by the kind of pipeline that was loaded."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...core.errors import PolyditError
from ...core.task import resolve

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from ...core.media import OutputWriter

__all__ = ["predict_one"]

_HERE = __name__.rpartition(".")[0]
PREDICTORS = {
    "LayerDecompositionPipeline": f"{_HERE}.object_layers:predict_object",
    "IllustrationLayersPipeline": f"{_HERE}.illustration_predict:predict_illustration",
    "TransparencyPipeline": f"{_HERE}.transparency_predict:predict_transparency",
    "LayerStackPipeline": f"{_HERE}.layer_stack_predict:predict_stack",
    "PixelStackPipeline": f"{_HERE}.layer_stack_predict:predict_pixel_stack",
}
"""Class of a pipeline -> the function that runs it on one file, with the arguments of :func:`predict_one`.

Each writes ``<stem>_layers.json`` (the layers bottom first: name, file, role, blend mode, opacity), which tells the
command that a picture is done.
"""

USES = {
    "LayerDecompositionPipeline": ("mask", "size", "steps"),
    "IllustrationLayersPipeline": ("size", "steps"),
    "TransparencyPipeline": (),
    "LayerStackPipeline": ("size", "steps", "prompt", "layers"),
    "PixelStackPipeline": ("size", "steps", "layers"),
}
"""Class of a pipeline -> what it uses of the options that not all of them do."""


def predict_one(
    pipe: DiffusionPipeline,
    source: Path,
    writer: OutputWriter,
    options: Namespace,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Take one picture apart, and say what was done.

    Returns:
        A JSON-ready record: files, sizes, settings.

    Raises:
        PolyditError: the weights are of another task, or do not use an option that was given.
    """
    name = type(pipe).__name__
    if name not in PREDICTORS:
        raise PolyditError(
            f"--weights: {name} does not decompose into layers; choose one of {', '.join(PREDICTORS)}"
        )
    for option in sorted({option for used in USES.values() for option in used} - set(USES[name])):
        if getattr(options, option, None) not in (None, ""):
            raise PolyditError(f"--{option}: these weights do not use it ({name}); leave it out")
    record: dict[str, Any] = resolve(PREDICTORS[name])(pipe, source, writer, options, generator)
    return record
