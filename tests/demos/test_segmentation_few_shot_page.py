"""The few-shot part of the segmentation page: its programming interface, and in a browser."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tasks" / "segmentation"))
from few_shot_fixtures import marked, tiny_pipeline

from polydit.core.cli import main
from polydit.core.errors import PolyditError
from polydit.demos.segmentation_few_shot import build, painted

from .serving import needs_browser

pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="the extra demo is not installed")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few_shot_weights") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return marked(tmp_path_factory.mktemp("supports"), "disk")


@pytest.fixture(scope="module")
def url(weights: Path) -> Iterator[str]:
    page = build(weights)
    page.launch(
        server_name="127.0.0.1",
        share=False,
        show_error=True,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
    )
    yield page.local_url
    page.close()


@pytest.fixture(scope="module")
def expected(weights: Path, shown: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes."""
    out = tmp_path_factory.mktemp("command")
    words = ["--input", shown[0], "--support", shown[0], "--support-mask", shown[1], "--output", out]
    assert main(["segmentation", "predict", "--weights", str(weights), *map(str, words)]) == 0
    return out


def editor(picture: Path, *boxes: tuple[int, int, int, int]) -> dict[str, Any]:
    background = Image.open(picture).convert("RGBA")
    layer = Image.new("RGBA", background.size)
    for box in boxes:
        layer.paste((255, 0, 0, 120), box)
    return {"background": background, "layers": [layer], "composite": None}


def test_what_is_painted_is_the_mask(shown: tuple[Path, Path]):
    picture, mask = painted(editor(shown[0], (4, 6, 10, 12), (20, 3, 22, 4)))
    assert picture.mode == "RGB"
    array = np.zeros((30, 40), np.uint8)
    array[6:12, 4:10] = array[3:4, 20:22] = 255
    np.testing.assert_array_equal(np.asarray(mask), array)
    with pytest.raises(PolyditError, match="nothing is marked"):
        painted(editor(shown[0]))
    with pytest.raises(PolyditError, match="no picture to paint on"):
        painted(None)


def test_the_interface_gives_the_bytes_of_the_command(
    url: str, shown: tuple[Path, Path], expected: Path, tmp_path: Path
):
    from gradio_client import Client, handle_file

    client = Client(url, verbose=False, download_files=str(tmp_path))
    names = client.view_api(return_format="dict")["named_endpoints"]
    assert list(names) == ["/find"]
    files = [handle_file(str(file)) for file in shown]
    _, hard, soft, note = client.predict(files[0], [files[0]], [files[1]], 0.5, api_name="/find")
    assert Path(hard).read_bytes() == (expected / "disk_mask.png").read_bytes()
    assert Path(soft).read_bytes() == (expected / "disk_alpha.png").read_bytes()
    assert "--support disk.png --support-mask disk_mask.png" in note
    with pytest.raises(Exception, match="supports need masks"):
        client.predict(files[0], [files[0]], [], 0.5, api_name="/find")
    client.close()


@pytest.mark.browser
@needs_browser
def test_a_thing_is_found_in_a_browser(page: Any, url: str, shown: tuple[Path, Path], expected: Path):
    page.set_default_timeout(90_000)
    page.goto(url)
    page.locator("#find").click()
    page.get_by_text("there is none to look at").wait_for()
    page.locator("#query input[type=file]").set_input_files(str(shown[0]))
    page.locator("#supports input[type=file]").set_input_files(str(shown[0]))
    page.locator("#support-masks input[type=file]").set_input_files(str(shown[1]))
    page.locator("#support-masks").get_by_text("disk_mask").first.wait_for()
    page.locator("#query img").first.wait_for()
    page.locator("#find").click()
    page.locator("#few-shot-note").get_by_text("of the picture").wait_for()
    with page.expect_download() as download:
        page.locator("#hard-mask a[download]").first.click()
    assert Path(download.value.path()).read_bytes() == (expected / "disk_mask.png").read_bytes()
