"""Layer decomposition's page: through its programming interface, and in a browser: hide, fade, blend, drag, export."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from polydit.core.cli import main
from polydit.core.conditioning.layer_group_dit import LayerGroupDiT
from polydit.core.diffusion import Parameterization
from polydit.tasks.layer_decomposition.formulation import Formulation
from polydit.tasks.layer_decomposition.pipeline import LayerDecompositionPipeline

from .serving import needs_browser, served

pytest.importorskip("gradio", reason="the extra demo is not installed")

SIDE = 64
BOX = (slice(20, 40), slice(10, 30))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that answer the cheap guess: the foreground is what is painted."""
    torch.manual_seed(0)
    model = LayerGroupDiT(
        conditions={"image": 4, "mask": 7}, input_size=16, patch_size=8, in_channels=4, hidden_size=16, depth=1,
        num_heads=1, position="rope",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("weights") / "layers"
    LayerDecompositionPipeline(
        model,
        FlowMatchEulerDiscreteScheduler(),
        formulation=Formulation(residual_scale=0.2, size=64).config(),
        parameterization=Parameterization(prediction="x0").config(),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A red square on green, and the square painted over."""
    folder = tmp_path_factory.mktemp("pictures")
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    picture[:] = (20, 160, 60)
    picture[BOX] = (220, 30, 40)
    layer = np.zeros((SIDE, SIDE, 4), np.uint8)
    layer[BOX] = (213, 94, 0, 255)
    named = {"scene": picture, "layer": layer, "mask": layer[..., 3], "nothing": layer * 0}
    for name, pixels in named.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in named}


@pytest.fixture(scope="module")
def url(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    words = ["polydit.core.cli", "layer-decomposition", "demo", "--weights", tiny]
    with served(tmp_path_factory.mktemp("uploads"), *words) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from gradio_client import Client

    opened = Client(url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))
    yield opened
    opened.close()


def editor(picture: Path, *layers: Path) -> dict[str, Any]:
    from gradio_client import handle_file

    painted = [handle_file(layer) for layer in layers]
    return {"background": handle_file(picture), "layers": painted, "composite": None}


@pytest.mark.parametrize(("steps", "cache"), [(1, "none"), (3, "fora")])
def test_a_client_gets_the_layers_of_the_command(
    client: Any, files: dict[str, Path], tiny: Path, tmp_path: Path, steps: int, cache: str
):
    stage, note = client.predict(
        picture=editor(files["scene"], files["layer"]),
        steps=steps,
        seed=3,
        cache=cache,
        api_name="/decompose",
    )
    words = ["--input", files["scene"], "--mask", files["mask"], "--seed", 3, "--steps", steps]
    words += ["--weights", tiny, "--cache", cache]
    assert (
        main(["layer-decomposition", "predict", *map(str, [*words, "--output", tmp_path, "--export", "zip"])])
        == 0
    )
    assert "foreground" in stage
    assert "**64 × 64**, 2 layers" in note
    assert "--mask scene_mask.png" in note
    assert ("--cache fora" in note) == (cache == "fora")
    exported = client.predict(edits="", kind="zip", api_name="/export")
    with zipfile.ZipFile(exported) as mine, zipfile.ZipFile(tmp_path / "scene.zip") as theirs:
        assert mine.namelist() == theirs.namelist()
        assert all(mine.read(name) == theirs.read(name) for name in mine.namelist())


def test_bad_uploads_are_one_line(client: Any, files: dict[str, Path], tmp_path: Path):
    from gradio_client.exceptions import AppError

    bad = tmp_path / "bad.png"
    bad.write_bytes(b"this is text")
    with pytest.raises(AppError, match=r"bad\.png: not a picture"):
        client.predict(picture=editor(bad, files["layer"]), api_name="/decompose")
    with pytest.raises(AppError, match="nothing is painted yet"):
        client.predict(picture=editor(files["scene"], files["nothing"]), api_name="/decompose")


def pixel(page: Any, x: int, y: int) -> list[int]:
    """Colour of the composite on the page."""
    script = "([x, y]) => [...document.querySelector('#stage canvas').getContext('2d').getImageData(x, y, 1, 1).data]"
    return page.evaluate(script, [x, y])


@pytest.mark.browser
@needs_browser
def test_hide_fade_blend_drag_export(page: Any, url: str, files: dict[str, Path], tmp_path: Path):
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    page.goto(url)
    expect(page.get_by_role("heading", name="Layer decomposition")).to_be_visible()
    expect(page.locator("#examples img")).to_have_count(3)
    # An editor that is not set up yet loses what comes, and one that holds a picture offers the size of its brush.
    expect(page.locator("#picture").get_by_label("Brush", exact=True)).to_be_visible()
    page.locator("#examples button").first.click()
    expect(page.locator("#picture").get_by_label("Brush Size")).to_be_visible()
    page.get_by_role("button", name="Decompose").click()
    expect(page.locator("#note")).to_contain_text("2 layers in")
    rows = page.locator("#stage .layers li")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("foreground")  # topmost first
    canvas = page.locator("#stage canvas")
    width = int(canvas.get_attribute("width") or 0)
    assert width > 200
    height = int(canvas.get_attribute("height") or 0)
    middle = (int(0.3 * width), int(0.6 * height))  # of the ball in the first sample
    with_ball = pixel(page, *middle)

    front = page.locator("#stage li[data-layer=foreground]")
    front.get_by_title("visible").uncheck()
    without = pixel(page, *middle)
    assert without != with_ball
    front.get_by_title("visible").check()
    assert pixel(page, *middle) == with_ball
    front.get_by_title("opacity").fill("0.5")
    half = [(a + b) / 2 for a, b in zip(with_ball, without, strict=True)]
    assert np.abs(np.subtract(pixel(page, *middle), half)).max() <= 2
    front.get_by_title("opacity").fill("1")
    front.get_by_title("blend mode").select_option("multiply")
    product = [a * b / 255 for a, b in zip(with_ball, without, strict=True)]
    assert np.abs(np.subtract(pixel(page, *middle), product)).max() <= 2
    front.get_by_title("blend mode").select_option("normal")

    box = canvas.bounding_box()
    scale = box["width"] / width
    start = (box["x"] + middle[0] * scale, box["y"] + middle[1] * scale)
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(start[0] + 100 * scale, start[1] - 20 * scale, steps=4)
    page.mouse.up()
    assert pixel(page, *middle) != with_ball
    moved = pixel(page, middle[0] + 100, middle[1] - 20)
    assert np.abs(np.subtract(moved, with_ball)).max() <= 25  # to a pixel of the drag

    page.locator("#kind").get_by_label("ZIP of PNGs").check()
    page.get_by_role("button", name="Export as shown").click()
    link = page.locator("#file a[download]").first
    expect(link).to_be_visible()
    with page.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "layers.zip")
    with zipfile.ZipFile(tmp_path / "layers.zip") as file:
        name = next(
            name for name in file.namelist() if name.endswith("_composite.png") or name == "composite.png"
        )
        with file.open(name) as stream:
            composite = np.asarray(Image.open(stream).convert("RGB")).astype(int)
    for x, y in (middle, (middle[0] + 100, middle[1] - 20), (5, 5)):
        assert np.abs(composite[y, x] - pixel(page, x, y)[:3]).max() <= 2


@pytest.mark.browser
@needs_browser
def test_without_paint_the_page_says_so(page: Any, url: str):
    from playwright.sync_api import expect

    page.goto(url)
    page.get_by_role("button", name="Decompose").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("picture: there is none yet")
