"""Files of DiT-IC: the same symbols in every process, thread count and precision; plain and generative decoder."""

import json
import os
import subprocess
import sys

import pytest
import torch

import polydit
from polydit.core.backbones.dit_ic import DiTIC
from polydit.core.entropy import UNIT
from polydit.core.errors import PolyditError
from polydit.tasks.compression.coding import Stream
from polydit.tasks.compression.dit_ic.coding import LatentCoder
from polydit.tasks.compression.dit_ic.pipeline import pad, padded_size


@pytest.fixture(scope="module")
def stream(pipeline, picture):
    return pipeline.encode(picture)


@torch.no_grad()
def test_what_is_decoded_is_what_was_coded(pipeline, picture, stream):
    """Against a forward pass that writes nothing: the same latents, and as many bits as it estimates."""
    whole = pad(picture[None])
    latents, features = pipeline.space.encode(whole), pipeline.features(whole)
    model = DiTIC(pipeline.codec, pipeline.prompter, pipeline.transformer)
    expected = model(latents, features)
    found = pipeline.coder.decode(stream.data, (2, 2))
    assert found.symbols == stream.symbols
    assert torch.round(expected.y).abs().max() > 3  # there is something to code
    off = (found.y_hat - expected.y_hat).abs()
    # The estimate is in float32; a value on a boundary may be rounded otherwise, and its neighbours follow.
    assert (off < 0.02).float().mean() > 0.99
    bits = sum(-likelihood.log2().sum().item() for likelihood in expected.likelihoods.values())
    assert 8 * len(stream.data) == pytest.approx(bits, rel=0.02, abs=96)


def test_every_pass_and_the_side_information_are_in_the_data(pipeline):
    coder = pipeline.coder
    torch.manual_seed(0)
    y, z = torch.randn(1, 16, 8, 4) * 3, torch.randn(1, 8, 2, 1) * 4
    whole = coder.encode(y, z)
    found = coder.decode(whole.data, (2, 1))
    assert (found.y_hat - y).abs().max() <= 1 + 2 / UNIT  # half a step and a correction below half
    for place in ((0, 0), (0, 1), (1, 0), (1, 1)):
        changed = y.clone()
        changed[:, :, place[0] :: 2, place[1] :: 2] += 7
        assert coder.encode(changed, z).symbols != whole.symbols
    assert coder.encode(y, z + 2).symbols != whole.symbols


def test_far_values_survive(pipeline):
    y, z = torch.full((1, 16, 4, 4), 300.0), torch.full((1, 8, 1, 1), -900.0)
    found = pipeline.coder.decode(pipeline.coder.encode(y, z).data, (1, 1))
    assert (found.y_hat - y).abs().max() <= 1 + 2 / UNIT


SCRIPT = """
import json, sys, zlib
import torch, polydit
from polydit.tasks.compression.coding import Stream
folder, dtype, data, symbols, height, width = sys.argv[1:]
pipeline = polydit.load(folder, dtype=getattr(torch, dtype))
pipeline.to(getattr(torch, dtype))
found = pipeline.coder.decode(bytes.fromhex(data), (2, 2))
picture = pipeline.decode(Stream(bytes.fromhex(data), int(symbols)), (int(height), int(width)), 1.0)
print(json.dumps([found.symbols, zlib.crc32(found.y_hat.numpy().tobytes()), pipeline.identity.hex(),
                  torch.get_num_threads(), picture.float().mean().item()]))
"""


@pytest.fixture(scope="module")
def elsewhere(folder, stream, picture):
    """What other processes find in the same data, by threads and precision."""

    def run(threads, dtype):
        words = [str(folder), dtype, stream.data.hex(), str(stream.symbols), *map(str, picture.shape[1:])]
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *words],
            env={**os.environ, "OMP_NUM_THREADS": threads},
            stdout=subprocess.PIPE,
            text=True,
        )

    jobs = [run("1", "float32"), run("2", "bfloat16")]
    return [json.loads(job.communicate(timeout=200)[0].splitlines()[-1]) for job in jobs]


def test_other_threads_and_precisions_find_the_same_symbols(pipeline, stream, elsewhere):
    single, double = elsewhere
    assert (single[3], double[3]) == (1, 2)
    assert single[:3] == double[:3]
    assert single[0] == stream.symbols
    assert single[2] == pipeline.identity.hex()
    assert single[4] == pytest.approx(double[4], abs=0.05)


def test_a_cast_does_not_touch_the_probabilities(folder, stream):
    cast = polydit.load(folder).to(torch.bfloat16)
    assert cast.codec.g_s.synthesis_transform[-1].weight.dtype == torch.bfloat16
    assert cast.codec.context.g_c[-1].weight.dtype == torch.float32
    assert cast.coder.decode(stream.data, (2, 2)).symbols == stream.symbols


@torch.no_grad()
def test_fidelity_goes_from_the_plain_to_the_generative_decoder(pipeline, picture, stream):
    found = pipeline.coder.decode(stream.data, (2, 2))
    decoded = pipeline.codec.decode(found.y_hat, found.scales)
    height, width = picture.shape[1:]

    def crop(latents):
        return pipeline.space.decode(latents)[0, :, :height, :width].clamp(-1, 1)

    generative = DiTIC(pipeline.codec, pipeline.prompter, pipeline.transformer).enhance(decoded)[0]
    size = (height, width)
    assert torch.equal(pipeline.decode(stream, size, fidelity=1.0), crop(decoded.mean))
    assert torch.equal(pipeline.decode(stream, size, fidelity=0.0), crop(generative))
    assert torch.equal(pipeline.decode(stream, size), crop(generative))
    middle = pipeline.decode(stream, size, fidelity=0.5)
    torch.testing.assert_close(middle, crop((generative + decoded.mean) / 2), atol=1e-4, rtol=0)
    assert not torch.allclose(crop(generative), crop(decoded.mean), atol=1e-3)
    with pytest.raises(PolyditError, match=r"^--fidelity 1\.5: give a number from 0"):
        pipeline.decode(stream, size, fidelity=1.5)


def test_the_plain_decoder_needs_no_transformer(pipeline, stream, monkeypatch):
    def forward(*args, **kwargs):
        raise AssertionError("asked")

    monkeypatch.setattr(pipeline.transformer, "forward", forward)
    pipeline.decode(stream, (300, 410), fidelity=1.0)
    with pytest.raises(AssertionError, match="asked"):
        pipeline.decode(stream, (300, 410), fidelity=0.9)


def test_damage_is_found(pipeline, stream):
    with pytest.raises(PolyditError, match="photo: decodes to other numbers than were coded"):
        pipeline.decode(Stream(stream.data, stream.symbols ^ 1), (300, 410), name="photo")
    with pytest.raises(PolyditError, match=r"photo: "):
        pipeline.decode(Stream(stream.data[::-1], stream.symbols), (300, 410), name="photo")


@pytest.mark.parametrize("size", [(1, 1), (3, 257), (255, 2)])
def test_odd_sizes(pipeline, size):
    picture = torch.rand(3, *size) * 2 - 1
    found = pipeline.decode(pipeline.encode(picture), size, 1.0)
    assert found.shape == picture.shape
    assert torch.isfinite(found).all()


def test_padding_reflects():
    row = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 3, 4)
    assert pad(row, 8)[0, 0, 0].tolist() == [0, 1, 2, 3, 2, 1, 0, 1]
    assert pad(row, 8).shape == (1, 1, 8, 8)
    assert torch.equal(pad(torch.ones(1, 3, 256, 512)), torch.ones(1, 3, 256, 512))
    assert pad(torch.full((1, 1, 1, 1), 2.0), 4).unique().tolist() == [2.0]
    assert padded_size(257, 1) == (512, 256)
    picture = torch.rand(1, 3, 200, 190)
    expected = torch.nn.functional.pad(picture, (0, 66, 0, 56), mode="reflect")
    assert torch.equal(pad(picture), expected)


def test_other_weights_have_another_identity(pipeline):
    from copy import deepcopy

    other = deepcopy(pipeline.codec)
    with torch.no_grad():
        other.context.g_c[-1].bias[0] += 0.01
    assert LatentCoder(other).identity != pipeline.identity
    heads = deepcopy(pipeline.codec)
    with torch.no_grad():
        heads.g_s.synthesis_transform[-1].bias[0] += 1  # what comes behind the symbols may differ
    assert LatentCoder(heads).identity == pipeline.identity
    heads.counts.zero_()
    with pytest.raises(PolyditError, match="counts of its side information are missing"):
        LatentCoder(heads)


def test_the_pipeline_on_an_array(pipeline):
    import numpy as np

    array = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    out = pipeline(array, fidelity=1.0)
    assert out.images[0].shape == array.shape
    assert out.bits_per_pixel[0] == pytest.approx(8 * len(out.data[0]) / 2400)
