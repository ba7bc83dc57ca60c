"""What ``polydit dummy predict`` runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image, UnidentifiedImageError

from polydit.core.errors import PolyditError


class DuskPipeline(DiffusionPipeline):
    """Darkens without asking its transformer."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer)

    def __call__(self, image: Image.Image, amount: float) -> Image.Image:
        return image.convert("RGB").point(lambda value: int(value * amount))


def predict_one(
    pipe: DuskPipeline, source: Path, writer: Any, options: argparse.Namespace, generator: torch.Generator
) -> dict[str, Any]:
    options.progress(1, 2)
    if source.stem == options.fail_at:
        raise KeyboardInterrupt
    try:
        image = Image.open(source)
    except UnidentifiedImageError as error:
        raise PolyditError(f"{source}: not a picture") from error
    path = writer.image(f"{source.stem}.png", pipe(image, options.amount))
    return {"files": [path.name], "noise": float(torch.randn((), generator=generator))}


def greet(options: argparse.Namespace) -> int:
    print(f"hello {options.name}")
    return 0
