"""The page that takes things out of clips: without a page, through its programming interface, and in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.backbones import DiT
from polydit.core.cli import main
from polydit.core.data.video import VideoReader
from polydit.core.diffusion import Objective
from polydit.core.errors import PolyditError
from polydit.core.media import OutputWriter
from polydit.core.media.video import video_output
from polydit.demos.painting import as_layer
from polydit.demos.session import PredictSession
from polydit.demos.video_inpainting import MOVES, PREVIEW, compose, erase, first_frame
from polydit.tasks.video_inpainting import TASK
from polydit.tasks.video_inpainting.formulation import Formulation
from polydit.tasks.video_inpainting.pipeline import VideoInpaintingPipeline

from .serving import needs_browser, served

pytest.importorskip("gradio", reason="the extra demo is not installed")
SIZE = (64, 96)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that leave the fill as it is."""
    torch.manual_seed(0)
    model = DiT(
        input_size=[4, 16, 16], patch_size=[1, 8, 8], in_channels=8, out_channels=3, hidden_size=16, depth=1,
        num_heads=1, norm="none", position="none",
    )  # fmt: skip
    form = Formulation("propagated", 0.2, True, frames=8, known=2, schedule="even", strength=1.0)
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    VideoInpaintingPipeline(
        model.eval(), formulation=form.config(), parameterization=Objective(prediction="x0").config()
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A red square that crosses a gradient, and a layer painted over it in the first frame."""
    folder = tmp_path_factory.mktemp("clips")
    writer = OutputWriter(folder)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    ground = np.stack([40 + columns, 60 + rows, 120 + 0 * rows], -1).astype(np.uint8)
    with video_output(writer, "clip.mp4", SIZE[1], SIZE[0], Fraction(10), quality=2) as video:
        for number in range(20):
            frame = ground.copy()
            frame[20:36, 6 + 3 * number : 22 + 3 * number] = (230, 20, 20)
            video.write(frame, Fraction(number, 10))
    mask = np.zeros(SIZE, np.uint8)
    mask[20:36, 6:22] = 255
    layer = writer.image("layer.png", as_layer(mask))
    return {"clip": folder / "clip.mp4", "layer": layer, "mask": writer.image("mask.png", mask)}


@pytest.fixture(scope="module")
def url(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    words = ["polydit.core.cli", "video-inpainting", "demo", "--weights", tiny]
    with served(tmp_path_factory.mktemp("uploads"), *words) as address:
        yield address


def redness(file: Path) -> float:
    with VideoReader(file) as reader:
        return max(float((frame.pixels[..., 0].astype(int) - frame.pixels[..., 2]).max()) for frame in reader)


def test_what_is_painted_is_followed_and_gone(tiny: Path, files: dict[str, Path], tmp_path: Path):
    session = PredictSession(TASK, tiny)
    before = redness(files["clip"])
    shown = erase(session, files["clip"], [files["layer"]])
    assert before > 150
    assert redness(shown.after) < 100
    assert shown.before == files["clip"]
    assert "--track 6,20,16,16@0" in shown.note
    still = erase(session, files["clip"], [files["layer"]], moves=MOVES[1], preview=True)
    assert redness(still.after) > 150, "it moves on from under the paint"
    with VideoReader(still.after) as reader:
        assert len(list(reader)) == PREVIEW


def test_the_first_frame_and_what_is_missing(tiny: Path, files: dict[str, Path], tmp_path: Path):
    picture, about = first_frame(files["clip"], tmp_path)
    assert Image.open(picture).size == (SIZE[1], SIZE[0])
    assert "96 × 64, 20 frames, 10 per second" in about
    session = PredictSession(TASK, tiny)
    with pytest.raises(PolyditError, match="upload one"):
        erase(session, None, [])
    with pytest.raises(PolyditError, match="nothing is painted yet"):
        erase(session, files["clip"], [])
    with pytest.raises(PolyditError, match="two are needed"):
        compose(session, files["clip"], None)
    with pytest.raises(PolyditError, match="puts no video into another"):
        compose(session, files["clip"], files["clip"])


def test_two_clips_are_put_together_by_the_weights_that_came_with_the_task(
    files: dict[str, Path], tmp_path: Path
):
    writer = OutputWriter(tmp_path)
    with video_output(writer, "ball.mp4", 32, 32, Fraction(10), quality=2) as video:
        for number in range(4):
            frame = np.full((32, 32, 3), 255, np.uint8)
            frame[8:24, 8:24] = (20, 20, 200)
            video.write(frame, Fraction(number, 10))
    session = PredictSession(TASK)
    shown = compose(session, files["clip"], tmp_path / "ball.mp4", "60,40@0", 24)
    assert "--system compositing" in shown.note
    assert "--weights" not in shown.note
    with VideoReader(shown.after) as reader:
        first = next(iter(reader)).pixels.astype(int)
    assert first[40, 60, 2] - first[40, 60, 0] > 80
    assert np.abs(first[4, 40] - [80, 64, 120]).max() < 12


def test_a_client_gets_the_bytes_of_the_command(url: str, tiny: Path, files: dict[str, Path], tmp_path: Path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(url, verbose=False, download_files=str(tmp_path / "client"))
    assert {"/remove", "/put_in"} <= set(client.view_api(return_format="dict")["named_endpoints"])
    *_, download, note = client.predict(
        clip=handle_file(files["clip"]), mask=handle_file(files["mask"]), api_name="/remove"
    )
    words = ["video-inpainting", "predict", "--input", files["clip"], "--mask", files["mask"]]
    assert main(list(map(str, [*words, "--weights", tiny, "--output", tmp_path / "out"]))) == 0
    assert Path(download).read_bytes() == (tmp_path / "out/clip_inpainted.mp4").read_bytes()
    assert "96 × 64" in note
    settings = {"clip": handle_file(files["clip"]), "mask": handle_file(files["mask"]), "cache": "fora"}
    *_, cached, note = client.predict(**settings, steps=4, api_name="/remove")
    words[-1:] = [words[-1], "--steps", 4, "--cache", "fora"]
    assert main(list(map(str, [*words, "--weights", tiny, "--output", tmp_path / "cached"]))) == 0
    assert Path(cached).read_bytes() == (tmp_path / "cached/clip_inpainted.mp4").read_bytes()
    assert "--steps 4 --cache fora" in note
    with pytest.raises(AppError, match="asked in one step only"):
        client.predict(**settings, api_name="/remove")
    client.close()


@pytest.mark.browser
@needs_browser
def test_upload_mask_remove_download(page: Any, url: str, files: dict[str, Path], tmp_path: Path):
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    page.goto(url)
    expect(page.get_by_role("heading", name="Video inpainting")).to_be_visible()
    page.locator("#clip input[type=file]").set_input_files(files["clip"])
    expect(page.locator("#about")).to_contain_text("96 × 64, 20 frames")
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("nothing is painted yet")
    page.locator("#mask input[type=file]").set_input_files(files["mask"])
    expect(page.locator("#mask")).to_contain_text("mask")
    page.locator("#preview input").check()
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(page.locator("#remove-note")).to_contain_text(f"{PREVIEW} frames in")
    expect(page.locator("#remove-after video")).to_have_count(1)
    with page.expect_download() as download:
        page.locator("#remove-download").click()
    download.value.save_as(tmp_path / "after.mp4")
    with VideoReader(tmp_path / "after.mp4") as reader:
        assert len(list(reader)) == PREVIEW
