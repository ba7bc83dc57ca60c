"""Training from shards instead of files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from polydit.core.errors import PolyditError
from polydit.tasks.super_resolution.data import SuperResolutionData

pytest.importorskip("litdata", reason="needs polydit[streaming]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from polydit.core.data.streaming import build_shards

    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    (root / "train").mkdir()
    (root / "val").mkdir()
    for number in range(8):
        grey = np.full((64, 70, 3), 30 * number, np.uint8)
        Image.fromarray(grey).save(root / "train" / f"{number}.png")
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(root / "train" / "small.png")
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(root / "val" / "0.png")
    build_shards(root / "train", root / "shards")
    return root


def data(folder, **options) -> SuperResolutionData:
    module = SuperResolutionData(
        str(folder / "shards"),
        **{"val_path": str(folder / "val"), "crop": 48, "batch_size": 3, "num_workers": 0, **options},
    )
    module.setup("fit")
    return module


def test_every_picture_gives_a_crop_in_an_epoch(folder, capsys):
    module = data(folder)
    batches = list(module.train_dataloader())
    assert [batch["high"].shape for batch in batches] == [(3, 3, 48, 48)] * 3
    values = sorted(
        round((value + 1) * 127.5) for batch in batches for value in batch["high"].mean((1, 2, 3)).tolist()
    )
    assert set(values) == {30 * number for number in range(8)}
    assert "small.png: 20x20 is smaller than the crop of 48" in capsys.readouterr().out
    assert len(list(module.val_dataloader())) == 1


def test_what_shards_cannot_do_is_said(folder):
    with pytest.raises(
        PolyditError, match=r"--data\.val_path: .*shards has no held-out pictures; name a folder"
    ):
        data(folder, val_path=None)
    with pytest.raises(PolyditError, match="shards hold pictures, no pairs; leave layout and low_path out"):
        data(folder, layout="div2k")
