"""The stage's two ends in Python, and the samples."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polydit.core.errors import PolyditError
from polydit.core.media import LayerStack, PictureLayer
from polydit.demos.layer_decomposition import sample_scenes
from polydit.demos.layer_stage import edited, staged
from polydit.demos.painting import as_layer, painted


def stack() -> LayerStack:
    rng = np.random.default_rng(0)
    back = rng.integers(0, 256, (20, 30, 4), np.uint8)
    back[..., 3] = 255
    front = np.zeros((20, 30, 4), np.uint8)
    front[5:12, 8:18] = (200, 40, 10, 255)
    return LayerStack(30, 20, (PictureLayer("background", back), PictureLayer("foreground", front)))


def test_layers_go_to_the_stage_cropped():
    given = json.loads(staged(stack()))
    assert (given["width"], given["height"], given["scale"]) == (30, 20, 1)
    front = given["layers"][1]
    assert (front["x"], front["y"], front["blend_mode"], front["visible"]) == (8, 5, "normal", True)
    picture = Image.open(io.BytesIO(base64.b64decode(front["src"].partition(",")[2])))
    assert picture.size == (10, 7)
    assert "multiply" in given["modes"]


def test_a_large_stack_is_shown_smaller():
    wide = np.full((10, 3200, 4), 255, np.uint8)
    given = json.loads(staged(LayerStack(3200, 10, (PictureLayer("a", wide),))))
    assert given["scale"] == 0.5
    picture = Image.open(io.BytesIO(base64.b64decode(given["layers"][0]["src"].partition(",")[2])))
    assert picture.size == (1600, 5)


def test_changes_come_back():
    before = stack()
    kept = ("name", "x", "y", "opacity", "blend_mode", "visible")
    changes = [{name: layer[name] for name in kept} for layer in json.loads(staged(before))["layers"]]
    assert (edited(before, changes).composite() == before.composite()).all()
    changes[1] |= {"x": 10, "y": 0, "opacity": 0.5, "blend_mode": "multiply"}
    changed = edited(before, json.dumps(changes))
    behind = before.layers[0].pixels[3, 12, :3] / 255
    expected = 0.5 * behind * np.array([200, 40, 10]) + 0.5 * behind * 255
    assert np.abs(changed.composite()[3, 12, :3] - expected).max() <= 1
    changes[1]["visible"] = False
    assert (edited(before, changes).composite() == before.layers[0].pixels).all()
    assert edited(before, "") is before


@pytest.mark.parametrize("edits", ['[{"name": "other"}]', "no json", '[{"name": "background"}]', "[1]"])
def test_changes_of_something_else_are_refused(edits: str):
    with pytest.raises(PolyditError, match=r"layers: .* again"):
        edited(stack(), edits)


def test_paint_becomes_a_mask(tmp_path: Path):
    mask = np.zeros((20, 30), np.uint8)
    mask[4:9, 3:8] = 255
    Image.fromarray(as_layer(mask)).save(tmp_path / "l.png")
    assert (painted([tmp_path / "l.png"], (30, 20)) == mask).all()
    assert painted([tmp_path / "l.png"], (60, 40)).sum() == 4 * mask.astype(int).sum()
    assert painted([], (30, 20)).max() == 0


def test_samples_have_an_object_and_its_mask(tmp_path: Path):
    files = sample_scenes(tmp_path)
    assert len(files) == 6
    for picture, layer in zip(files[::2], files[1::2], strict=True):
        image, mask = Image.open(picture), np.asarray(Image.open(layer))[..., 3] > 0
        assert image.mode == "RGB"
        assert mask.shape == image.size[::-1]
        assert 0.02 < mask.mean() < 0.3
