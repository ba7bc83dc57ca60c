"""``polydit virtual-try-on draw``: data sets that grow, and files that are there already."""

from __future__ import annotations

from pathlib import Path

import pytest

from polydit.core.cli import main
from polydit.tasks.virtual_try_on.layouts import viton_hd


def draw(output: Path, *words: object) -> int:
    fixed = ["virtual-try-on", "draw", "--output", output, "--height", 48, "--width", 36, "--corpus", "none"]
    return main(list(map(str, [*fixed, *words])))


def test_a_data_set_grows(tmp_path):
    assert draw(tmp_path / "set", "--count", 2) == 0
    first = (tmp_path / "set/train/image/00000_00.png").read_bytes()
    assert draw(tmp_path / "set", "--count", 2, "--first", 2) == 0
    assert [pair.person.stem for pair in viton_hd(tmp_path / "set", "train", True)] == [
        f"{number:05d}_00" for number in range(4)
    ]
    assert (tmp_path / "set/train/image/00000_00.png").read_bytes() == first


def test_nothing_is_drawn_where_a_file_is_there(tmp_path, capsys: pytest.CaptureFixture[str]):
    assert draw(tmp_path / "set", "--count", 1) == 0
    assert draw(tmp_path / "set", "--count", 2, "--seed", 1) == 2
    assert "00000_00.png: exists already; pass --overwrite" in capsys.readouterr().err
    assert draw(tmp_path / "other", "--count", 1, "--sheet", tmp_path / "set/train_pairs.txt") == 2
    assert "--sheet" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
