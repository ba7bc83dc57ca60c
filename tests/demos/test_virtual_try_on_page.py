"""Virtual try-on's page: through its programming interface, and in a browser with a brush."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from polydit.core.cli import main
from polydit.core.conditioning import TokenGroupDiT
from polydit.core.diffusion import Parameterization
from polydit.tasks.virtual_try_on.formulation import TokenGroupFormulation
from polydit.tasks.virtual_try_on.pipeline import VirtualTryOnPipeline

from .serving import needs_browser, served

pytest.importorskip("gradio", reason="the extra demo is not installed")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that leave traces of person, garment and noise."""
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
    folder = tmp_path_factory.mktemp("weights") / "try_on"
    VirtualTryOnPipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(),
        formulation=TokenGroupFormulation(height=24, width=16).config(),
        parameterization=Parameterization(prediction="x0").config(),
        steps=3,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A person, a layer painted on them, the same as a mask, and a garment."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    mask = np.zeros((90, 60), np.uint8)
    mask[30:70, 15:45] = 255
    layer = np.zeros((90, 60, 4), np.uint8)
    layer[mask > 0] = (213, 94, 0, 255)
    pictures = {
        "person": rng.integers(0, 256, (90, 60, 3), np.uint8),
        "mask": mask,
        "layer": layer,
        "shirt": rng.integers(0, 256, (30, 30, 3), np.uint8),
    }
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in pictures}


@pytest.fixture(scope="module")
def url(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    words = ["polydit.core.cli", "virtual-try-on", "demo", "--weights", tiny]
    with served(tmp_path_factory.mktemp("uploads"), *words) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from gradio_client import Client

    opened = Client(url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))
    yield opened
    opened.close()


def editor(person: Path, *layers: Path) -> dict[str, Any]:
    from gradio_client import handle_file

    return {
        "background": handle_file(person),
        "layers": [handle_file(layer) for layer in layers],
        "composite": None,
    }


def test_the_names_of_the_interface_are_pinned(client: Any):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ["/dress"]
    names = [parameter["parameter_name"] for parameter in endpoints["/dress"]["parameters"]]
    assert names == ["person", "mask", "garment", "steps", "seed", "hull", "cache"]
    default = {p["parameter_name"]: p.get("parameter_default") for p in endpoints["/dress"]["parameters"]}
    assert default["steps"] == 3  # of the weights


@pytest.mark.parametrize(
    ("hull", "painted", "cache"),
    [(False, False, "none"), (False, True, "fora"), (True, False, "delta-dit"), (True, True, "none")],
)
def test_a_client_gets_the_pixels_of_the_command(
    client: Any, files: dict[str, Path], tiny: Path, tmp_path: Path, hull: bool, painted: bool, cache: str
):
    from gradio_client import handle_file

    slider, download, note = client.predict(
        person=editor(files["person"], *([files["layer"]] if painted else [])),
        mask=None if painted else handle_file(files["mask"]),
        garment=handle_file(files["shirt"]),
        steps=4,
        seed=5,
        hull=hull,
        cache=cache,
        api_name="/dress",
    )
    words = ["--person", files["person"], "--garment", files["shirt"], "--mask", files["mask"]]
    words += [
        "--steps",
        4,
        "--seed",
        5,
        "--output",
        tmp_path,
        "--weights",
        tiny,
        *(["--hull"] if hull else []),
        "--cache",
        cache,
    ]
    assert main(["virtual-try-on", "predict", *map(str, words)]) == 0
    expected = (tmp_path / "person_shirt.png").read_bytes()
    assert Path(download).read_bytes() == expected
    before, after = map(Path, slider)
    assert after.read_bytes() == expected
    np.testing.assert_array_equal(Image.open(before), Image.open(files["person"]))
    assert "**60 × 90**" in note
    assert "--garment shirt.png" in note
    assert ("--hull" in note) == hull
    assert (f"--cache {cache}" in note) == (cache != "none")


def test_what_is_missing_is_one_line(client: Any, files: dict[str, Path], tmp_path: Path):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    shirt = handle_file(files["shirt"])
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"this is text")
    for person, garment, line in (
        (None, shirt, "upload a photograph or click on a person"),
        (editor(files["person"], files["layer"]), None, "upload a picture or click on a garment"),
        (editor(files["person"]), shirt, "nothing is painted yet"),
        (editor(files["person"], files["layer"]), handle_file(bad), "bad.png: not a picture"),
    ):
        with pytest.raises(AppError, match=line):
            client.predict(person=person, mask=None, garment=garment, steps=1, api_name="/dress")


@pytest.mark.browser
@needs_browser
def test_choose_dress_compare_download(page: Any, url: str, tmp_path: Path):
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    page.goto(url)
    expect(page.get_by_role("heading", name="Virtual try-on")).to_be_visible()
    expect(page.locator("#people button img")).to_have_count(4)
    expect(page.locator("#garments button img")).to_have_count(6)
    expect(page.locator("#download")).to_be_disabled()
    page.locator("#dress").dispatch_event("click")
    expect(page.get_by_test_id("toast-body")).to_contain_text("click on a person")
    page.get_by_test_id("toast-close").click()

    page.locator("#people button img").nth(1).click()
    expect(page.locator("#mask img")).to_have_count(1)
    page.locator("#garments button img").nth(0).click()
    expect(page.locator("#garment img")).to_have_count(1)
    page.get_by_label("number input for Steps").fill("1")
    page.get_by_label("number input for Steps").press("Tab")
    page.locator("#dress").dispatch_event("click")
    expect(page.locator("#note")).to_contain_text("216 × 288")
    expect(page.locator("#note")).to_contain_text("--garment garment_1.png")
    pictures = page.locator("#comparison img")
    expect(pictures).to_have_count(2)
    for number in range(2):
        expect(pictures.nth(number)).to_have_js_property("naturalWidth", 216)
    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "dressed.png")
    dressed = np.asarray(Image.open(tmp_path / "dressed.png"))
    samples = Path(__file__).resolve().parents[2] / "demos/samples/virtual_try_on"
    person = np.asarray(Image.open(samples / "people/person_2.png"))
    mask = np.asarray(Image.open(samples / "masks/person_2.png")) > 127
    np.testing.assert_array_equal(dressed[~mask], person[~mask])
    assert (dressed != person).any(-1)[mask].mean() > 0.9


@pytest.mark.browser
@needs_browser
def test_what_is_painted_is_dressed(page: Any, url: str, files: dict[str, Path], tmp_path: Path):
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    page.goto(url)
    canvas = page.locator("#person canvas").first
    expect(canvas).to_be_visible()
    expect(page.locator("#person").get_by_label("Brush", exact=True)).to_be_visible()  # it is set up
    page.locator("#person input[type=file]").first.set_input_files(files["person"])
    page.locator("#garment input[type=file]").first.set_input_files(files["shirt"])
    expect(page.locator("#garment img")).to_have_count(1)
    page.locator("#dress").dispatch_event("click")
    expect(page.get_by_test_id("toast-body")).to_contain_text("nothing is painted yet")
    page.get_by_test_id("toast-close").click()

    # With a picture in it the editor has the brush at hand.
    box = canvas.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 12, middle[1] + 12, steps=4)
    page.mouse.up()
    page.locator("#dress").dispatch_event("click")
    expect(page.locator("#note")).to_contain_text("60 × 90")
    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "dressed.png")
    changed = (
        np.asarray(Image.open(tmp_path / "dressed.png")) != np.asarray(Image.open(files["person"]))
    ).any(-1)
    rows, columns = np.nonzero(changed)
    assert 10 < changed.sum() < 0.6 * changed.size
    assert abs(rows.mean() - 45) < 15
    assert abs(columns.mean() - 30) < 12
