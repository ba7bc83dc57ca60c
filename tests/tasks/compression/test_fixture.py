"""A file that was written once decodes for ever: to the same symbols, and nearly the same pixels.

With new weights: ``python tests/tasks/compression/test_fixture.py`` writes it again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.tasks.compression import TASK
from polydit.tasks.compression.coding import Stream, decode_picture, decode_symbols
from polydit.tasks.compression.container import read_container
from polydit.tasks.compression.picture_file import Still, decode_still, encode_still, to_pillow
from polydit.tasks.compression.weights import CodecWeights, open_weights

ROOT = Path(__file__).resolve().parents[3]
FIXTURE = ROOT / "tests/data/compression"
QUALITY = 75


def symbols_hash(weights: CodecWeights, file: bytes) -> str:
    content = read_container(file, "fixture")
    size = (content.height, content.width)
    found = decode_symbols(weights.codec, weights.models, content.data, content.quality, size)
    return hashlib.sha256(b"".join(part.to(torch.int32).numpy().tobytes() for part in found[:2])).hexdigest()


@pytest.fixture(scope="module")
def weights() -> CodecWeights:
    folder = TASK.weights_folder()
    assert folder is not None
    return open_weights(folder)


def test_the_shipped_weights_decode_the_committed_file(weights: CodecWeights):
    file = (FIXTURE / "rocks.pdc").read_bytes()
    facts = json.loads((FIXTURE / "rocks.json").read_text())
    assert hashlib.sha256(file).hexdigest() == facts["file"]
    assert symbols_hash(weights, file) == facts["symbols"]
    content = read_container(file, "fixture")
    stream = Stream(content.data, content.symbols)
    with torch.no_grad():
        found = decode_picture(
            weights.codec, weights.models, stream, content.quality, (content.height, content.width)
        )
    expected = np.asarray(Image.open(FIXTURE / "rocks.png")).astype(float)
    levels = (found.permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(levels - expected).max() < 0.51  # half a level, and the last digits of another machine


def test_the_shipped_weights_code_well(weights: CodecWeights):
    """A guard against weights that load and are no good: fewer bytes and less error than JPEG makes of the sample."""
    import io

    pixels = np.asarray(Image.open(ROOT / "demos/samples/toucan.png").convert("RGB"))[:256, :256]
    file = encode_still(weights, Still(pixels), 60)
    found = decode_still(weights, read_container(file, "x"), "x").pixels
    error = np.square(found.astype(float) - pixels).mean()
    for quality in range(1, 96):
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "JPEG", quality=quality, optimize=True, progressive=True)
        jpeg = np.asarray(Image.open(content)).astype(float)
        if np.square(jpeg - pixels).mean() < error:
            break
    assert len(file) < 0.75 * content.getbuffer().nbytes


def write() -> None:
    folder = TASK.weights_folder()
    assert folder is not None
    weights = open_weights(folder)
    pixels = np.asarray(Image.open(ROOT / "demos/samples/rocks.png").convert("RGB"))[40:157, 60:213]
    file = encode_still(weights, Still(pixels), QUALITY)
    FIXTURE.mkdir(parents=True, exist_ok=True)
    (FIXTURE / "rocks.pdc").write_bytes(file)
    to_pillow(decode_still(weights, read_container(file, "fixture"), "fixture")).save(FIXTURE / "rocks.png")
    facts = {"file": hashlib.sha256(file).hexdigest(), "symbols": symbols_hash(weights, file)}
    (FIXTURE / "rocks.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    write()
