"""Reading pictures: every format into one layout, and one line for each that cannot be read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from polydit.core.data.images import image_size, list_images, read_image, read_images, to_float, to_uint8
from polydit.core.errors import PolyditError


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    y, x = np.mgrid[0:30, 0:40]
    return np.stack([x * 6, y * 8, (x + y) * 3], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "ppm", "webp", "jpg", "avif", "gif"])
def test_formats(tmp_path, pixels, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == "webp" else {}))
    array, info = read_image(path)
    assert array.shape == (30, 40, 3)
    assert array.dtype == np.uint8
    assert (info.width, info.height, info.bits, info.alpha) == (40, 30, 8, None)
    lossless = suffix in ("png", "tif", "bmp", "ppm", "webp")
    assert np.abs(array.astype(int) - pixels).mean() < (1e-9 if lossless else 6)
    assert image_size(path) == (40, 30)


def test_exif_orientation_is_undone(tmp_path, pixels):
    turn = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    for value, stored in turn.items():
        exif = Image.Exif()
        exif[0x0112] = value
        path = tmp_path / f"{value}.png"
        Image.fromarray(np.ascontiguousarray(stored(pixels))).save(path, exif=exif)
        array, info = read_image(path)
        assert np.array_equal(array, pixels), value
        assert info.orientation == value
        assert image_size(path) == (40, 30)


def test_alpha_is_kept_and_put_on_white(tmp_path, pixels):
    alpha = np.zeros((30, 40), np.uint8)
    alpha[:, :20] = 255
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "a.png")
    array, info = read_image(tmp_path / "a.png")
    assert np.array_equal(info.alpha, alpha)
    assert np.array_equal(array[:, :20], pixels[:, :20])
    assert (array[:, 20:] == 255).all()
    straight, _ = read_image(tmp_path / "a.png", background=None)
    assert np.array_equal(straight, pixels)


def test_grey_palette_one_bit_and_cmyk(tmp_path, pixels):
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    array, _ = read_image(tmp_path / "grey.png")
    assert all(np.array_equal(array[..., c], pixels[..., 0]) for c in range(3))
    Image.fromarray(np.dstack([pixels[..., 0], np.full((30, 40), 9, np.uint8)]), "LA").save(
        tmp_path / "la.png"
    )
    assert (read_image(tmp_path / "la.png")[1].alpha == 9).all()
    colours = Image.fromarray(pixels).quantize(16)
    colours.save(tmp_path / "p.png", transparency=3)
    array, info = read_image(tmp_path / "p.png")
    assert info.mode == "P"
    assert set(np.unique(info.alpha)) <= {0, 255}
    Image.fromarray(pixels).convert("1").save(tmp_path / "one.png")
    assert set(np.unique(read_image(tmp_path / "one.png")[0])) <= {0, 255}
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    red, info = read_image(tmp_path / "cmyk.jpg")
    assert info.mode == "CMYK"
    assert red[4, 4, 0] > 200
    assert red[4, 4, 1:].max() < 60


def test_sixteen_bits(tmp_path, pixels):
    deep = pixels.astype(np.uint16) * 257 - 0
    deep[0, 0] = 12345
    for name, options in (
        ("plain", {}),
        ("deflate", {"compression": "zlib"}),
        ("planes", {"planarconfig": "separate"}),
    ):
        data = np.moveaxis(deep, -1, 0) if name == "planes" else deep
        tifffile.imwrite(tmp_path / f"{name}.tif", data, photometric="rgb", **options)
        array, info = read_image(tmp_path / f"{name}.tif")
        assert array.dtype == np.uint16
        assert np.array_equal(array, deep), name
        assert info.bits == 16
        assert image_size(tmp_path / f"{name}.tif") == (40, 30)
    tifffile.imwrite(tmp_path / "grey.tif", deep[..., 0])
    assert np.array_equal(read_image(tmp_path / "grey.tif")[0][..., 2], deep[..., 0])
    Image.fromarray(deep[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png")[0][..., 1], deep[..., 0])
    rgba = np.dstack([deep, np.full((30, 40), 65535, np.uint16)])
    tifffile.imwrite(tmp_path / "rgba.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    array, info = read_image(tmp_path / "rgba.tif")
    assert np.array_equal(array, deep)
    assert (info.alpha == 65535).all()


def test_tiff_with_eight_bits_in_every_compression(tmp_path, pixels):
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "raw"):
        Image.fromarray(pixels).save(tmp_path / "a.tif", compression=compression)
        assert np.array_equal(read_image(tmp_path / "a.tif")[0], pixels), compression


def test_float_tiff_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "f.tif", np.random.default_rng(0).random((8, 8)).astype(np.float32))
    with pytest.raises(PolyditError, match=r"f\.tif: TIFF of type float32 is not supported"):
        read_image(tmp_path / "f.tif")


def test_conversions_between_depths():
    assert to_uint8(np.array([0, 128, 257, 65535], np.uint16)).tolist() == [0, 0, 1, 255]
    assert to_uint8(np.array([-1.0, 0.5, 2.0])).tolist() == [0, 128, 255]
    assert to_float(np.array([0, 255], np.uint8)).tolist() == [0.0, 1.0]
    assert to_float(np.array([65535], np.uint16)).dtype == np.float32


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "one.png")
    assert read_image(tmp_path / "one.png")[0].tolist() == [[[1, 2, 3]]]


def test_embedded_profile_is_converted(tmp_path, pixels):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    Image.fromarray(pixels).save(tmp_path / "bad.png", icc_profile=profile.tobytes())
    array, info = read_image(tmp_path / "bad.png")  # a profile that does not fit RGB is ignored
    assert not info.icc
    assert np.array_equal(array, pixels)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "srgb.png", icc_profile=srgb)
    assert np.array_equal(read_image(tmp_path / "srgb.png")[0], pixels)


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def test_bad_files_are_named_with_what_is_wrong(tmp_path, pixels):
    (tmp_path / "zero.png").touch()
    (tmp_path / "text.jpg").write_text("this is no picture")
    (tmp_path / "bomb.png").write_bytes(_png_header(60000, 60000))
    for suffix in ("png", "jpg", "webp"):
        noise = np.random.default_rng(0).integers(0, 255, (120, 120, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"cut.{suffix}")
        data = (tmp_path / f"cut.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    expected = {
        "gone.png": "gone.png: no such file; check the path",
        "zero.png": r"zero.png: is empty \(0 bytes\)",
        "text.jpg": "text.jpg: not a picture that can be read",
        "bomb.png": "bomb.png: 60000x60000 is 3600 megapixels, over the limit of 200",
        "cut.png": "cut.png: cut short or damaged",
        "cut.jpg": "cut.jpg: cut short or damaged",
        "cut.webp": "cut.webp: (cut short or damaged|not a picture that can be read, or cut short)",
        ".": "is a folder; give a picture file",
    }
    for name, message in expected.items():
        with pytest.raises(PolyditError, match=message) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(PolyditError, match="3600 megapixels"):
        image_size(tmp_path / "bomb.png")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(PolyditError, match="40x30 is 0 megapixels"):
        read_image(tmp_path / "a.png", max_pixels=1000)


def test_pillows_own_limit_is_left_as_it_was(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS
    read_image(tmp_path / "a.png")
    with pytest.raises(PolyditError):
        read_image(tmp_path / "none.png")
    assert before == Image.MAX_IMAGE_PIXELS
    # 100 megapixels are over Pillow's warning limit and under ours.
    (tmp_path / "large.png").write_bytes(_png_header(10000, 10000))
    assert image_size(tmp_path / "large.png") == (10000, 10000)


def test_listing(tmp_path, pixels):
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.JPG", "sub/c.webp", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    assert [p.name for p in list_images(tmp_path)] == ["a.JPG", "b.png", "c.webp"]
    assert [p.name for p in list_images(tmp_path, recursive=False)] == ["a.JPG", "b.png"]
    assert [p.name for p in list_images(str(tmp_path / "*.png"))] == ["b.png"]
    assert list_images(tmp_path / "b.png") == [tmp_path / "b.png"]
    with pytest.raises(PolyditError, match="no such file or folder"):
        list_images(tmp_path / "none")
    with pytest.raises(PolyditError, match=r"no pictures match this pattern \(1 files of other kinds\)"):
        list_images(str(tmp_path / "*.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(PolyditError, match="empty: no pictures in this folder; give png"):
        list_images(tmp_path / "empty")


def test_bad_files_in_a_folder_are_skipped_and_counted(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"")
    (tmp_path / "worse.jpg").write_bytes(b"no")
    lines: list[str] = []
    read = list(read_images(list_images(tmp_path), report=lines.append))
    assert [Path(path).name for path, _, _ in read] == ["good.png"]
    assert "bad.png: is empty" in lines[0]
    assert "worse.jpg: not a picture" in lines[1]
    assert lines[2] == "2 of 3 pictures could not be read and were skipped"
    with pytest.raises(PolyditError, match=r"bad\.png: is empty"):
        list(read_images(list_images(tmp_path), strict=True))
