"""The codec: transforms that invert, symbols that every machine decodes alike, estimates that hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from polydit.core.errors import PolyditError
from polydit.tasks.compression.codec import (
    LAST_QUALITY,
    MEAN_UNIT,
    LatentCodec,
    quality_index,
    quality_of,
    step_of,
)
from polydit.tasks.compression.coding import decode_picture, decode_symbols, encode_picture
from polydit.tasks.compression.lapped import LappedTransform, coding_gain
from polydit.tasks.compression.picture_codec import PictureCodec
from polydit.tasks.compression.picture_file import Still, encode_still
from polydit.tasks.compression.weights import CodecWeights, identity_of, open_weights

from .conftest import picture, tensor


@pytest.mark.parametrize("size", [(8, 8), (8, 24), (64, 40)])
def test_the_lapped_transform_inverts(size: tuple[int, int]):
    transform = LappedTransform()
    pictures = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(transform.inverse(transform(pictures)), pictures, atol=2e-5)


def test_the_lapped_transform_gains_more_than_the_dct():
    assert coding_gain(torch.eye(8)) == pytest.approx(8.83, abs=0.01)
    assert coding_gain(LappedTransform().border().detach()) > 9.55


def test_both_levels_invert(codec: LatentCodec):
    """Without rounding, analysis and joined synthesis give the picture back."""
    pictures = tensor(picture(128, 64))[None]
    quality = torch.tensor([100])
    with torch.no_grad():
        coarse, fine = codec.analyse(pictures, quality)
        found = codec.to_pixels(codec.join(coarse, fine), quality)
    assert coarse.shape == (1, 192, 2, 1)
    assert fine.shape == (1, 189, 16, 8)
    assert (found - pictures).abs().max() < 1e-4


def test_qualities_and_steps():
    assert [quality_index(q) for q in (1, 5, 9, 0.5, 12)] == [0, 120, 240, 0, 240]
    assert quality_of(quality_index(3.3)) == pytest.approx(3.3, abs=0.02)
    steps = step_of(torch.arange(LAST_QUALITY + 1))
    assert (steps.diff() < 0).all()


@pytest.mark.parametrize("index", [0, 97, 240])
def test_decoded_symbols_are_those_that_were_coded(codec: LatentCodec, weights: CodecWeights, index: int):
    pixels = tensor(picture(90, 70))
    stream = encode_picture(codec, weights.models, pixels, index)
    coarse16, fine16, check = decode_symbols(codec, weights.models, stream.data, index, (90, 70))
    assert check == stream.symbols
    assert coarse16.shape[-2:] == (2, 2)
    found = decode_picture(codec, weights.models, stream, index, (90, 70))
    with torch.no_grad():
        whole = codec.synthesise(coarse16 / MEAN_UNIT, fine16 / MEAN_UNIT, torch.tensor([index]))
    assert torch.equal(found, whole[0, :, :90, :70].clamp(-1, 1))


def test_a_better_quality_is_better_and_larger(codec: LatentCodec, weights: CodecWeights):
    pixels = tensor(picture(128, 128))
    sizes, errors = [], []
    for index in (0, 60, 120, 180, 240):
        stream = encode_picture(codec, weights.models, pixels, index)
        found = decode_picture(codec, weights.models, stream, index, (128, 128))
        sizes.append(len(stream.data))
        errors.append(float((found - pixels).square().mean()))
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)


def test_the_estimate_is_what_the_file_takes(codec: LatentCodec, weights: CodecWeights):
    pixels = tensor(picture(128, 128))
    with torch.no_grad():
        estimate = float(codec(pixels[None], torch.tensor([200]), 0.1).bits)
    written = 8 * len(encode_picture(codec, weights.models, pixels, 200).data)
    assert abs(written - estimate) < 0.02 * estimate + 64


DECODE = """
import sys
import torch
torch.set_num_threads(int(sys.argv[3]))
from polydit.tasks.compression.codec import LatentCodec
from polydit.tasks.compression.coding import decode_symbols
from polydit.tasks.compression.container import read_container
from polydit.tasks.compression.weights import open_weights
weights = open_weights(sys.argv[1])
content = read_container(open(sys.argv[2], "rb").read(), sys.argv[2])
with torch.autocast("cpu", torch.bfloat16, enabled=sys.argv[4] == "bfloat16"):
    found = decode_symbols(
        weights.codec, weights.models, content.data, content.quality, (content.height, content.width)
    )
import hashlib
print(hashlib.sha256(b"".join(part.to(torch.int32).numpy().tobytes() for part in found[:2])).hexdigest())
"""


def test_a_fresh_process_with_other_threads_decodes_the_same(folder: Path, tmp_path: Path):
    """One thread and float32 here; two threads, and bfloat16 where it is allowed, there."""
    import hashlib

    weights = open_weights(folder)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        file = encode_still(weights, Still(picture(150, 130)), 150)
    finally:
        torch.set_num_threads(before)
    path = tmp_path / "a.pdc"
    path.write_bytes(file)
    from polydit.tasks.compression.container import read_container

    content = read_container(file, path)
    own = decode_symbols(weights.codec, weights.models, content.data, 150, (150, 130))
    expected = hashlib.sha256(b"".join(p.to(torch.int32).numpy().tobytes() for p in own[:2])).hexdigest()
    for threads, dtype in (("2", "bfloat16"), ("1", "float32")):
        answer = subprocess.run(
            [sys.executable, "-c", DECODE, str(folder), str(path), threads, dtype],
            capture_output=True,
            text=True,
            check=True,
        )
        assert answer.stdout.strip() == expected


def test_a_file_made_in_bfloat16_is_decoded_in_float32(codec: LatentCodec, weights: CodecWeights):
    pixels = tensor(picture(64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        stream = encode_picture(codec, weights.models, pixels, 130)
    assert decode_symbols(codec, weights.models, stream.data, 130, (64, 64))[2] == stream.symbols


def test_saved_weights_are_the_same_in_every_precision(codec: PictureCodec, folder: Path):
    from polydit.core.load import load

    identity = identity_of(codec)
    assert open_weights(folder).identity == identity
    pipe = load(folder, dtype=torch.bfloat16).to("cpu", torch.bfloat16)
    assert identity_of(pipe.codec) == identity
    assert pipe.codec.compute_dtype == torch.bfloat16


def test_wrong_weights_are_named(weights: CodecWeights, trainable: PictureCodec):
    other = trainable.frozen_copy()
    other.lapped.middle.data[0, 0] += 0.001
    stranger = CodecWeights(other, "other weights")
    with pytest.raises(PolyditError, match=weights.identity[:4].hex()) as caught:
        stranger.check(weights.identity[:4], "photo.pdc")
    assert stranger.identity[:4].hex() in str(caught.value)


def test_changed_networks_are_noticed(codec: PictureCodec, weights: CodecWeights, trainable: PictureCodec):
    """What decodes other symbols never comes out as a picture."""
    other = trainable.frozen_copy()
    other.fine.heads[0].integer_bias += 2**24
    stream = encode_picture(codec, weights.models, tensor(picture(64, 64)), 200)
    with pytest.raises(PolyditError, match=r"decodes to other numbers|cannot be decoded"):
        decode_picture(other, weights.models, stream, 200, (64, 64), "photo.pdc")


def test_thawed_weights_code_alike(codec: PictureCodec, tmp_path: Path):
    codec.save_pretrained(tmp_path / "codec")
    trained = PictureCodec.from_pretrained(tmp_path / "codec").thaw()
    pixels = tensor(picture(64, 64))[None]
    with torch.no_grad():
        first, second = (float(one(pixels, torch.tensor([120]), 0.1).bits) for one in (codec, trained))
    assert second == pytest.approx(first, rel=0.01)
    assert sum(p.numel() for p in trained.parameters()) > 10_000


def test_large_values_escape_the_tables(codec: LatentCodec, weights: CodecWeights):
    """A chessboard of blocks at the best quality: means of hundreds of steps, far beyond the tables."""
    board = np.kron(np.indices((2, 2)).sum(0) % 2, np.ones((64, 64)))[..., None] * np.full(3, 255)
    pixels = tensor(board.astype(np.uint8))
    stream = encode_picture(codec, weights.models, pixels, LAST_QUALITY)
    found = decode_picture(codec, weights.models, stream, LAST_QUALITY, (128, 128))
    assert float((found - pixels).square().mean()) < 0.01
