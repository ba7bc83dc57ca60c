"""Stacks of layers in files: what another reader makes of them is the composite."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from polydit.core.errors import PolyditError
from polydit.core.media import (
    LayerStack,
    OutputWriter,
    PictureLayer,
    export_layers,
    read_layers,
    write_layers,
)
from polydit.core.media.open_raster import COMPOSITE_OPS
from polydit.core.media.photoshop import MODES


def picture(seed: int, height: int, width: int, opaque: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    pixels[: height // 3, :, 3] = 0  # something to crop
    pixels[-1:, :, 3] = 255
    if opaque:
        pixels[..., 3] = 255
    return pixels


def make_stack(**options) -> LayerStack:
    layers = (
        PictureLayer("flat colour", picture(0, 24, 30, opaque=True)),
        PictureLayer("shadow", picture(1, 20, 18), 5, 2, 0.6, "multiply", role="shadow"),
        PictureLayer("highlight", picture(2, 12, 12), -4, 15, 1.0, "screen"),
        PictureLayer("hidden", picture(3, 8, 8), 1, 1, 1.0, visible=False),
        PictureLayer("line/art", picture(4, 24, 30), 0, 0, 0.8),
    )
    return LayerStack(30, 24, layers, **options)


# -- an independent compositor, in NumPy on integers' floats ------------------------------------------------


def blend(below: np.ndarray, above: np.ndarray, mode: str) -> np.ndarray:
    if mode == "multiply":
        return below * above
    if mode == "screen":
        return 1 - (1 - below) * (1 - above)
    assert mode == "normal"
    return above


def reference(entries: list[tuple[np.ndarray, int, int, float, str]], width: int, height: int) -> np.ndarray:
    """Composite of (pixels, x, y, opacity, mode), bottom first, premultiplied in between; (H, W, 4) in [0, 1]."""
    total = np.zeros((height, width, 4))
    for pixels, x, y, opacity, mode in entries:
        layer = np.zeros((height + 100, width + 100, 4))
        layer[50 + y : 50 + y + pixels.shape[0], 50 + x : 50 + x + pixels.shape[1]] = pixels / 255
        layer = layer[50 : 50 + height, 50 : 50 + width]
        colour, alpha, backing = layer[..., :3], layer[..., 3:] * opacity, total[..., 3:]
        below = total[..., :3] / np.maximum(backing, 1e-9)
        shown = (1 - backing) * colour + backing * blend(below, colour, mode)
        total = np.concatenate(
            [alpha * shown + (1 - alpha) * total[..., :3], alpha + backing * (1 - alpha)], axis=-1
        )
    straight = total.copy()
    straight[..., :3] /= np.maximum(total[..., 3:], 1e-9)
    return straight


def test_the_composite_is_that_of_an_independent_compositor():
    stack = make_stack()
    entries = [(x.pixels, x.x, x.y, x.opacity, x.blend_mode) for x in stack.layers if x.visible]
    assert np.abs(stack.composite() / 255 - reference(entries, 30, 24)).max() <= 0.502 / 255


def test_png_files_and_json_round_trip(tmp_path):
    stack = make_stack(paper=(255, 250, 240))
    names = write_layers(OutputWriter(tmp_path), "cat", stack)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    assert (names[0], names[-1]) == ("cat_flat-colour.png", "cat_layers.json")
    again = read_layers(tmp_path / "cat_layers.json")
    assert (again.paper, len(again.layers)) == ((255, 250, 240), 5)
    for one, other in zip(stack.layers, again.layers, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
        assert replace(one, pixels=other.pixels) == other
    assert np.array_equal(again.composite(), stack.composite())
    assert np.array_equal(np.array(Image.open(tmp_path / "cat_composite.png")), stack.composite())


def test_layers_of_one_name_get_files_of_their_own(tmp_path):
    same = PictureLayer("a", picture(0, 4, 4))
    names = write_layers(OutputWriter(tmp_path), "x", LayerStack(4, 4, (same, same)))
    assert len(set(names)) == len(names) == 4


@pytest.mark.parametrize("paper", [None, (255, 255, 255)])
def test_open_raster_read_by_its_xml(tmp_path, paper):
    stack = make_stack(paper=paper)
    assert export_layers(OutputWriter(tmp_path), "cat", stack, "ora") == "cat.ora"
    raw = (tmp_path / "cat.ora").read_bytes()
    assert raw[30:54] == b"mimetypeimage/openraster"  # first, stored, where programs look
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        root = ElementTree.fromstring(archive.read("stack.xml"))
        assert (root.get("w"), root.get("h")) == ("30", "24")
        modes = {op: mode for mode, op in COMPOSITE_OPS.items()}
        entries, sizes = [], []
        for layer in reversed(root.find("stack").findall("layer")):  # the file has the topmost first
            pixels = np.array(Image.open(io.BytesIO(archive.read(layer.get("src")))).convert("RGBA"))
            sizes.append(pixels.shape[:2])
            if layer.get("visibility") == "visible":
                place = int(layer.get("x")), int(layer.get("y"))
                mode = modes[layer.get("composite-op")]
                entries.append((pixels, *place, float(layer.get("opacity")), mode))
        merged = np.array(Image.open(io.BytesIO(archive.read("mergedimage.png"))).convert("RGBA"))
        thumbnail = Image.open(io.BytesIO(archive.read("Thumbnails/thumbnail.png")))
    assert max(thumbnail.size) <= 256
    assert (16, 30) in sizes  # the line layer without its empty rows
    expected = stack.with_paper().composite()
    assert np.array_equal(merged, expected)
    assert np.abs(reference(entries, 30, 24) - expected / 255).max() <= 1 / 255


@pytest.mark.parametrize("paper", [None, (255, 255, 255)])
def test_psd_read_by_psd_tools(tmp_path, paper):
    psd_tools = pytest.importorskip("psd_tools")
    stack = make_stack(paper=paper)
    export_layers(OutputWriter(tmp_path), "cat", stack, "psd")
    document = psd_tools.PSDImage.open(tmp_path / "cat.psd")
    assert document.size == (30, 24)
    layers = list(document)  # bottom first
    assert [x.name for x in layers] == [x.name for x in stack.with_paper().layers]
    assert [x.visible for x in layers] == [x.visible for x in stack.with_paper().layers]
    names = {getattr(psd_tools.constants.BlendMode, name): mode for mode, name in MODES.items()}
    entries = [
        (np.array(x.topil().convert("RGBA")), x.left, x.top, x.opacity / 255, names[x.blend_mode])
        for x in layers
        if x.visible
    ]
    assert np.abs(reference(entries, 30, 24) - stack.with_paper().composite() / 255).max() <= 1 / 255
    # What programs without layers show
    assert np.array_equal(np.array(document.topil().convert("RGBA")), stack.with_paper().composite())


def test_psd_composite_of_psd_tools_agrees(tmp_path):
    psd_tools = pytest.importorskip("psd_tools")
    pytest.importorskip("aggdraw", reason="psd-tools composites with its extra")
    stack = make_stack(paper=(255, 255, 255))
    export_layers(OutputWriter(tmp_path), "cat", stack, "psd")
    shown = np.array(psd_tools.PSDImage.open(tmp_path / "cat.psd").composite(force=True).convert("RGB"))
    assert np.abs(shown.astype(int) - stack.composite()).max() <= 1


def test_zip_holds_what_the_folder_holds(tmp_path):
    stack = make_stack()
    export_layers(OutputWriter(tmp_path / "zip"), "cat", stack, "zip")
    write_layers(OutputWriter(tmp_path / "folder"), "cat", stack)
    with zipfile.ZipFile(tmp_path / "zip" / "cat.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    names = sorted(p.name for p in (tmp_path / "folder").iterdir())
    assert sorted(p.name for p in (tmp_path / "unpacked").iterdir()) == names
    again = read_layers(tmp_path / "unpacked" / "cat_layers.json")
    assert np.array_equal(again.composite(), stack.composite())


@pytest.mark.parametrize("kind", ["zip", "ora", "psd"])
def test_a_failure_leaves_no_file(tmp_path, kind, monkeypatch):
    if kind == "psd":
        pytest.importorskip("psd_tools")
    monkeypatch.setattr(LayerStack, "composite", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_layers(OutputWriter(tmp_path), "cat", make_stack(), kind)
    assert not list(tmp_path.iterdir())


def test_every_blend_mode_has_a_name_in_both_formats():
    from polydit.core.alpha import BLEND_MODES

    assert set(COMPOSITE_OPS) == set(MODES) == set(BLEND_MODES)
    constants = pytest.importorskip("psd_tools.constants")
    assert all(hasattr(constants.BlendMode, name) for name in MODES.values())


def test_an_empty_layer_survives(tmp_path):
    empty = PictureLayer("nothing", np.zeros((6, 6, 4), np.uint8))
    stack = LayerStack(6, 6, (PictureLayer("all", picture(0, 6, 6, opaque=True)), empty))
    for kind in ("ora", "zip"):
        export_layers(OutputWriter(tmp_path), "x", stack, kind)
    assert empty.cropped().pixels.shape == (1, 1, 4)
    assert np.array_equal(stack.composite(), stack.layers[0].pixels)


def test_errors_are_one_line(tmp_path):
    with pytest.raises(PolyditError, match="choose none, zip, ora or psd"):
        export_layers(OutputWriter(tmp_path), "x", make_stack(), "gif")
    with pytest.raises(PolyditError, match="not found"):
        read_layers(tmp_path / "x_layers.json")
    (tmp_path / "y_layers.json").write_text('{"format": "other"}')
    with pytest.raises(PolyditError, match="no list of layers"):
        read_layers(tmp_path / "y_layers.json")
    (tmp_path / "z_layers.json").write_text(json.dumps({"format": "polydit-layers", "layers": [{}]}))
    with pytest.raises(PolyditError, match="cannot be read"):
        read_layers(tmp_path / "z_layers.json")
    with pytest.raises(ValueError, match="blend mode"):
        PictureLayer("x", picture(0, 2, 2), blend_mode="burn")
    with pytest.raises(PolyditError, match="choose ora"):
        export_layers(OutputWriter(tmp_path), "x", LayerStack(40_000, 2), "psd")
