"""Training: the documented command, what it writes, and that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.cli import main
from polydit.core.errors import PolyditError
from polydit.tasks.compression.codec import step_of
from polydit.tasks.compression.data import CompressionData
from polydit.tasks.compression.data_sets import pictures_in
from polydit.tasks.compression.model import PictureCompression
from polydit.tasks.compression.picture_codec import PictureCodec
from polydit.tasks.compression.weights import open_weights

from .conftest import picture, tensor

SIZES = {"width": 8, "coarse_width": 8, "latent_width": 8, "pixel_width": 8, "pixel_depth": 1}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(6):
        Image.fromarray(picture(100, 120, seed)).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of three steps with the documented command."""
    runs = tmp_path_factory.mktemp("runs")
    sizes = [
        word
        for name, value in SIZES.items()
        for word in (f"--model.init_args.backbone.init_args.{name}", value)
    ]
    data = ["--data.init_args.path", photos, "--data.init_args.crop", 64, "--data.init_args.num_workers", 0]
    limits = ["--trainer.max_steps", 3, "--trainer.max_time", "null", "--trainer.accelerator", "cpu"]
    words = ["--config", "small.yaml", *sizes, *data, *limits, "--name", "a", "--output", runs]
    assert main(list(map(str, ["compression", "fit", *words]))) == 0
    return runs / "compression/a"


def test_fit_writes_a_pipeline_that_codes(trained: Path, photos: Path, tmp_path: Path):
    weights = trained / "pipeline"
    assert (trained / "checkpoints/last.ckpt").is_file()
    assert len(list((trained / "pictures").glob("*.png"))) >= 1
    words = ["encode", photos / "0.png", tmp_path / "a.pdc", "--weights", weights]
    assert main(list(map(str, ["compression", *words]))) == 0
    words = ["decode", tmp_path / "a.pdc", tmp_path / "a.png", "--weights", weights]
    assert main(list(map(str, ["compression", *words]))) == 0
    assert Image.open(tmp_path / "a.png").size == (120, 100)


def test_training_goes_on_from_a_pipeline(trained: Path):
    """Integers become weights again; weights of another size are refused."""
    folder = str(trained / "pipeline")
    module = PictureCompression(PictureCodec(**SIZES), init_weights=folder)
    saved = open_weights(folder).codec
    pixels = tensor(picture(64, 64))[None]
    with torch.no_grad():
        bits = [float(codec(pixels, torch.tensor([90]), 0.1).bits) for codec in (module.backbone, saved)]
    assert bits[0] == pytest.approx(bits[1], rel=0.02)
    with pytest.raises(PolyditError, match="a codec of other sizes"):
        PictureCompression(PictureCodec(**{**SIZES, "width": 12}), init_weights=folder)


def test_it_learns_from_neighbours():
    """On noise of unknown strength, contexts save several percent of the bits within seconds.

    Without them, that is with heads that see nothing, the same steps save nothing: the statistics were right already.
    """

    def batch(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(4, 3, 64, 64, generator=generator)
        strength = torch.rand(4, 1, 1, 1, generator=generator) ** 4
        return noise * torch.nn.functional.interpolate(strength, size=64) * 0.6

    def bits(codec: PictureCodec) -> float:
        with torch.no_grad():
            return sum(float(codec(batch(seed), torch.full((4,), 90)).bits.mean()) for seed in (1000, 1001))

    saved = {}
    for blind in (False, True):
        torch.manual_seed(0)
        codec = PictureCodec(**{**SIZES, "width": 16})
        codec.start_from(batch(0))
        parameters = [*codec.fine.parameters(), *codec.coarse.parameters()]
        if blind:
            for head in (*codec.fine.heads, *codec.coarse.heads):
                head.weight.data.zero_()
                head.weight.requires_grad_(False)
        optimizer = torch.optim.Adam([p for p in parameters if p.requires_grad], 1e-2)
        before = bits(codec)
        for step in range(25):
            optimizer.zero_grad()
            codec(batch(step), torch.full((4,), 90)).bits.mean().backward()
            optimizer.step()
        saved[blind] = 1 - bits(codec) / before
    assert saved[False] > 0.05
    assert saved[True] < 0.01


def test_the_loss_is_rate_and_distortion():
    module = PictureCompression(PictureCodec(**SIZES), balance=0.04)
    pictures = torch.stack([tensor(picture(64, 64, seed)) for seed in range(2)])
    with torch.no_grad():
        terms, output = module.losses({"picture": pictures}, first=0)
        quality = module.qualities(2, 0)
        coded = module.backbone(pictures, quality, module.thrift)
    error = ((coded.pictures - pictures) * 127.5).square().mean((1, 2, 3))
    assert float(terms["rate"]) == pytest.approx(
        float((coded.bits / 64**2 * module.emphasis(quality)).mean())
    )
    expected = (error / (0.04 * step_of(quality) ** 2) * module.emphasis(quality)).mean()
    assert float(terms["distortion"]) == pytest.approx(float(expected), rel=1e-4)
    assert torch.equal(output.x0, coded.pictures)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"balance": 0.0}, "--model.balance"),
        ({"thrift": -1.0}, "--model.thrift"),
    ],
)
def test_settings_are_checked(settings: dict, message: str):
    with pytest.raises(PolyditError, match=message):
        PictureCompression(PictureCodec(**SIZES), **settings)
    with pytest.raises(PolyditError, match="integers cannot be trained"):
        PictureCompression(PictureCodec(**SIZES, frozen=True))
    with pytest.raises(PolyditError, match="a multiple of 64"):
        CompressionData(crop=100)


def test_data_sets_are_found_by_their_folders(tmp_path: Path):
    def put(*names: str) -> None:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)

    put("DIV2K/DIV2K_train_HR/0001.png", "DIV2K/DIV2K_valid_HR/0801.png")
    put("clic/professional_train/a.png", "clic/mobile_train/b.png", "clic/professional_valid/c.png")
    put(*(f"kodak/kodim{number:02d}.png" for number in range(1, 25)))
    put(*(f"own/{number}.png" for number in range(20)))

    def names(folder: str, part: str | None) -> list[str]:
        return [file.name for file in pictures_in(tmp_path / folder, part)]

    assert names("DIV2K", "train") == ["0001.png"]
    assert names("DIV2K", "val") == ["0801.png"]
    assert names("clic", "train") == ["a.png", "b.png"]
    assert names("clic", "val") == ["c.png"]
    assert len(names("kodak", "val")) == 24
    with pytest.raises(PolyditError, match="Kodak is for evaluation only"):
        names("kodak", "train")
    assert len(names("own", "train")) == 18
    assert not set(names("own", "train")) & set(names("own", "val"))
    (tmp_path / "clic/professional_train/a.png").unlink()
    (tmp_path / "clic/professional_train").rmdir()
    (tmp_path / "clic/mobile_train/b.png").unlink()
    (tmp_path / "clic/mobile_train").rmdir()
    with pytest.raises(PolyditError, match="CLIC without its part for training"):
        names("clic", "train")
