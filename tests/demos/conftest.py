"""A browser; a tiny pipeline with random weights, a LoRA for it, and a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from polydit.core.adapters import LoraOptions, inject, save_lora
from polydit.core.conditioning import StreamDiT
from polydit.core.load import load
from polydit.tasks.super_resolution.formulation import Formulation
from polydit.tasks.super_resolution.pipeline import SuperResolutionPipeline


@pytest.fixture(scope="package")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that leave traces of noise, factor and picture in what they make."""
    torch.manual_seed(0)
    transformer = StreamDiT(
        input_size=8,
        patch_size=4,
        in_channels=3,
        condition_channels=6,
        hidden_size=16,
        depth=2,
        num_heads=2,
        num_classes=3,
        position="rope",
        window_size=4,
        stream_init="identity",
    )
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    formulation = Formulation(conditioning="stream", residual_scale=0.2, scales=(2, 3, 4), signal_gain=True)
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    SuperResolutionPipeline(
        transformer, FlowMatchEulerDiscreteScheduler(), formulation=formulation.config()
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="package")
def lora(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that changes what the weights make."""
    transformer = load(weights).transformer
    inject(transformer, LoraOptions(rank=2))
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    return save_lora(transformer, tmp_path_factory.mktemp("lora") / "l.safetensors")


@pytest.fixture(scope="package")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG that lies on its side, so that taking its pixels for the file would show."""
    file = tmp_path_factory.mktemp("pictures") / "leaf.jpg"
    y, x = np.mgrid[:26, :34]
    array = np.stack([x * 7, y * 9, (x + y) % 16 * 15], axis=-1).clip(0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(file, quality=90, exif=exif)
    return file


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A fresh page that must neither report an error nor ask another machine for anything."""
    errors: list[str] = []
    foreign: list[str] = []

    def look(request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
            foreign.append(request.url)

    opened = chromium.new_page(viewport={"width": 1400, "height": 1000})
    opened.on("request", look)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    opened.set_default_timeout(60_000)
    yield opened
    opened.close()
    assert errors == []
    assert foreign == []
