"""Outputs are complete or absent, and every refusal is one line that names the file."""

from __future__ import annotations

import builtins
import dataclasses
import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.errors import PolyditError
from polydit.core.media import OutputWriter
from polydit.core.media import writer as writer_module


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def one_line(error: pytest.ExceptionInfo[PolyditError], name: str) -> str:
    message = str(error.value)
    assert name in message
    assert "\n" not in message
    return message


def test_makes_the_folder_and_writes_exact_pixels(tmp_path):
    array = noise(9, 13, 3)
    path = OutputWriter(tmp_path / "a" / "b").image("cat_x4.png", array)
    assert path == tmp_path / "a" / "b" / "cat_x4.png"
    np.testing.assert_array_equal(np.asarray(Image.open(path)), array)
    assert names(tmp_path) == ["cat_x4.png"]


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "I;16"])
def test_pillow_pictures_keep_their_mode(tmp_path, mode):
    image = Image.new(mode, (5, 4), 7 if mode in ("L", "P", "I;16") else None)
    assert Image.open(OutputWriter(tmp_path).image("x.png", image)).mode == mode


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".webp", ".tiff"])
def test_lossless_types_are_lossless(tmp_path, suffix):
    array = noise(20, 30, 3)
    path = OutputWriter(tmp_path).image("x" + suffix, array)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), array)


def test_jpeg_is_written_at_high_quality(tmp_path):
    array = np.full((16, 16, 3), 100, np.uint8)
    back = np.asarray(Image.open(OutputWriter(tmp_path).image("x.jpg", array)))
    assert np.abs(back.astype(int) - 100).max() <= 1


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff", ".jpg"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 1, 1), (1, 1), (4, 5, 1)])
def test_tiny_and_grey_pictures(tmp_path, suffix, shape):
    assert Image.open(OutputWriter(tmp_path).image("x" + suffix, noise(*shape))).size == shape[1::-1]


def test_unknown_ending_is_refused(tmp_path):
    with pytest.raises(PolyditError) as error:
        OutputWriter(tmp_path).image("x.bmpp", noise(2, 2, 3))
    assert ".png" in one_line(error, "x.bmpp")
    with pytest.raises(PolyditError, match=r"name it \.png"):
        OutputWriter(tmp_path).image_strips("x.jpg", [noise(2, 2, 3)], 2, 2)
    assert names(tmp_path) == []


def test_existing_file_is_kept_unless_overwrite(tmp_path):
    writer = OutputWriter(tmp_path)
    assert not writer.exists("x.txt")
    writer.text("x.txt", "old")
    again = OutputWriter(tmp_path)
    assert again.exists("x.txt")
    with pytest.raises(PolyditError) as error:
        again.text("x.txt", "new")
    assert "--overwrite" in one_line(error, "x.txt")
    assert (tmp_path / "x.txt").read_text() == "old"

    forced = OutputWriter(tmp_path, overwrite=True)
    assert not forced.exists("x.txt")
    forced.text("x.txt", "new")
    assert (tmp_path / "x.txt").read_text() == "new"


def test_two_inputs_with_one_name_do_not_overwrite_each_other(tmp_path):
    writer = OutputWriter(tmp_path, overwrite=True)
    writer.text("x.txt", "first")
    with pytest.raises(PolyditError, match="two inputs"):
        writer.text("x.txt", "second")
    writer.text("x.txt", "third", overwrite=True)  # said for this file: a report that is renewed
    assert (tmp_path / "x.txt").read_text() == "third"


def test_names_stay_inside_the_folder(tmp_path):
    writer = OutputWriter(tmp_path / "out")
    for name in ("../x.txt", "/etc/x.txt", "a/../../x.txt", ""):
        with pytest.raises(PolyditError, match="leads out"):
            writer.text(name, "")
    assert writer.text("layers/0.txt", "") == tmp_path / "out" / "layers" / "0.txt"
    assert writer.path("cat", "_x4.png") == tmp_path / "out" / "cat_x4.png"


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        path = OutputWriter(tmp_path).text("x.txt", "")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_interruption_leaves_nothing_and_keeps_the_old_file(tmp_path, raised):
    OutputWriter(tmp_path).text("x.png", "old")

    def strips():
        yield noise(5, 4, 3)
        assert len(names(tmp_path)) == 2  # the temporary file is there while the work goes on
        raise raised

    with pytest.raises(raised):
        OutputWriter(tmp_path, overwrite=True).image_strips("x.png", strips(), 10, 4)
    assert names(tmp_path) == ["x.png"]
    assert (tmp_path / "x.png").read_text() == "old"


def test_missing_rows_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="closed after 5"):
        OutputWriter(tmp_path).image_strips("x.png", [noise(5, 4, 3)], 10, 4)
    with pytest.raises(ValueError, match="no strips"):
        OutputWriter(tmp_path).image_strips("x.png", [], 10, 4)
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full_at_the_end_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, code):
    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(writer_module.os, "fsync", full)
    with pytest.raises(PolyditError) as error:
        OutputWriter(tmp_path).image("x.png", noise(4, 4, 3))
    assert "disk is full" in one_line(error, "x.png")
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.tiff"])
def test_disk_full_for_real(tmp_path, monkeypatch, name):
    """The kernel itself says "no space left": every encoder passes it on."""

    def open_full(path: Path, mode: str):
        builtins.open(path, mode).close()
        return builtins.open("/dev/full", "wb")

    monkeypatch.setattr(writer_module, "open", open_full, raising=False)
    with pytest.raises(PolyditError) as error:
        OutputWriter(tmp_path).image(name, noise(300, 300, 3))
    assert "disk is full" in one_line(error, name)
    assert names(tmp_path) == []


LIMITED = """
import resource, sys
import numpy as np
from polydit.core.errors import PolyditError
from polydit.core.media import OutputWriter
writer = OutputWriter(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    writer.image("x.png", np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
except PolyditError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a file size limit")
def test_file_too_large_for_real(tmp_path):
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "x.png: too large" in printed
    assert names(tmp_path) == []


def test_errors_about_other_files_are_not_blamed_on_the_output(tmp_path):
    writer = OutputWriter(tmp_path)
    with pytest.raises(FileNotFoundError, match="input"), writer.open("x.txt"):
        open(tmp_path / "input").close()
    assert names(tmp_path) == []


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(PolyditError) as error:
            OutputWriter(folder)
        assert "cannot make this folder" in one_line(error, str(folder))


def test_target_that_is_a_folder(tmp_path):
    (tmp_path / "x.txt").mkdir()
    with pytest.raises(PolyditError) as error:
        OutputWriter(tmp_path, overwrite=True).text("x.txt", "")
    assert "cannot write it" in one_line(error, "x.txt")
    assert names(tmp_path) == []


def test_name_too_long_is_refused_before_the_work(tmp_path):
    with pytest.raises(PolyditError, match="too long"), OutputWriter(tmp_path).open("x" * 300):
        pytest.fail("the block must not start")


@dataclasses.dataclass
class Record:
    path: Path
    score: float


def test_json_of_what_a_command_records(tmp_path):
    content = {
        "a": np.float32(1.5),
        "b": torch.tensor([1, 2]),
        "c": Record(Path("x/y"), float("inf")),
        4: (float("nan"), -float("inf"), None, True, "é"),
    }
    path = OutputWriter(tmp_path).json("results.json", content)
    assert json.loads(path.read_text("utf-8")) == {
        "a": 1.5,
        "b": [1, 2],
        "c": {"path": "x/y", "score": "inf"},
        "4": ["nan", "-inf", None, True, "é"],
    }
    with pytest.raises(TypeError):
        OutputWriter(tmp_path).json("other.json", object())
    assert names(tmp_path) == ["results.json"]


KILLED = """
import sys, time
import numpy as np
from polydit.core.media import OutputWriter
def strips():
    yield np.zeros((5, 4, 3), np.uint8)
    print("writing", flush=True)
    time.sleep(60)
OutputWriter(sys.argv[1]).image_strips("x.png", strips(), 10, 4)
"""


def test_ctrl_c_in_a_running_command(tmp_path):
    import signal

    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        assert names(tmp_path)[0].endswith(".partial")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode != 0
    assert names(tmp_path) == []


def test_files_that_belong_together_appear_at_once(tmp_path):
    writer = OutputWriter(tmp_path)
    with writer.together():
        writer.text("a.txt", "a")
        writer.text("frames/b.txt", "b")
        assert not (tmp_path / "a.txt").exists()
        with pytest.raises(PolyditError, match="two inputs want this name"):
            writer.text("a.txt", "again")
    assert names(tmp_path) == ["a.txt", "b.txt"]


def test_files_that_belong_together_are_none_after_a_failure(tmp_path):
    writer = OutputWriter(tmp_path)

    def cut_short() -> None:
        with writer.together():
            writer.text("a.txt", "a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_short()
    assert not names(tmp_path)
    with writer.together():  # the names are free again
        writer.text("a.txt", "a")
    writer.text("b.txt", "b")
    assert names(tmp_path) == ["a.txt", "b.txt"]
