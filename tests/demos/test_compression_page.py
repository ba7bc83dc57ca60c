"""The page of compression as it is served: through its programming interface, and in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.backbones import DiT
from polydit.core.cli import main
from polydit.demos.compression import CompressionSession, compress
from polydit.tasks.compression import TASK
from polydit.tasks.compression.picture_codec import PictureCodec
from polydit.tasks.compression.pipeline import CompressionPipeline

from .serving import needs_browser, served

pytest.importorskip("gradio", reason="the extra demo is not installed")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained codec, whose pictures are recognisable, and an enhancer that changes them."""
    torch.manual_seed(0)
    codec = PictureCodec(width=8, coarse_width=8, latent_width=8, pixel_width=8, pixel_depth=1)
    enhancer = DiT(
        32, 8, 7, hidden_size=16, depth=1, num_heads=2, out_channels=3, position="rope", window_size=4
    )
    torch.nn.init.normal_(enhancer.final_layer.linear.weight, std=0.3)
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    CompressionPipeline(codec.frozen_copy(), enhancer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    y, x = np.mgrid[:180, :200]
    pixels = np.stack([x, y, (x + y) / 2], -1) + 40 * np.sin(x / 5)[..., None]
    path = tmp_path_factory.mktemp("pictures") / "waves.png"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def url(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where ``polydit compression demo`` serves its page."""
    words = ["polydit.core.cli", "compression", "demo", "--weights", tiny]
    with served(tmp_path_factory.mktemp("uploads"), *words) as address:
        yield address


def coded_by_the_command(folder: Path, photo: Path, tiny: Path, *words: object) -> Path:
    command = ["compression", "predict", "--input", photo, "--output", folder, "--weights", tiny, *words]
    assert main(list(map(str, command))) == 0
    return folder / "waves.pdc"


def test_the_button_compares_at_equal_bytes(tiny: Path, photo: Path):
    session = CompressionSession(TASK, tiny)  # its files live as long as it does
    shown = compress(session, photo, {"quality": 4.0}, "WEBP")
    rows = [line for line in shown.note.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == [
        "original file",
        "**PolyDiT**",
        "JPEG",
        "WEBP",
        "AVIF",
    ]
    size = shown.file.stat().st_size
    for row in rows[4:]:
        bytes_ = row.split("|")[3].strip()
        assert "smallest" in bytes_ or int(bytes_.replace(",", "")) <= size
    assert Image.open(shown.peer).size == Image.open(shown.decoded).size == (200, 180)


def test_a_client_gets_the_bytes_of_the_command(url: str, photo: Path, tiny: Path, tmp_path: Path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(url, verbose=False, download_files=str(tmp_path / "downloads"))
    try:
        endpoints = client.view_api(return_format="dict")["named_endpoints"]
        assert list(endpoints) == ["/compress", "/decode"]
        _, file, note = client.predict(
            image=handle_file(photo), quality=4, target="", peer="JPEG", api_name="/compress"
        )
        expected = coded_by_the_command(tmp_path / "out", photo, tiny, "--quality", 4)
        assert Path(file).read_bytes() == expected.read_bytes()
        assert "200 × 180" in note
        assert "--fidelity" not in note
        shown, same, note = client.predict(
            image=handle_file(photo), quality=4, fidelity=0.25, api_name="/compress"
        )
        other = coded_by_the_command(tmp_path / "other", photo, tiny, "--quality", 4, "--fidelity", 0.25)
        assert Path(same).read_bytes() == expected.read_bytes() == other.read_bytes()
        assert "--fidelity 0.25" in note
        decoded = [np.asarray(Image.open(file)) for file in (shown[1], tmp_path / "other/waves.png")]
        assert np.array_equal(*decoded)
        assert not np.array_equal(decoded[0], np.asarray(Image.open(tmp_path / "out/waves.png")))
        picture, said = client.predict(file=handle_file(expected), api_name="/decode")
        assert np.array_equal(
            np.asarray(Image.open(picture)), np.asarray(Image.open(tmp_path / "out/waves.png"))
        )
        assert f"{expected.stat().st_size:,} bytes" in said
        bad = tmp_path / "bad.pdc"
        bad.write_bytes(b"this is text")
        with pytest.raises(AppError, match=r"^bad\.pdc: not a \.pdc file"):
            client.predict(file=handle_file(bad), api_name="/decode")
        with pytest.raises(AppError, match="upload one or click on an example"):
            client.predict(image=None, api_name="/compress")
    finally:
        client.close()


@pytest.mark.browser
@needs_browser
def test_upload_compress_compare_download_open(page: Any, url: str, photo: Path, tiny: Path, tmp_path: Path):
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    page.goto(url)
    expect(page.get_by_role("heading", name="Compression")).to_be_visible()
    expect(page.locator("#examples img")).to_have_count(3)
    page.locator("#picture input[type=file]").first.set_input_files(photo)
    expect(page.locator("#size")).to_contain_text("200 × 180 pixels")
    page.get_by_label("number input for Quality").fill("6")
    page.get_by_label("number input for Quality").press("Tab")
    page.locator("#peer").get_by_label("WEBP", exact=True).check()
    expect(page.get_by_label("number input for Fidelity")).to_have_value("1")
    page.locator("#compress").click()
    expect(page.locator("#note")).to_contain_text("--quality 6")
    expect(page.locator("#note td").filter(has_text="AVIF")).to_have_count(1)
    pictures = page.locator("#comparison img")
    expect(pictures).to_have_count(2)
    for number in range(2):
        expect(pictures.nth(number)).to_have_js_property("naturalWidth", 200)
    expect(page.locator("#download")).to_be_enabled()
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.suggested_filename == "waves.pdc"
    download.value.save_as(tmp_path / "waves.pdc")
    expected = coded_by_the_command(tmp_path / "out", photo, tiny, "--quality", 6)
    assert (tmp_path / "waves.pdc").read_bytes() == expected.read_bytes()

    page.get_by_role("tab", name="Open a file").click()
    page.locator("#file input[type=file]").first.set_input_files(tmp_path / "waves.pdc")
    expect(page.locator("#file")).to_contain_text("waves")
    page.locator("#decode").click()
    expect(page.locator("#said")).to_contain_text(f"{expected.stat().st_size:,} bytes")
    expect(page.locator("#decoded img")).to_have_js_property("naturalWidth", 200)
