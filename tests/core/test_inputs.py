"""What ``--input`` comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from polydit.core.data.images import IMAGE_SUFFIXES
from polydit.core.errors import PolyditError
from polydit.core.inputs import SUFFIXES, find_inputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "c.mp4", "d.txt", "noise", ".e.png", "deep/f.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(folder: Path, *words: str, kinds: tuple[str, ...] = ("image",)) -> list[str]:
    return [str(file.relative_to(folder)) for file in find_inputs(words, kinds).files]


def test_a_folder_gives_its_files_of_the_kinds_in_order(folder: Path):
    assert names(folder, str(folder)) == ["a.JPG", "b.png"]
    assert names(folder, str(folder), kinds=("image", "video")) == ["a.JPG", "b.png", "c.mp4"]
    assert names(folder, str(folder), kinds=(".txt",)) == ["d.txt"]
    assert dict(find_inputs([str(folder)], ["image"]).skipped) == {".mp4": 1, ".txt": 1, "no suffix": 1}


def test_patterns_reach_subfolders_and_a_file_counts_once(folder: Path):
    assert names(folder, f"{folder}/**/*.png") == ["b.png", "deep/f.png"]
    assert names(folder, f"{folder}/b.png", f"{folder}/*.png", str(folder)) == ["b.png", "a.JPG"]


def test_a_named_file_is_taken_whatever_its_suffix(folder: Path):
    assert names(folder, f"{folder}/noise") == ["noise"]


def test_brackets_in_a_name_are_no_pattern_where_the_file_exists(folder: Path):
    (folder / "x[1].png").touch()
    assert names(folder, f"{folder}/x[1].png") == ["x[1].png"]


def test_equal_stems_are_found(folder: Path):
    inputs = find_inputs([f"{folder}/b.png", f"{folder}/deep/f.png"], ["image"])
    assert inputs.clashes == {}
    (folder / "deep/b.jpg").touch()
    inputs = find_inputs([f"{folder}/b.png", f"{folder}/deep"], ["image"])
    assert inputs.clashes == {folder / "deep/b.jpg": folder / "b.png"}


def test_equal_stems_do_not_clash_where_results_have_other_names(folder: Path):
    (folder / "b.jpg").touch()
    (folder / "b.mp4").touch()
    words = [f"{folder}/b.{suffix}" for suffix in ("png", "mp4", "jpg")]
    inputs = find_inputs(words, ["image", "video"], lambda file: file.suffix == ".mp4")
    assert inputs.clashes == {folder / "b.jpg": folder / "b.png"}


def test_nothing_found_says_what_is_there_instead(folder: Path):
    (folder / "empty").mkdir()
    with pytest.raises(
        PolyditError, match=r"--input \S+empty: no image in this folder, no files; read are .avif, .bmp"
    ):
        find_inputs([f"{folder}/empty"], ["image"])
    with pytest.raises(PolyditError, match=r"no .glb in this folder, 5 other files \(.* 1 .txt"):
        find_inputs([str(folder)], [".glb"])
    (folder / "outer/inner").mkdir(parents=True)
    (folder / "outer/inner/g.png").touch()
    with pytest.raises(PolyditError, match="its subfolders hold some, give"):
        find_inputs([f"{folder}/outer"], ["image"])
    with pytest.raises(PolyditError, match=r"gone.png: no such file or folder"):
        find_inputs([f"{folder}/gone.png"], ["image"])
    with pytest.raises(PolyditError, match="the pattern matches no file"):
        find_inputs([f"{folder}/*.jpeg"], ["image"])
    with pytest.raises(PolyditError, match=r"no image matches, 1 .txt"):
        find_inputs([f"{folder}/*.txt"], ["image"])


def test_the_suffixes_are_those_that_the_readers_take():
    assert set(SUFFIXES["image"]) == set(IMAGE_SUFFIXES)
