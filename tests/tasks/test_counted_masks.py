"""Masks whose files count in 0 and 1, as label maps do, mean the same as black and white ones in the picture tasks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from polydit.core.data.masks import harden
from polydit.tasks.layer_decomposition.pipeline import to_mask
from polydit.tasks.segmentation.few_shot.supports import read_mask as of_supports
from polydit.tasks.segmentation.folders import read_mask as of_folders
from polydit.tasks.virtual_try_on.masks import read_mask as of_persons

READERS = [of_supports, of_folders, of_persons, to_mask]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("white", [1, 255])
def test_ones_are_white(tmp_path, read, white):
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 10:20] = white
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert np.array_equal(harden(read(tmp_path / "mask.png")), mask > 0)


def test_a_dark_grey_is_not_white(tmp_path):
    mask = np.full((20, 30), 2, np.uint8)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert not of_supports(tmp_path / "mask.png").any()
