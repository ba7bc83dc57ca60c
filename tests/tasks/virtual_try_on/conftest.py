"""Data sets in their official layouts, tiny."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def save(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path)


def person_labels(height: int, width: int, scheme: str) -> np.ndarray:
    """A map of a person: head, upper garment, arms, trousers, by the numbers of the scheme."""
    upper, arms, trousers, face, hair = {"lip": (5, 14, 9, 13, 2), "atr": (4, 14, 6, 11, 2)}[scheme]
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    labels = np.zeros((height, width), np.uint8)
    labels[(y > 0.6) & (np.abs(x - 0.5) < 0.16)] = trousers
    labels[(y > 0.25) & (y < 0.6) & (np.abs(x - 0.5) < 0.3)] = arms
    labels[(y > 0.25) & (y < 0.62) & (np.abs(x - 0.5) < 0.18)] = upper
    labels[np.hypot((x - 0.5) * width / height, y - 0.17) < 0.1] = face
    labels[(y < 0.1) & (y > 0.05) & (np.abs(x - 0.5) < 0.1)] = hair
    return labels


def palette_png(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels, "P")
    picture.putpalette(
        [value for number in range(256) for value in (number * 37 % 256, number * 91 % 256, 40)]
    )
    picture.save(path)


@pytest.fixture
def viton(tmp_path: Path) -> Path:
    """Four training and three test pairs of 32 x 24; the last test pair has a parse map and no mask."""
    root = tmp_path / "VITON-HD"
    rng = np.random.default_rng(0)
    for split, numbers in (("train", range(4)), ("test", range(10, 13))):
        names = [f"{n:05d}_00" for n in numbers]
        for name in names:
            save(root / split / "image" / f"{name}.jpg", rng.integers(0, 256, (32, 24, 3), np.uint8))
            save(root / split / "cloth" / f"{name}.jpg", rng.integers(0, 256, (32, 24, 3), np.uint8))
            save(root / split / "cloth-mask" / f"{name}.jpg", np.full((32, 24), 255, np.uint8))
            palette_png(root / split / "image-parse-v3" / f"{name}.png", person_labels(32, 24, "lip"))
            if name != "00012_00":
                mask = np.zeros((32, 24), np.uint8)
                mask[8:20, 6:18] = 255
                save(root / split / "agnostic-mask" / f"{name}_mask.png", mask)
        others = names[1:] + names[:1]
        lines = [f"{a}.jpg {b}.jpg" for a, b in zip(names, others, strict=True)]
        (root / f"{split}_pairs.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def dress_code(tmp_path: Path) -> Path:
    """Two pairs of each split in two categories; masks made from label maps of half the size."""
    root = tmp_path / "DressCode"
    rng = np.random.default_rng(1)
    for category in ("upper_body", "lower_body"):
        base = root / category
        for number in range(20, 24):
            for role in (0, 1):
                save(
                    base / "images" / f"{number:06d}_{role}.jpg", rng.integers(0, 256, (32, 24, 3), np.uint8)
                )
            save(base / "label_maps" / f"{number:06d}_4.png", person_labels(16, 12, "atr"))
        (base / "train_pairs.txt").write_text("000020_0.jpg\t000020_1.jpg\n000021_0.jpg\t000021_1.jpg\n")
        (base / "test_pairs_paired.txt").write_text("000022_0.jpg 000022_1.jpg\n000023_0.jpg 000023_1.jpg\n")
        (base / "test_pairs_unpaired.txt").write_text("000022_0.jpg 000023_1.jpg\n")
    return root


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline whose random weights leave traces of person, garment and noise."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler

    from polydit.core.conditioning import TokenGroupDiT
    from polydit.core.diffusion import Parameterization
    from polydit.tasks.virtual_try_on.formulation import TokenGroupFormulation
    from polydit.tasks.virtual_try_on.pipeline import VirtualTryOnPipeline

    torch.manual_seed(0)
    transformer = TokenGroupDiT(
        conditions={"person": "shared", "garment": "beside"},
        input_size=(24, 16),
        patch_size=4,
        in_channels=3,
        hidden_size=16,
        depth=2,
        num_heads=2,
        num_classes=None,
        position="rope",
    )
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    VirtualTryOnPipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(),
        formulation=TokenGroupFormulation(height=24, width=16).config(),
        parameterization=Parameterization(prediction="x0").config(),
        steps=2,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def dressing(tmp_path: Path) -> dict[str, Path]:
    """A person of 40 x 60 pixels, two garments, and a mask."""
    rng = np.random.default_rng(2)
    files = {name: tmp_path / "in" / f"{name}.png" for name in ("anna", "shirt", "coat", "mask", "parse")}
    save(files["anna"], rng.integers(0, 256, (60, 40, 3), np.uint8))
    for name, colour in (("shirt", (200, 30, 30)), ("coat", (20, 40, 190))):
        picture = np.full((30, 30, 3), 255, np.uint8)
        picture[5:25, 6:24] = colour
        save(files[name], picture)
    mask = np.zeros((60, 40), np.uint8)
    mask[20:45, 8:32] = 255
    save(files["mask"], mask)
    save(files["parse"], person_labels(60, 40, "lip"))
    return files
