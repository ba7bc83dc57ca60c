"""Bytes and floats."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from polydit.core.media import checkerboard, from_uint8, on_checkerboard, to_uint8


def test_every_level_survives_the_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    floats = from_uint8(levels)
    assert floats.shape == (3, 16, 16)
    assert (floats.min(), floats.max()) == (-1, 1)
    np.testing.assert_array_equal(to_uint8(floats), levels)
    np.testing.assert_array_equal(to_uint8(floats[None].double()), levels)
    assert from_uint8(levels[..., 0]).shape == (1, 16, 16)


def test_values_are_clipped_and_rounded():
    x = torch.tensor([-3.0, -1.0, 0.003, 0.0, 1.0, 3.0]).reshape(1, 1, 6)
    assert to_uint8(x).ravel().tolist() == [0, 0, 128, 128, 255, 255]  # 127.5 rounds to the even 128
    assert x[0, 0, 0] == -3, "the input is left alone"


def test_batches_and_floats_are_refused():
    with pytest.raises(ValueError, match="one picture"):
        to_uint8(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="8-bit"):
        from_uint8(np.zeros((2, 2, 3), np.float32))


def test_checkerboard_shows_only_where_the_picture_is_transparent():
    board = checkerboard(10, 12, cell=3)
    assert board[0, 0] == board[3, 3] == 255
    assert board[0, 3] == board[9, 0] == 204
    rgba = np.zeros((10, 12, 4), np.uint8)
    rgba[:5, :, :3], rgba[:5, :, 3] = (10, 20, 30), 255
    shown = on_checkerboard(rgba, cell=3)
    assert (shown[:5] == (10, 20, 30)).all()
    np.testing.assert_array_equal(shown[5:], board[5:, :, None].repeat(3, axis=2))
    with pytest.raises(ValueError, match=r"\(H, W, 4\)"):
        on_checkerboard(rgba[..., :3])


def test_import_is_light():
    """`predict` imports media, tiling and colour: they must not pull in anything heavy."""
    code = (
        "import sys, torch, numpy, PIL.Image; before = set(sys.modules)\n"
        "import polydit.core.media, polydit.core.tiling, polydit.core.colour\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "heavy = {'rich', 'scipy', 'skimage', 'kornia', 'lightning', 'torchmetrics', 'diffusers'}\n"
        "assert not new & heavy, new & heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
