"""PNG in strips: exact pixels, any chunking, bounded memory."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from polydit.core.media import PngStream


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encode(array: np.ndarray, cuts: list[int]) -> bytes:
    file = io.BytesIO()
    channels = 1 if array.ndim == 2 else array.shape[2]
    with PngStream(file, array.shape[0], array.shape[1], channels) as png:
        for strip in np.split(array, cuts):
            png.write(strip)
    return file.getvalue()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (40, 1), (37, 29)])
def test_pillow_reads_the_same_pixels(channels, mode, height, width):
    array = noise(height, width, channels)
    image = Image.open(io.BytesIO(encode(array, [])))
    assert image.mode == mode
    np.testing.assert_array_equal(np.asarray(image).reshape(array.shape), array)


def test_chunking_does_not_change_the_picture(monkeypatch):
    array = noise(61, 17, 3)
    monkeypatch.setattr("polydit.core.media.png._BLOCK_BYTES", 100)  # 1 row at a time
    for cuts in ([], [1, 2, 3], [60], [20, 20, 40]):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode(array, cuts)))), array)


def test_file_of_a_photograph_is_no_larger_than_pillows():
    from skimage import data

    photo = data.astronaut()
    pillow = io.BytesIO()
    Image.fromarray(photo).save(pillow, "PNG", compress_level=6)
    assert len(encode(photo, [])) < 1.05 * len(pillow.getvalue())


def test_grey_rows_need_no_channel_axis():
    array = noise(5, 7)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode(array, [2])))), array)


def test_wrong_rows_are_refused():
    with pytest.raises(ValueError, match="closed after 1"), PngStream(io.BytesIO(), 2, 3, 3) as png:
        png.write(noise(1, 3, 3))
    png = PngStream(io.BytesIO(), 2, 3, 3)
    with pytest.raises(ValueError, match="was given 3"):
        png.write(noise(3, 3, 3))
    with pytest.raises(ValueError, match="8-bit"):
        png.write(noise(1, 4, 3))
    with pytest.raises(ValueError, match="8-bit"):
        png.write(np.zeros((1, 3, 3), np.float32))
    with pytest.raises(ValueError, match="1 to 4 channels"):
        PngStream(io.BytesIO(), 1, 1, 5)
    with pytest.raises(ValueError, match="sides"):
        PngStream(io.BytesIO(), 1, 2**31, 3)


MEMORY = """
import resource, sys, tempfile
import torch
from polydit.core.media import OutputWriter, to_uint8
from polydit.core.tiling import tiled_strips

height, width, scale = int(sys.argv[1]), 512, 4
source = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
enlarge = lambda x: torch.nn.functional.interpolate(x, scale_factor=scale)
strips = tiled_strips(enlarge, lambda t: t.crop(source) / 127.5 - 1, height, width, 64, 8, scale)
with tempfile.TemporaryDirectory() as folder:
    OutputWriter(folder).image_strips("x.png", map(to_uint8, strips), height * scale, width * scale)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_upscaling_to_a_file_needs_memory_for_a_strip_only():
    """Four times the rows: 75 MB more of output as bytes, 300 MB as floats, and no more memory for it."""
    growth = [
        int(subprocess.run([sys.executable, "-c", MEMORY, str(n)], check=True, capture_output=True).stdout)
        for n in (1024, 4096)
    ]
    assert growth[1] - growth[0] < 12_000  # KiB
