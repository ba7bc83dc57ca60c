"""The page as it is served: through its programming interface, and in a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from PIL import Image, ImageChops

from polydit.core.cli import main

from .serving import needs_browser, served

pytest.importorskip("gradio", reason="the extra demo is not installed")


@pytest.fixture(scope="module")
def url(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where ``polydit super-resolution demo`` serves its page."""
    words = ["polydit.core.cli", "super-resolution", "demo", "--weights", weights]
    with served(tmp_path_factory.mktemp("uploads"), *words) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from gradio_client import Client

    opened = Client(url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))
    yield opened
    opened.close()


def enlarged_by_the_command(folder: Path, picture: Path, weights: Path, *words: object) -> Path:
    settings = ["--scale", 2, "--steps", 2, "--seed", 5, "--weights", weights, *words]
    command = ["super-resolution", "predict", "--input", picture, "--output", folder, *settings]
    assert main(list(map(str, command))) == 0
    return folder / "leaf.png"


@pytest.fixture(scope="module")
def expected(weights: Path, picture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes at factor 2 with seed 5 and 2 steps."""
    return enlarged_by_the_command(tmp_path_factory.mktemp("command"), picture, weights)


@pytest.fixture(scope="module")
def adapted(weights: Path, picture: Path, lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a LoRA."""
    return enlarged_by_the_command(tmp_path_factory.mktemp("lora"), picture, weights, "--lora", lora)


def test_the_names_of_the_interface_are_pinned(client: Any):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ["/upscale"]
    assert [parameter["parameter_name"] for parameter in endpoints["/upscale"]["parameters"]] == [
        "image",
        "scale",
        "steps",
        "seed",
        "color_fix",
        "lora",
        "lora_scale",
        "cache",
    ]
    assert len(endpoints["/upscale"]["returns"]) == 3


def test_a_client_gets_the_bytes_of_the_command(client: Any, picture: Path, expected: Path):
    from gradio_client import handle_file

    slider, download, note = client.predict(
        image=handle_file(picture), scale=2, steps=2, seed=5, color_fix="none", api_name="/upscale"
    )
    assert Path(download).read_bytes() == expected.read_bytes()
    before, after = map(Path, slider)
    assert after.read_bytes() == expected.read_bytes()
    assert Image.open(before).size == Image.open(after).size
    assert ImageChops.difference(Image.open(before), Image.open(after)).getbbox() is not None
    assert "26 × 34 → 52 × 68" in note


def test_a_client_chooses_a_cache(client: Any, picture: Path, expected: Path, weights: Path, tmp_path: Path):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    settings = {"image": handle_file(picture), "scale": 2, "seed": 5, "cache": "fora"}
    _, download, note = client.predict(**settings, steps=2, api_name="/upscale")
    same = enlarged_by_the_command(tmp_path, picture, weights, "--cache", "fora")
    assert Path(download).read_bytes() == same.read_bytes() != expected.read_bytes()
    assert "--steps 2 --seed 5 --cache fora" in note
    with pytest.raises(AppError, match=r"--cache fora: .* asked in one step only"):
        client.predict(**settings, steps=1, api_name="/upscale")


def test_a_client_adds_a_lora(
    client: Any, picture: Path, expected: Path, adapted: Path, lora: Path, weights: Path, tmp_path: Path
):
    from gradio_client import handle_file

    settings = {"image": handle_file(picture), "lora": handle_file(lora), "scale": 2, "steps": 2, "seed": 5}
    _, download, _ = client.predict(**settings, api_name="/upscale")
    assert Path(download).read_bytes() == adapted.read_bytes() != expected.read_bytes()
    settings |= {"color_fix": "wavelet", "lora_scale": 0.5}
    _, download, note = client.predict(**settings, api_name="/upscale")
    words = ["--color-fix", "wavelet", "--lora", lora, "--lora-scale", 0.5]
    same = enlarged_by_the_command(tmp_path, picture, weights, *words)
    assert Path(download).read_bytes() == same.read_bytes() != adapted.read_bytes()
    assert "--lora l.safetensors --lora-scale 0.5" in note


def test_a_bad_upload_is_one_line(client: Any, tmp_path: Path):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    bad = tmp_path / "bad.png"
    bad.write_bytes(b"this is text")
    with pytest.raises(AppError) as caught:
        client.predict(image=handle_file(bad), scale=2, api_name="/upscale")
    assert str(caught.value).startswith("bad.png: not a picture")
    with pytest.raises(AppError, match="upload one or click on an example"):
        client.predict(image=None, scale=2, api_name="/upscale")


def test_files_that_were_not_uploaded_are_refused(url: str, weights: Path):
    secret = {"path": str(weights / "model_index.json"), "meta": {"_type": "gradio.FileData"}}
    # By hand: gradio's client would upload the file.
    call = f"{url}/gradio_api/call/upscale"
    body = json.dumps({"data": [secret, 2, 1, 0, "none", None, 1.0, "none"]}).encode()
    with urlopen(Request(call, body, {"Content-Type": "application/json"}), timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urlopen(f"{call}/{event}", timeout=60) as answer:
        assert "event: error" in answer.read().decode()


@pytest.mark.browser
@needs_browser
def test_upload_enlarge_compare_download(
    page: Any, url: str, picture: Path, lora: Path, expected: Path, adapted: Path, tmp_path: Path
):
    from playwright.sync_api import expect

    def download_as(name: str) -> bytes:
        with page.expect_download() as download:
            page.locator("#download").click()
        assert download.value.suggested_filename == "leaf.png"
        download.value.save_as(tmp_path / name)
        return (tmp_path / name).read_bytes()

    expect.set_options(timeout=60_000)
    page.goto(url)
    expect(page.get_by_role("heading", name="Super-resolution")).to_be_visible()
    expect(page.locator("#examples img")).to_have_count(3)
    expect(page.locator("#download")).to_be_disabled()
    page.locator("#picture input[type=file]").first.set_input_files(picture)
    expect(page.locator("#size")).to_contain_text("26 × 34 pixels become 104 × 136")
    page.locator("#scale").get_by_label("×2", exact=True).check()
    expect(page.locator("#size")).to_contain_text("52 × 68")
    page.get_by_label("number input for Steps").fill("2")
    page.get_by_label("number input for Steps").press("Tab")
    page.locator("#seed input").fill("5")
    page.locator("#seed input").press("Tab")
    page.get_by_role("button", name="Enlarge").click()
    expect(page.locator("#note")).to_contain_text("--scale 2 --steps 2 --seed 5")
    pictures = page.locator("#comparison img")
    expect(pictures).to_have_count(2)
    for number in range(2):
        expect(pictures.nth(number)).to_have_js_property("naturalWidth", 52)
    expect(page.locator("#download")).to_be_enabled()
    assert download_as("plain.png") == expected.read_bytes()

    page.get_by_role("tab", name="LoRA").click()
    page.locator("#lora input[type=file]").first.set_input_files(lora)
    expect(page.locator("#lora")).to_contain_text(lora.stem)
    page.get_by_role("button", name="Enlarge").click()
    expect(page.locator("#note")).to_contain_text("24 of 24 keys matched")
    assert download_as("adapted.png") == adapted.read_bytes()


@pytest.mark.browser
@needs_browser
def test_bad_uploads_are_said_on_the_page(page: Any, url: str, tmp_path: Path):
    from playwright.sync_api import expect

    bad, large = tmp_path / "bad.png", tmp_path / "large.png"
    bad.write_bytes(b"this is text")
    Image.new("L", (2000, 2000)).save(large)
    upload = page.locator("#picture input[type=file]").first
    page.goto(url)
    for file, line in (
        (bad, "bad.png: not a picture"),
        (large, "large.png: 8000 x 8000 pixels at x4 are too many"),
    ):
        upload.set_input_files(file)
        expect(page.locator("#size")).to_contain_text(line)
        page.get_by_role("button", name="Enlarge").click()
        toast = page.get_by_test_id("toast-body")
        expect(toast).to_contain_text(line)
        page.get_by_test_id("toast-close").click()
        expect(toast).to_have_count(0)
        page.get_by_role("button", name="Clear").click()
    expect(page.locator("#download")).to_be_disabled()


@pytest.mark.browser
@needs_browser
def test_the_gallery_opens_the_demo_of_a_task(page: Any, tmp_path: Path):
    from playwright.sync_api import expect

    with served(tmp_path, "polydit.demos.gallery") as address:
        page.goto(address)
        expect(page.get_by_role("heading", name="PolyDiT")).to_be_visible()
        page.get_by_role("tab", name="Super-resolution").click()
        page.get_by_role("button", name="Enlarge").click()
        expect(page.get_by_test_id("toast-body")).to_contain_text("upload one or click on an example")
        page.goto("about:blank")  # a page that is open when its server ends reports a broken stream
