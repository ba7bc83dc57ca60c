"""DiT-IC through the commands' functions: files with alpha, other weights, and what cannot be asked for."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.errors import PolyditError
from polydit.core.media.writer import OutputWriter
from polydit.tasks.compression import command
from polydit.tasks.compression.container import read_container, read_header
from polydit.tasks.compression.dit_ic import system
from polydit.tasks.compression.dit_ic.pipeline import DiTICPipeline
from polydit.tasks.compression.predict import predict_one


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    place = tmp_path_factory.mktemp("source") / "half.png"
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 13, 4), dtype=np.uint8)
    Image.fromarray(pixels).resize((90, 70), Image.Resampling.BICUBIC).save(place)
    return place


def options(folder, source, output, **settings):
    return Namespace(
        source=source, output=output, weights=folder, device="cpu", dtype="float32", overwrite=False,
        **{"metadata": False, "quality": 5.0, "target_bpp": None, "target_size": None, "system": "DiT-IC",
           "fidelity": None, **settings},
    )  # fmt: skip


@pytest.fixture(scope="module")
def coded(folder, source, tmp_path_factory):
    place = tmp_path_factory.mktemp("coded") / "half.pdc"
    assert command.encode(options(folder, source, place)) == 0
    return place


def test_commands(pipeline, folder, source, coded, tmp_path, capsys):
    for name, fidelity in (("full.png", None), ("plain.png", 1.0)):
        command.decode(options(folder, coded, tmp_path / name, fidelity=fidelity))
    full, plain = (np.asarray(Image.open(tmp_path / name)) for name in ("full.png", "plain.png"))
    given = np.asarray(Image.open(source))
    assert full.shape == given.shape == (70, 90, 4)
    assert np.array_equal(full[..., 3], given[..., 3])
    assert not np.array_equal(full[..., :3], plain[..., :3])
    content = read_container(coded.read_bytes(), coded)
    expected = system.decode_still(pipeline, content, coded, 1.0)
    assert np.array_equal(expected.pixels, plain[..., :3])
    assert read_header(coded.read_bytes(), coded).codec == system.NUMBER
    assert coded.stat().st_size < 24 + len(content.data) + len(content.sections[1]) + 12
    assert "70" in capsys.readouterr().err


def test_predict(pipeline, folder, source, tmp_path):
    record = predict_one(
        pipeline, source, OutputWriter(tmp_path), options(folder, source, None), torch.Generator()
    )
    assert record["bytes"] == (tmp_path / "half.pdc").stat().st_size
    assert record["bits_per_pixel"] == pytest.approx(8 * record["bytes"] / 6300, abs=1e-4)
    assert "quality" not in record


def test_other_weights_are_named(parts_with_seed, pipeline, coded):
    other = DiTICPipeline(**parts_with_seed(1))
    content = read_container(coded.read_bytes(), coded)
    wanted, has = pipeline.identity.hex(), other.identity.hex()
    with pytest.raises(PolyditError, match=f"coded with the weights {wanted}, and these are {has}"):
        system.decode_still(other, content, coded)


def test_what_cannot_be_asked_for(folder, source, tmp_path):
    target = tmp_path / "a.pdc"
    with pytest.raises(PolyditError, match="DiT-IC's weights have one rate each"):
        command.encode(options(folder, source, target, target_bpp=0.1))
    with pytest.raises(PolyditError, match=r"^--weights: DiT-IC has no weights of its own here"):
        command.encode(options(None, source, target))
    assert not target.exists()
