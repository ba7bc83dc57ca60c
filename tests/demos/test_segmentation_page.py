"""The page that cuts out: without a page, through its programming interface, and in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.cli import main
from polydit.core.diffusion import Objective
from polydit.core.errors import PolyditError
from polydit.demos.segmentation import BACKGROUNDS, clicked, compose, cut, parse_colour
from polydit.demos.session import PredictSession
from polydit.tasks.segmentation import TASK
from polydit.tasks.segmentation.backbone import DichotomousDiT
from polydit.tasks.segmentation.formulation import Formulation
from polydit.tasks.segmentation.pipeline import SegmentationPipeline

from .serving import needs_browser, served

pytest.importorskip("gradio", reason="the extra demo is not installed")


@pytest.fixture(scope="module")
def cutter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that call a pixel object where it is redder than blue: made by hand, not trained."""
    model = DichotomousDiT(
        input_size=16, patch_size=4, in_channels=5, out_channels=2, latent_channels=3, embed=False, interact=False,
        scales=0, hidden_size=96, depth=1, num_heads=2, norm="none", position="none",
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        embed, last = model.patch_embed.proj.weight, model.final_layer.linear.weight
        for place in range(16):  # one token feature for each pixel of a patch
            y, x = divmod(place, 4)
            embed[place, 0, y, x], embed[place, 2, y, x] = 1.0, -1.0
            last[2 * place, place] = last[2 * place + 1, place] = 4.0
    form = Formulation("channels", scales=0, noise="none", bounded=True, side=16, tile=16)
    objective = Objective(prediction="x0")
    folder = tmp_path_factory.mktemp("cutter") / "tiny"
    SegmentationPipeline(
        model.eval(), formulation=form.config(), parameterization=objective.config()
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two red squares on blue."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[..., 2] = 200
    for left in (6, 40):
        pixels[14:34, left : left + 18] = (230, 20, 10)
    file = tmp_path_factory.mktemp("pictures") / "squares.png"
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture(scope="module")
def expected(cutter: Path, square: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes."""
    folder = tmp_path_factory.mktemp("command")
    words = ["segmentation", "predict", "--input", square, "--output", folder, "--weights", cutter]
    assert main(list(map(str, words))) == 0
    return folder


@pytest.fixture(scope="module")
def url(cutter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    words = ["polydit.core.cli", "segmentation", "demo", "--weights", cutter]
    with served(tmp_path_factory.mktemp("uploads"), *words) as address:
        yield address


def test_the_weights_do_what_they_are_made_for(expected: Path):
    mask = np.asarray(Image.open(expected / "squares_mask.png"))
    assert mask[24, 15] == mask[24, 49] == 255
    assert mask[24, 32] == mask[2, 2] == 0


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_background_shows_the_object_and_not_the_old_one(cutter: Path, square: Path, background: str):
    session = PredictSession(TASK, cutter)
    shown = cut(session, square, {}, background, "#00ff00", square)
    after = np.asarray(Image.open(shown.after).convert("RGB")).astype(int)
    assert after.shape == (48, 64, 3)
    if background in ("mask", "edges"):
        assert (after[..., 0] == after[..., 2]).all()
        assert after[24, 15, 0] > 200 > 60 > after[2, 2, 0]
        return
    assert np.abs(after[24, 15] - (230, 20, 10)).max() < 12
    if background == "colour":
        assert np.abs(after[2, 2] - (0, 255, 0)).max() < 60
    if background == "blur":
        assert after[24, 32, 2] > after[24, 32, 0] + 60, "nothing red glows into the background"
    assert "polydit segmentation predict" in shown.note


def test_clicks_are_a_piece_or_a_box(cutter: Path, square: Path):
    assert clicked([]) == {}
    assert clicked([(49, 24)]) == {"point": "49,24"}
    assert clicked([(60, 40), (36, 10)]) == {"box": "36,10,60,40"}
    session = PredictSession(TASK, cutter)
    for settings in (clicked([(49, 24)]), clicked([(60, 40), (36, 10)])):
        alpha = np.asarray(Image.open(cut(session, square, settings).mask))
        assert alpha[24, 49] > 200
        assert alpha[24, 15] < 30


@pytest.mark.parametrize(
    ("text", "colour"),
    [("#ff8000", (255, 128, 0)), ("rgba(1.2, 2, 300, 0.5)", (1, 2, 255)), ("red", (255, 0, 0))],
)
def test_colours_as_browsers_write_them(text: str, colour: tuple[int, int, int]):
    assert parse_colour(text) == colour
    with pytest.raises(PolyditError, match="give one such as #ffcc00"):
        parse_colour("reddish" + text)


def test_what_is_missing_is_told(cutter: Path, square: Path, tmp_path: Path):
    session = PredictSession(TASK, cutter)
    with pytest.raises(PolyditError, match="upload one or click on an example"):
        cut(session, None, {})
    with pytest.raises(PolyditError, match="background: there is no picture yet"):
        cut(session, square, {}, "picture")
    large = tmp_path / "large.png"
    Image.new("L", (6000, 5000)).save(large)
    with pytest.raises(PolyditError, match="6000 x 5000 pixels are too many for a page"):
        cut(session, large, {})


def test_a_picture_behind_is_cut_to_the_size(square: Path, tmp_path: Path):
    behind = tmp_path / "behind.png"
    Image.new("RGB", (300, 20), (9, 90, 9)).save(behind)
    cutout = np.zeros((48, 64, 4), np.uint8)
    assert (compose(cutout, cutout[..., :3], "picture", behind=behind) == (9, 90, 9)).all()


def test_a_client_gets_the_bytes_of_the_command(url: str, square: Path, expected: Path, tmp_path: Path):
    from gradio_client import Client, handle_file

    client = Client(url, verbose=False, download_files=str(tmp_path))
    assert "/cut_out" in client.view_api(return_format="dict")["named_endpoints"]
    (before, after), cutout, mask, note = client.predict(
        image=handle_file(square), background="transparent", api_name="/cut_out"
    )
    assert Path(cutout).read_bytes() == (expected / "squares_cutout.png").read_bytes()
    assert Path(mask).read_bytes() == (expected / "squares_alpha.png").read_bytes()
    assert Image.open(before).size == Image.open(after).size == (64, 48)
    assert "64 × 48" in note
    client.close()


@pytest.mark.browser
@needs_browser
def test_upload_click_cut_download(page: Any, url: str, square: Path, expected: Path, tmp_path: Path):
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    page.goto(url)
    expect(page.get_by_role("heading", name="Cut out")).to_be_visible()
    expect(page.locator("#download")).to_be_disabled()
    page.locator("#picture input[type=file]").first.set_input_files(square)
    expect(page.locator("#size")).to_contain_text("64 × 48 pixels")
    page.get_by_role("button", name="Cut out", exact=True).click()
    expect(page.locator("#note")).to_contain_text("64 × 48")
    pictures = page.locator("#comparison img")
    expect(pictures).to_have_count(2)
    for number in range(2):
        expect(pictures.nth(number)).to_have_js_property("naturalWidth", 64)
    expect(page.locator("#download")).to_be_enabled()
    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "cutout.png")
    assert (tmp_path / "cutout.png").read_bytes() == (expected / "squares_cutout.png").read_bytes()

    page.locator("#background").get_by_label("colour", exact=True).check()
    page.locator("#picture img").first.click()  # the small picture stands in the middle
    expect(page.locator("#chosen")).to_contain_text("point")
    page.get_by_role("button", name="Cut out", exact=True).click()
    expect(page.locator("#note")).to_contain_text("--point")


@pytest.mark.browser
@needs_browser
def test_bad_uploads_are_said_on_the_page(page: Any, url: str, tmp_path: Path):
    from playwright.sync_api import expect

    bad = tmp_path / "bad.png"
    bad.write_bytes(b"this is text")
    page.goto(url)
    page.locator("#picture input[type=file]").first.set_input_files(bad)
    expect(page.locator("#size")).to_contain_text("bad.png: not a picture")
    page.get_by_role("button", name="Cut out", exact=True).click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("bad.png: not a picture")
    expect(page.locator("#download")).to_be_disabled()
