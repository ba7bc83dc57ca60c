"""``encode``, ``decode``, ``predict`` and ``bench`` from the command line, and what they refuse."""

from __future__ import annotations

import dataclasses
import errno
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polydit.core.cli import main
from polydit.tasks.compression.container import read_container
from polydit.tasks.compression.rate import best_within, parse_size

from .conftest import picture


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]):
    """Call a command with the tiny weights; its exit code and what it said."""

    def call(command: str, *words: object, weights: Path | None = folder) -> tuple[int, str]:
        options = ["--weights", weights] if weights else []
        code = main(list(map(str, ["compression", command, *words, *options])))
        said = capsys.readouterr()
        return code, said.err + said.out

    return call


def test_encode_and_decode(run, photo: Path, tmp_path: Path):
    code, said = run("encode", photo, tmp_path / "a.pdc", "--quality", 6.5)
    assert code == 0
    file = tmp_path / "a.pdc"
    assert f"{file.stat().st_size:,} bytes" in said
    assert f"{8 * file.stat().st_size / (70 * 50):.3f} bpp" in said
    assert run("decode", file, tmp_path / "b.png")[0] == 0
    found, given = np.asarray(Image.open(tmp_path / "b.png")), np.asarray(Image.open(photo))
    assert found.shape == given.shape
    assert np.abs(found.astype(int) - given).mean() < 6
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("size", [(1, 1), (3, 8191), (17, 31), (65, 64)])
def test_every_size_comes_back(run, tmp_path: Path, size: tuple[int, int]):
    source = tmp_path / "odd.png"
    Image.fromarray(picture(*size)).save(source)
    assert run("encode", source, tmp_path / "odd.pdc", "--quality", 2)[0] == 0
    assert run("decode", tmp_path / "odd.pdc", tmp_path / "odd2.png")[0] == 0
    assert Image.open(tmp_path / "odd2.png").size == (size[1], size[0])


def images(pixels: np.ndarray) -> dict[str, Image.Image]:
    rgb = Image.fromarray(pixels)
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[:20], alpha[20:30] = 0, 90
    clear = rgb.copy()
    clear.putalpha(Image.fromarray(alpha))
    opaque = rgb.copy()
    opaque.putalpha(255)
    return {
        "grey.png": rgb.convert("L"),
        "sixteen.png": Image.fromarray(pixels[..., 0].astype(np.uint16) * 257),
        "cmyk.jpg": rgb.convert("CMYK"),
        "palette.png": rgb.quantize(16),
        "clear.png": clear,
        "opaque.png": opaque,
        "clear-grey.png": clear.convert("LA"),
    }


@pytest.mark.parametrize(
    ("name", "mode", "note"),
    [
        ("grey.png", "L", ""),
        ("sixteen.png", "L", "16 bits a channel became 8"),
        ("cmyk.jpg", "RGB", "CMYK became RGB"),
        ("palette.png", "RGB", ""),
        ("clear.png", "RGBA", ""),
        ("opaque.png", "RGB", ""),
        ("clear-grey.png", "LA", ""),
    ],
)
def test_kinds_of_pictures(run, tmp_path: Path, name: str, mode: str, note: str):
    image = images(picture(64, 64))[name]
    image.save(tmp_path / name)
    code, said = run("encode", tmp_path / name, tmp_path / "a.pdc", "--quality", 8)
    assert code == 0
    assert note in said
    assert run("decode", tmp_path / "a.pdc", tmp_path / "b.png")[0] == 0
    found = Image.open(tmp_path / "b.png")
    assert found.mode == mode
    if "A" in mode:
        assert np.array_equal(np.asarray(found)[..., -1], np.asarray(image)[..., -1])
        shown = np.asarray(image)[..., -1] > 0
        difference = np.asarray(found)[shown].astype(int) - np.asarray(image)[shown]
        assert np.abs(difference).mean() < 6


def test_metadata_is_kept_when_asked(run, photo: Path, tmp_path: Path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a leaf", 6
    Image.open(photo).save(tmp_path / "m.jpg", exif=exif, icc_profile=profile, quality=95)
    assert run("encode", tmp_path / "m.jpg", tmp_path / "plain.pdc")[0] == 0
    assert read_container((tmp_path / "plain.pdc").read_bytes(), "x").sections == {}
    assert run("encode", tmp_path / "m.jpg", tmp_path / "m.pdc", "--metadata")[0] == 0
    assert run("decode", tmp_path / "m.pdc", tmp_path / "m.png")[0] == 0
    found = Image.open(tmp_path / "m.png")
    assert found.size == (70, 50)  # upright
    assert found.info["icc_profile"] == profile
    assert found.getexif()[0x010E] == "a leaf"
    assert 0x0112 not in found.getexif()


@pytest.mark.parametrize(
    "words", [("--target-size", "500"), ("--target-size", "0.5kB"), ("--target-bpp", 1.1)]
)
def test_targets_are_met(run, photo: Path, tmp_path: Path, words: tuple):
    assert run("encode", photo, tmp_path / "a.pdc", *words)[0] == 0
    limit = 500 if words[0] == "--target-size" else 1.1 * 70 * 50 / 8
    assert 0.9 * limit < (tmp_path / "a.pdc").stat().st_size <= limit


def test_the_search_takes_few_encodings():
    sizes = []

    def encode(index: int) -> bytes:
        sizes.append(100 + 10 * index)
        return bytes(100 + 10 * index)

    index, file = best_within(encode, 777, 240, "--target-size 777")
    assert (index, len(file)) == (67, 770)
    assert len(sizes) <= 9
    assert [parse_size(text) for text in ("40000", "40kB", "1.5 KiB", "2M")] == [40000, 40000, 1536, 2000000]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--quality", 0.5), "--quality 0.5: goes from 1 (smallest) to 9 (best)"),
        (("--quality", "nan"), "--quality: nan is not a finite number"),
        (("--target-bpp", 0), "--target-bpp 0: must be above 0"),
        (("--target-bpp", 1, "--target-size", 9), "give one of the two"),
        (("--target-size", "9 apples"), "--target-size 9 apples: give bytes"),
        (("--target-size", 50), "--target-size 50: the smallest file of this picture has"),
        (("--system", "smal"), "--system smal: unknown; choose from small"),
        (("--system", "GNVC-VD"), "--system GNVC-VD: codes videos"),
    ],
)
def test_options_that_make_no_sense(run, photo: Path, tmp_path: Path, words: tuple, message: str):
    code, said = run("encode", photo, tmp_path / "a.pdc", *words)
    assert code == 2
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "a.pdc").exists()


def test_predict_checks_the_same_options(run, photo: Path, tmp_path: Path):
    code, said = run("predict", "--input", photo, "--output", tmp_path / "out", "--quality", 9.5)
    assert code == 2
    assert "--quality 9.5: goes from 1 (smallest) to 9 (best)" in said


def test_inputs_that_cannot_be_coded(run, photo: Path, tmp_path: Path):
    frames = [Image.fromarray(picture(20, 20, seed)) for seed in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(photo.read_bytes()[:200])
    (tmp_path / "there.pdc").write_bytes(b"something")
    for source, output, message in (
        ("moving.gif", "a.pdc", "holds 3 pictures"),
        ("empty.png", "a.pdc", "is empty"),
        ("cut.png", "a.pdc", "cut short"),
        ("nowhere.png", "a.pdc", "no such file"),
        ("photo.png", "a.jpg", "a coded file is named .pdc"),
        ("photo.png", "there.pdc", "exists already; pass --overwrite"),
        ("photo.png", ".", "is a folder"),
    ):
        code, said = run("encode", tmp_path / source, tmp_path / output)
        assert (code, said.count("\n")) == (2, 1), said
        assert message in said
    assert run("encode", photo, tmp_path / "there.pdc", "--overwrite")[0] == 0


def test_files_that_cannot_be_decoded(run, photo: Path, tmp_path: Path):
    assert run("encode", photo, tmp_path / "a.pdc")[0] == 0
    file = (tmp_path / "a.pdc").read_bytes()
    (tmp_path / "cut.pdc").write_bytes(file[:-9])
    for source, output, message in (
        (photo, "b.png", "not a .pdc file"),
        (tmp_path / "cut.pdc", "b.png", "cut short or damaged"),
        (tmp_path / "a.pdc", "b.mov", "cannot be written under this ending"),
        (tmp_path / "gone.pdc", "b.png", "no such file"),
    ):
        code, said = run("decode", source, tmp_path / output)
        assert (code, said.count("\n")) == (2, 1), said
        assert message in said
    code, said = run("decode", tmp_path / "a.pdc", tmp_path / "b.png", weights=tmp_path)
    assert code == 2
    assert "it is no codec" in said


def test_weights_of_another_training_are_refused(run, photo: Path, tmp_path: Path, trainable, folder: Path):
    from polydit.tasks.compression.pipeline import CompressionPipeline

    other = trainable.frozen_copy()
    other.lapped.middle.data[0, 0] += 0.01
    CompressionPipeline(other).save_pretrained(tmp_path / "other")
    assert run("encode", photo, tmp_path / "a.pdc")[0] == 0
    own = read_container((tmp_path / "a.pdc").read_bytes(), "x").weights.hex()
    code, said = run("decode", tmp_path / "a.pdc", tmp_path / "b.png", weights=tmp_path / "other")
    assert code == 2
    assert own in said
    assert "give the folder of the right ones with --weights" in said


def test_weights_of_the_other_codec_are_named(run, photo: Path, tmp_path: Path, root: Path):
    videos = root / "demos/weights/compression_video"
    code, said = run("encode", photo, tmp_path / "a.pdc", weights=videos)
    assert code == 2
    assert "holds a VideoCodec" in said


def test_a_full_disk_leaves_nothing(run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import os

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, said = run("encode", photo, tmp_path / "a.pdc")
    assert code == 2
    assert "a.pdc" in said
    assert "space" in said.lower()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["photo.png"]


def test_a_missing_coder_names_the_extra(run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    code, said = run("encode", photo, tmp_path / "a.pdc")
    assert code == 2
    assert "pip install 'polydit[compression]'" in said


def test_predict_writes_both_and_its_figures(run, photo: Path, tmp_path: Path):
    code, _ = run("predict", "--input", photo, "--output", tmp_path / "out", "--quality", 7)
    assert code == 0
    (record,) = json.loads((tmp_path / "out/results.json").read_text())["inputs"]
    file = tmp_path / "out/photo.pdc"
    assert record["bytes"] == file.stat().st_size
    assert record["quality"] == 7
    found = np.asarray(Image.open(tmp_path / "out/photo.png")).astype(float)
    error = np.square(found - np.asarray(Image.open(photo))).mean()
    assert record["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.001)
    assert run("decode", file, tmp_path / "again.png")[0] == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "again.png")), found)


def test_bench_measures_files(run, tmp_path: Path):
    (tmp_path / "set").mkdir()
    for seed in range(2):
        Image.fromarray(picture(170, 300, seed)).save(tmp_path / f"set/{seed}.png")
    words = (
        "--input",
        tmp_path / "set",
        "--output",
        tmp_path / "out",
        "--limit-side",
        290,
        "--peers",
        "WEBP",
    )
    code, said = run("bench", *words, "--qualities", 1, 3, 5, 7, 9, "--low", 0.05, "--high", 3)
    assert code == 0, said
    assert "PolyDiT" in said
    assert "BD-rate by MS-SSIM" in said
    record = json.loads((tmp_path / "out/bench.json").read_text())
    assert record["pictures"] == ["0.png 290x164", "1.png 290x164"]
    ours = record["points"]["PolyDiT"]
    assert [point["quality"] for point in ours] == [1, 3, 5, 7, 9]
    assert [point["PSNR"] for point in ours] == sorted(point["PSNR"] for point in ours)
    assert set(record["bd_rates"]) == {"WebP, method 6", "PolyDiT"}
    assert list(record["mean"]) == [f"BD-rate against JPEG by {m}, 2 pictures" for m in ("PSNR", "MS-SSIM")]
    assert (tmp_path / "out/psnr.svg").read_text().startswith("<svg")
    assert "| PolyDiT" in (tmp_path / "out/points.md").read_text()
    code, said = run("bench", *words)
    assert code == 2
    assert "exists already" in said


def test_bench_takes_the_classics_from_an_earlier_run(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from polydit.tasks.compression import bench, peers

    (tmp_path / "set").mkdir()
    Image.fromarray(picture(64, 64)).save(tmp_path / "set/a.png")
    few = dataclasses.replace(peers.PEERS["JPEG"], qualities=(10, 30, 50, 80))
    monkeypatch.setitem(bench.PEERS, "JPEG", few)
    monkeypatch.setitem(
        bench.PEERS, "WEBP", dataclasses.replace(peers.PEERS["WEBP"], qualities=(1, 20, 50, 80))
    )
    words = ("--input", tmp_path / "set", "--peers", "WEBP", "--qualities", 2, 4, 6, 8)
    assert run("bench", *words, "--output", tmp_path / "a")[0] == 0
    first = json.loads((tmp_path / "a/bench.json").read_text())
    monkeypatch.setattr(peers.Peer, "__call__", lambda *_: pytest.fail("measured again"))
    assert run("bench", *words, "--output", tmp_path / "b", "--reuse", tmp_path / "a/bench.json")[0] == 0
    second = json.loads((tmp_path / "b/bench.json").read_text())
    assert second["values"][few.title] == first["values"][few.title]
    assert second["bd_rates"]["WebP, method 6"] == first["bd_rates"]["WebP, method 6"]
    code, said = run("bench", *words, "--limit-side", 32, "--reuse", tmp_path / "a/bench.json")
    assert (code, "other pictures or sizes" in said) == (2, True)
