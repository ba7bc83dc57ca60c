"""`predict` on pictures with masks: what is written, what is said of bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layer_scenes import picture_files, scene
from PIL import Image

from polydit.core.cli import main
from polydit.core.media import read_layers


@pytest.fixture
def predict(tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    tiny(awake=False).save_pretrained(tmp_path / "weights")

    def run(*words: object) -> tuple[int, str]:
        fixed = ["--output", tmp_path / "out", "--weights", tmp_path / "weights", "--device", "cpu"]
        code = main(["layer-decomposition", "predict", "--input", *map(str, [*words, *fixed])])
        return code, capsys.readouterr().err

    return run


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture)


def test_the_files_of_one_picture(predict, tmp_path: Path):
    image, mask = picture_files(tmp_path / "in", scene(48, 64), "a")
    code, _ = predict(image, "--mask", mask, "--export", "zip")
    out = tmp_path / "out"
    assert code == 0
    names = {
        "a_background.png",
        "a_foreground.png",
        "a_composite.png",
        "a_layers.json",
        "a.zip",
        "results.json",
    }
    assert {path.name for path in out.iterdir()} == names
    assert pixels(out / "a_foreground.png").shape == (48, 64, 4)
    assert pixels(out / "a_background.png")[..., 3].min() == 255
    assert np.abs(pixels(out / "a_composite.png").astype(int) - pixels(image)).max() <= 1
    stack = read_layers(out / "a_layers.json")
    assert [layer.role for layer in stack.layers] == ["background", "foreground"]
    assert np.abs(stack.composite()[..., :3].astype(int) - pixels(image)).max() <= 1
    record: dict[str, Any] = json.loads((out / "results.json").read_text())["inputs"][0]
    assert record["size"] == [64, 48]
    assert record["files"][-1] == "a_layers.json"
    assert not record["empty_mask"]
    assert 0.05 < record["foreground_share"] < 0.5


def test_a_folder_with_a_folder_of_masks(predict, tmp_path: Path):
    for seed, stem in enumerate("abc"):
        picture_files(tmp_path / "in", scene(40, 48, seed), stem)
    (tmp_path / "in" / "masks" / "b.png").unlink()
    pictures = [tmp_path / "in" / f"{stem}.png" for stem in "abc"]
    code, said = predict(*pictures, "--mask", tmp_path / "in" / "masks")
    assert code == 2
    assert "has no mask called b.*" in said
    written = {path.name for path in (tmp_path / "out").glob("*_layers.json")}
    assert written == {"a_layers.json", "c_layers.json"}


def test_bad_masks_are_one_line(predict, tmp_path: Path):
    image, mask = picture_files(tmp_path / "in", scene(40, 48))
    Image.open(mask).resize((24, 20)).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no picture")
    expected = {
        None: "--mask: required by these weights",
        tmp_path / "none.png": "no such file or folder",
        tmp_path / "small.png": "is 24x20 and a.png 48x40; give a mask of the picture's size",
        tmp_path / "text.png": "text.png: not a picture",
    }
    for given, line in expected.items():
        code, said = predict(image, *(["--mask", given] if given else []))
        assert code == 2
        assert line in said
        assert said.count("\n") == 1
    assert not list((tmp_path / "out").glob("a_*"))


def test_an_empty_mask_copies_and_says_so(predict, tmp_path: Path):
    image, mask = picture_files(tmp_path / "in", scene(40, 48))
    Image.new("L", (48, 40)).save(mask)
    code, said = predict(image, "--mask", mask)
    assert code == 0
    assert "a.png: the mask is empty: the background is a copy" in said
    assert (pixels(tmp_path / "out" / "a_background.png")[..., :3] == pixels(image)).all()
    assert pixels(tmp_path / "out" / "a_foreground.png").max() == 0


def test_transparency_is_shown_over_white_and_said(predict, tmp_path: Path):
    image, mask = picture_files(tmp_path / "in", scene(40, 48))
    picture = Image.open(image).convert("RGBA")
    alpha = np.full((40, 48), 255, np.uint8)
    alpha[:5] = 0
    picture.putalpha(Image.fromarray(alpha))
    picture.save(image)
    code, said = predict(image, "--mask", mask)
    assert code == 0
    assert "shown over white" in said
    assert (pixels(tmp_path / "out" / "a_background.png")[:5, :, :3] == 255).all()


def test_weights_of_another_task_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from polydit.core.task import find_task

    other = find_task("super-resolution").weights_folder()
    image, mask = picture_files(tmp_path / "in", scene(40, 48))
    words = ["--input", image, "--output", tmp_path / "out", "--weights", other, "--mask", mask]
    assert main(["layer-decomposition", "predict", *map(str, words)]) == 2
    said = capsys.readouterr().err
    assert "these are weights of super-resolution, not of layer-decomposition" in said
    assert said.count("\n") == 1
