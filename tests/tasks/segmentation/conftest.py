"""A pipeline that has learned something, its folder, and folders of pictures with masks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from discs import FORM, Pixels, disc, one_step, small_dit

from polydit.tasks.segmentation.pipeline import SegmentationPipeline


@pytest.fixture(scope="session")
def pipe() -> SegmentationPipeline:
    """A pipeline that has learned to tell red discs, in a few seconds."""
    torch.manual_seed(0)
    model, objective = small_dit(), one_step()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(70):
        pairs = [disc(32, 32, 8 * step + k) for k in range(8)]
        picture = torch.stack([torch.from_numpy(p).permute(2, 0, 1).float() / 127.5 - 1 for p, _ in pairs])
        mask = torch.stack([torch.from_numpy(m)[None].float() / 255 for _, m in pairs])
        context = torch.full_like(mask, 0.5) if step % 2 else mask
        condition = FORM.condition(picture, Pixels, context)
        target = FORM.target(mask, 0 * mask, Pixels)
        raw = FORM.predict(model, torch.zeros_like(target), torch.full((8,), 1000.0), condition, objective)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(raw, (target + 1) / 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.15
    made = SegmentationPipeline(model.eval(), formulation=FORM.config(), parameterization=objective.config())
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="session")
def weights(pipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Six discs and their masks in two folders, with the odd names that data sets have."""
    pictures, masks = tmp_path / "im", tmp_path / "gt"
    pictures.mkdir()
    masks.mkdir()
    for number in range(6):
        picture, mask = disc(40, 56, number)
        stem = f"5#Artifact#1#Basket#{number}_o [x]"
        Image.fromarray(picture).save(pictures / f"{stem}.jpg", quality=95)
        Image.fromarray(mask).save(masks / f"{stem}.png")
    return pictures, masks
