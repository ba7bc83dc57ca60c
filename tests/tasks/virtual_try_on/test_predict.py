"""``polydit virtual-try-on predict``: one pair, many pairs, and what users get wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polydit.core.cli import main

from .conftest import save


@pytest.fixture
def run(tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """``run("--person", file, ...)`` gives the exit code and the lines on standard error."""

    def call(*words: object, weights: Path = tiny_weights, output: str = "out") -> tuple[int, list[str]]:
        fixed = ["virtual-try-on", "predict", "--output", tmp_path / output, "--weights", weights]
        code = main(list(map(str, [*fixed, *words])))
        return code, capsys.readouterr().err.strip().splitlines()

    return call


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


def arguments(dressing: dict[str, Path], **changes: object) -> list[object]:
    given = {"person": dressing["anna"], "garment": dressing["shirt"], "mask": dressing["mask"], **changes}
    return [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]


def test_one_pair(run: Any, dressing: dict[str, Path], tmp_path: Path):
    code, lines = run(*arguments(dressing), "--seed", 3, "--strip")
    assert (code, lines) == (0, [f"polydit: 1 done, in {tmp_path / 'out'}"])
    result, person, mask = (
        pixels(tmp_path / "out/anna_shirt.png"),
        pixels(dressing["anna"]),
        pixels(dressing["mask"]) > 0,
    )
    assert result.shape == person.shape
    np.testing.assert_array_equal(result[~mask], person[~mask])
    assert (result != person).any(-1)[mask].mean() > 0.9
    (record,) = json.loads((tmp_path / "out/results.json").read_text())["inputs"]
    assert record["files"] == ["anna_shirt.png", "anna_shirt_strip.png"]
    assert record["size"] == [40, 60]
    assert record["network_size"] == [16, 24]
    assert Image.open(tmp_path / "out/anna_shirt_strip.png").width > 4 * 160


def test_the_garment_and_the_seed_count(run: Any, dressing: dict[str, Path], tmp_path: Path):
    for output, words in (
        ("a", [*arguments(dressing), "--seed", 1]),
        ("b", [*arguments(dressing), "--seed", 1]),
        ("c", [*arguments(dressing), "--seed", 2]),
    ):
        assert run(*words, output=output)[0] == 0
    assert run(*arguments(dressing, garment=dressing["coat"]), "--seed", 1, output="a")[0] == 0
    first, same, other = (pixels(tmp_path / folder / "anna_shirt.png") for folder in "abc")
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    assert (first != pixels(tmp_path / "a/anna_coat.png")).any()


def test_a_table_of_pairs(run: Any, dressing: dict[str, Path], tmp_path: Path):
    table = dressing["anna"].parent / "pairs.csv"
    table.write_text(
        "person,garment,mask\nanna.png,shirt.png,mask.png\nanna.png,coat.png,mask.png\nanna.png,none.png,mask.png\n"
    )
    code, lines = run("--pairs", table)
    assert code == 2
    assert lines[0] == f"polydit: {table.parent / 'none.png'}: no such file; check the path"
    assert lines[1].startswith(f"polydit: 2 done, in {tmp_path / 'out'}; 1 of 3 failed")
    records = json.loads((tmp_path / "out/results.json").read_text())["inputs"]
    assert [record["status"] for record in records] == ["done", "done", "failed"]
    assert records[1]["row"]["garment"] == str(dressing["coat"])
    table.write_text("person,garment,mask\nanna.png,shirt.png,mask.png\nanna.png,coat.png,mask.png\n")
    code, lines = run("--pairs", table)
    assert (code, lines) == (0, ["polydit: 2 kept as they were (--overwrite replaces them)"])
    assert run(*arguments(dressing, garment=dressing["coat"]), output="alone")[0] == 0
    np.testing.assert_array_equal(
        pixels(tmp_path / "alone/anna_coat.png"), pixels(tmp_path / "out/anna_coat.png")
    )


def test_a_folder_of_people_gets_one_garment(run: Any, dressing: dict[str, Path], tmp_path: Path):
    people = tmp_path / "people"
    for name in ("a", "b"):
        save(people / f"{name}.png", pixels(dressing["anna"]))
    assert run(*arguments(dressing, person=people))[0] == 0
    assert sorted(file.name for file in (tmp_path / "out").glob("*.png")) == ["a_shirt.png", "b_shirt.png"]


def test_a_mask_from_a_parse_map_leaves_the_face(run: Any, dressing: dict[str, Path], tmp_path: Path):
    assert run(*arguments(dressing, mask=None, parse=dressing["parse"]))[0] == 0
    result, person, labels = (
        pixels(tmp_path / "out/anna_shirt.png"),
        pixels(dressing["anna"]),
        pixels(dressing["parse"]),
    )
    np.testing.assert_array_equal(result[labels == 13], person[labels == 13])
    assert (result != person).any(-1)[labels == 5].mean() > 0.9


def test_a_hull_is_larger_than_its_mask(run: Any, dressing: dict[str, Path], tmp_path: Path):
    for output, words in (("plain", []), ("hull", ["--hull"])):
        assert run(*arguments(dressing), *words, output=output)[0] == 0
    person = pixels(dressing["anna"])
    changed = {
        name: (pixels(tmp_path / name / "anna_shirt.png") != person).any(-1).sum()
        for name in ("plain", "hull")
    }
    assert changed["hull"] > changed["plain"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"garment": None}, "--garment: required; give a picture of the garment laid flat"),
        ({"mask": None}, "--mask: required, or --parse; paint white"),
        ({"garment": "none.png"}, "none.png: no such file; check the path"),
    ],
)
def test_what_is_missing_is_one_line(run: Any, dressing: dict[str, Path], change: dict, line: str):
    code, lines = run(*arguments(dressing, **change))
    assert code == 2
    (said,) = lines
    assert line in said


def test_masks_that_cannot_be_used(run: Any, dressing: dict[str, Path], tmp_path: Path):
    for size, light, line in (
        ((80, 120), 255, "80x120, but the person is 40x60; give a mask of the same size"),
        ((40, 60), 0, "is empty; paint white what is to be dressed anew"),
    ):
        Image.new("L", size, light).save(dressing["mask"])
        code, (said,) = run(*arguments(dressing))
        assert code == 2
        assert said.endswith(line)
    code, (said,) = run(*arguments(dressing, parse=dressing["parse"]))
    assert code == 2
    assert "does not go with --mask" in said
    Image.new("L", (10, 10), 5).save(dressing["parse"])
    code, (said,) = run(*arguments(dressing, mask=None, parse=dressing["parse"]))
    assert code == 2
    assert "10x10, but the person is 40x60" in said
    assert not list((tmp_path / "out").glob("*.png"))


def test_one_pixel_is_dressed(run: Any, dressing: dict[str, Path], tmp_path: Path):
    mask = np.zeros((60, 40), np.uint8)
    mask[30, 20] = 255
    save(dressing["mask"], mask)
    assert run(*arguments(dressing))[0] == 0
    changed = (pixels(tmp_path / "out/anna_shirt.png") != pixels(dressing["anna"])).any(-1)
    assert changed.sum() <= 1


def test_transparent_and_grey_pictures_are_read(run: Any, dressing: dict[str, Path], tmp_path: Path):
    rgba = np.zeros((30, 30, 4), np.uint8)
    rgba[5:25, 6:24] = (200, 30, 30, 255)
    save(dressing["shirt"], rgba)
    save(dressing["anna"], pixels(dressing["anna"])[..., 0])
    assert run(*arguments(dressing))[0] == 0
    transparent = pixels(tmp_path / "out/anna_shirt.png")
    opaque = np.full((30, 30, 3), 255, np.uint8)
    opaque[5:25, 6:24] = (200, 30, 30)
    save(dressing["shirt"], opaque)
    assert run(*arguments(dressing), output="opaque")[0] == 0
    np.testing.assert_array_equal(transparent, pixels(tmp_path / "opaque/anna_shirt.png"))


def test_a_very_wide_picture_is_dressed_where_the_mask_is(
    run: Any, dressing: dict[str, Path], tmp_path: Path
):
    wide = np.zeros((60, 10_000, 3), np.uint8)
    mask = np.zeros((60, 10_000), np.uint8)
    mask[20:45, 7000:7020] = 255
    save(dressing["anna"], wide)
    save(dressing["mask"], mask)
    assert run(*arguments(dressing))[0] == 0
    changed = (pixels(tmp_path / "out/anna_shirt.png") != wide).any(-1)
    assert changed[mask > 0].mean() > 0.9
    assert not changed[mask == 0].any()


def test_weights_of_another_task_are_refused(run: Any, dressing: dict[str, Path], root: Path):
    code, (said,) = run(*arguments(dressing), weights=root / "demos/weights/super_resolution")
    assert code == 2
    assert "super-resolution" in said
