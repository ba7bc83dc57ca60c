"""The page of 3D shapes: its programming interface, and a GLB in a browser's viewer."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from polydit.core.autoencoders.triplane import TriplaneVAE
from polydit.core.backbones.d3d_dit import D3DDiT
from polydit.core.cli import main
from polydit.core.diffusion import Objective, make_scheduler
from polydit.core.geometry.reading import read_mesh
from polydit.demos.shape_3d import page_categories
from polydit.tasks.shape_3d.conditions import PictureEncoder
from polydit.tasks.shape_3d.triplane_pipeline import TriplanePipeline

from .serving import needs_browser, served

pytestmark = pytest.mark.skipif(
    find_spec("gradio") is None or find_spec("trimesh") is None,
    reason="the extras demo and shape are not installed",
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random weights that fill the box."""
    torch.manual_seed(0)
    vae = TriplaneVAE(
        resolution=4, latent_channels=3, plane_channels=8, frequencies=4, num_heads=2, head_dim=16, num_layers=1,
        block_out_channels=[16, 16], decoder_layers=1, norm_groups=8, head_layers=3, head_width=32,
    )  # fmt: skip
    transformer = D3DDiT(
        resolution=4, in_channels=3, hidden_size=48, num_heads=3, depth=1, semantic_channels=12, pixel_channels=12,
        num_classes=2,
    )  # fmt: skip
    encoder = PictureEncoder(size=32, widths=[8, 16], semantic_channels=12, pixel_channels=12)
    for model in (vae, transformer, encoder):
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        vae.head.net[-1].bias.fill_(50.0)  # solid everywhere: the mesh is the box
    objective = Objective()
    folder = tmp_path_factory.mktemp("shape_weights") / "tiny"
    TriplanePipeline(
        vae,
        transformer,
        encoder,
        scheduler=make_scheduler("euler", objective),
        formulation={"categories": ["chair", "table"], "size": 32, "steps": 2, "guidance_scale": 1.0},
        parameterization=objective.config(),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = np.full((40, 40, 3), 255, np.uint8)
    pixels[10:30, 12:28] = (90, 60, 30)
    file = tmp_path_factory.mktemp("picture") / "stool.png"
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture(scope="module")
def url(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    words = ["polydit.core.cli", "shape-3d", "demo", "--weights", weights]
    with served(tmp_path_factory.mktemp("uploads"), *words) as address:
        yield address


def test_the_page_knows_the_categories_without_loading_weights(weights: Path, tmp_path: Path):
    assert page_categories(weights) == ["chair", "table"]
    assert page_categories(tmp_path / "gone") == []


def test_the_interface_gives_the_bytes_of_the_command(url: str, weights: Path, picture: Path, tmp_path: Path):
    from gradio_client import Client, handle_file

    out = tmp_path / "command"
    words = ["shape-3d", "predict", "--weights", str(weights), "--resolution", "32", "--output", str(out)]
    assert main([*words, "--category", "table", "--num", "1", "--seed", "3"]) == 0
    client = Client(url, verbose=False, download_files=str(tmp_path))
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/category", "/picture"]
    shown, files, _, note = client.predict("table", 1, 3, 0, 0, 32, "glb", "none", api_name="/category")
    assert Path(shown).read_bytes() == (out / "table_00.glb").read_bytes()
    assert len(files) == 1
    assert "--category table --num 1 --seed 3 --resolution 32" in note
    mesh, *_ = client.predict(handle_file(str(picture)), 0, 0, 0, 32, "stl", "none", api_name="/picture")
    assert read_mesh(mesh).mesh.is_watertight
    with pytest.raises(Exception, match="there is none; load one, or choose a category"):
        client.predict(None, 0, 0, 0, 32, "glb", "none", api_name="/picture")
    cached = tmp_path / "cached"
    words[words.index(str(out))] = str(cached)
    more = ["--category", "table", "--num", "1", "--seed", "3", "--steps", "4", "--cache", "fora"]
    assert main([*words, *more]) == 0
    shown, *_, note = client.predict("table", 1, 3, 4, 0, 32, "glb", "fora", api_name="/category")
    assert Path(shown).read_bytes() == (cached / "table_00.glb").read_bytes()
    assert "--cache fora" in note
    with pytest.raises(Exception, match="asked in one step only"):
        client.predict("table", 1, 3, 1, 0, 32, "glb", "fora", api_name="/category")
    client.close()


@pytest.mark.browser
@pytest.mark.timeout(600)
@needs_browser
def test_a_mesh_turns_in_a_browser(page: Any, url: str):
    page.set_default_timeout(240_000)
    # The viewer prefers WebGPU, complains that this browser has none, and takes WebGL.
    page.add_init_script("""
        Object.defineProperty(navigator, 'gpu', {get: () => undefined});
        const say = console.error;
        console.error = (...words) => String(words[0]).includes('WebGPU is not supported') || say(...words);
    """)
    page.goto(url)
    page.locator("#make").click()
    page.locator("#note").get_by_text("faces").wait_for()
    canvas = page.locator("#viewer canvas")
    canvas.wait_for()
    box = canvas.bounding_box()
    assert box is not None
    assert box["width"] > 100
    # Something is drawn: a picture of the viewer has more than its background. Headless browsers draw in software.
    page.wait_for_timeout(3000)
    pixels = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("L"), np.float32)
    assert pixels.std() > 3
    page.locator("#files").get_by_text("chair_00").first.wait_for()
