"""Pictures of many shapes, and latents and captions cached from them."""

from __future__ import annotations

import collections
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.autoencoders import PixelSpace
from polydit.core.data.buckets import (
    BucketedPictures,
    BucketSampler,
    bucket_loader,
    bucket_sizes,
    nearest_bucket,
)
from polydit.core.data.cache import fingerprint
from polydit.core.data.latents import CachedCaptions, cache_latents, cache_texts
from polydit.core.errors import PolyditError


def test_sizes_have_one_area_and_every_ratio():
    sizes = bucket_sizes(512, 64, 2.0)
    assert (512, 512) in sizes
    assert all(h % 64 == 0 and w % 64 == 0 and h * w <= 512 * 512 for h, w in sizes)
    assert all(h * w > 0.85 * 512 * 512 for h, w in sizes)
    assert sorted(sizes) == sorted((w, h) for h, w in sizes), "upright as many as wide"
    assert max(w / h for h, w in sizes) <= 2
    assert bucket_sizes(512, 64, 1.0) == [(512, 512)]


@pytest.mark.parametrize(("resolution", "ratio"), [(500, 2.0), (0, 2.0), (512, 0.5)])
def test_impossible_sizes_are_refused(resolution, ratio):
    with pytest.raises(PolyditError, match="must be"):
        bucket_sizes(resolution, 64, ratio)


def test_nearest_is_by_ratio():
    sizes = bucket_sizes(512, 64, 2.0)
    assert sizes[nearest_bucket((100, 100), sizes)] == (512, 512)
    height, width = sizes[nearest_bucket((1080, 1920), sizes)]
    assert width / height == pytest.approx(16 / 9, rel=0.12)
    assert sizes[nearest_bucket((9000, 100), sizes)][0] == max(h for h, _ in sizes)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twelve pictures of three shapes, two of them with captions; one too small, one damaged."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(12):
        shape = [(40, 40), (30, 60), (64, 33)][number % 3]
        pixels = np.full((*shape, 3), 20 * number, np.uint8)
        pixels[:, : shape[1] // 2] = rng.integers(0, 255, 3)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number:02d}.png")
    (tmp_path / "pictures/00.txt").write_text("a square\n")
    (tmp_path / "pictures/01.txt").write_text("wide")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "pictures/small.png")
    (tmp_path / "pictures/broken.png").write_bytes(b"\x89PNG\r\n")
    return tmp_path / "pictures"


def test_pictures_cover_their_bucket(folder):
    data = BucketedPictures(folder, 32, 8)
    assert len(data) == 12
    shapes = {data.sizes[bucket] for bucket in data.bucket_of}
    assert len(shapes) == 3
    sample = data[0]
    assert sample["pixels"].shape == (3, 32, 32)
    assert sample["caption"] == "a square"
    assert data[2]["caption"] == ""
    assert -1 <= sample["pixels"].min() <= sample["pixels"].max() <= 1
    # the border between the halves stays in the middle: nothing is shifted or squeezed
    row = sample["pixels"][0, 16]
    assert abs(row[:12] - row[0]).max() < 0.05
    assert abs(row[20:] - row[-1]).max() < 0.05


def test_what_was_refused_is_told(folder):
    lines = "\n".join(BucketedPictures(folder, 32, 8).describe())
    assert "32x32: 4 pictures" in lines
    assert "unreadable: 1, " in lines
    assert "too small: 1, " in lines
    assert "small.png: 8x8" in lines
    with pytest.raises(
        PolyditError, match=r"none of 14 pictures fits 512 pixels: 1 unreadable \(.*; 13 too small \("
    ):
        BucketedPictures(folder, 512)
    assert len(BucketedPictures(folder, 32, 8, enlarge=4)) == 13


def run(seen: int = 0, world: int = 1, rank: int = 0, limit: float | int = 1.0) -> SimpleNamespace:
    """What the sampler asks of a trainer."""
    module = SimpleNamespace(samples_seen=seen)
    return SimpleNamespace(
        world_size=world, global_rank=rank, limit_train_batches=limit, lightning_module=module
    )


BUCKET_OF = [0] * 10 + [1] * 7 + [2] * 1


def test_a_batch_is_of_one_bucket_and_every_picture_comes():
    sampler = BucketSampler(BUCKET_OF, run(), 4, seed=1)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 3 + 2 + 1
    assert all(len(batch) == 4 and len({BUCKET_OF[i] for i in batch}) == 1 for batch in batches)
    counts = collections.Counter(i for batch in batches for i in batch)
    assert set(counts) == set(range(18))
    assert batches != list(BucketSampler(BUCKET_OF, run(), 4, seed=2))


def test_order_goes_on_where_a_run_stopped_and_changes_with_the_epoch():
    straight = [list(BucketSampler(BUCKET_OF, run(epoch * 24), 4)) for epoch in range(2)]
    assert straight[0] != straight[1]
    assert list(BucketSampler(BUCKET_OF, run(8), 4)) == straight[0][2:]
    assert list(BucketSampler(BUCKET_OF, run(24 + 20), 4)) == straight[1][5:]


def test_two_processes_share_each_batch():
    one = list(BucketSampler(BUCKET_OF, run(), 4))
    first, second = (list(BucketSampler(BUCKET_OF, run(world=2, rank=rank), 2)) for rank in (0, 1))
    assert [a[0::2] for a in one] == first
    assert [a[1::2] for a in one] == second


def test_a_limit_ends_the_epoch():
    assert BucketSampler(BUCKET_OF, run(8, limit=2), 4).place() == (1, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_stacks_a_bucket(folder, workers):
    data = BucketedPictures(folder, 32, 8)
    loader = bucket_loader(data, data.bucket_of, run(), 2, num_workers=workers)
    batches = list(loader)
    assert len(batches) == len(loader) == 6
    assert {tuple(b["pixels"].shape) for b in batches} == {
        (2, 3, *data.sizes[n]) for n in set(data.bucket_of)
    }
    assert len({name for b in batches for name in b["name"]}) == 12


# -- latents and captions ------------------------------------------------------------------------------------


class Halving(PixelSpace):
    """An autoencoder that counts what it encodes."""

    def __init__(self) -> None:
        super().__init__(3)
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.encoded = 0

    def encode(self, pixels, sample=False, generator=None):
        self.encoded += len(pixels)
        return torch.nn.functional.avg_pool2d(pixels, 2) * self.weight


def test_latents_are_encoded_once_and_again_when_something_changes(folder, tmp_path, capsys):
    pictures, autoencoder = BucketedPictures(folder, 32, 8), Halving()
    latents = cache_latents(pictures, autoencoder, tmp_path / "cache")
    assert autoencoder.encoded == 12
    expected = torch.nn.functional.avg_pool2d(pictures.pixels(1)[None], 2)[0]
    torch.testing.assert_close(latents[1]["latents"].float(), expected, atol=1e-3, rtol=1e-3)
    assert latents[1]["name"].endswith("01.png")

    cache_latents(BucketedPictures(folder, 32, 8), autoencoder, tmp_path / "cache")
    assert autoencoder.encoded == 12, "nothing changed"
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "00.png")
    cache_latents(BucketedPictures(folder, 32, 8), autoencoder, tmp_path / "cache")
    assert autoencoder.encoded == 13, "one picture changed"
    cache_latents(BucketedPictures(folder, 24, 8), autoencoder, tmp_path / "cache")
    assert autoencoder.encoded == 25, "the size changed"
    capsys.readouterr()
    with torch.no_grad():
        autoencoder.weight += 0.5
    changed = cache_latents(BucketedPictures(folder, 32, 8), autoencoder, tmp_path / "cache")
    assert autoencoder.encoded == 37, "the autoencoder changed"
    assert "made with other settings (autoencoder " in capsys.readouterr().err
    torch.testing.assert_close(changed[1]["latents"].float(), 1.5 * expected, atol=1e-2, rtol=1e-2)


def test_captions_join_their_latents_and_are_dropped_at_random(folder, tmp_path):
    pictures = BucketedPictures(folder, 32, 8)
    captions = [pictures.caption(i) for i in range(len(pictures))]
    embedded = []

    def encode(texts: list[str]) -> dict[str, torch.Tensor]:
        embedded.extend(texts)
        return {"prompt_embeds": torch.tensor([[float(len(text))] * 2 for text in texts])}

    texts = cache_texts([*captions, ""], encode, "lengths", tmp_path / "cache", longest=77)
    assert sorted(embedded) == ["", "a square", "wide"]
    texts = cache_texts(captions, encode, "lengths", tmp_path / "cache", longest=77)
    assert len(embedded) == 3
    data = CachedCaptions(cache_latents(pictures, Halving(), tmp_path / "cache"), texts)
    sample = data[0]
    assert sample["latents"].shape == (3, 16, 16)
    assert sample["prompt_embeds"].tolist() == [8, 8]
    dropping = CachedCaptions(data.latents, texts, drop_caption=0.5)
    drawn = [dropping[12 * epoch]["prompt_embeds"][0].item() for epoch in range(40)]
    assert 8 < drawn.count(0) < 32
    assert drawn == [dropping[12 * epoch]["prompt_embeds"][0].item() for epoch in range(40)]
    with pytest.raises(ValueError, match="do not belong together"):
        CachedCaptions(
            data.latents, cache_texts(captions[:3], encode, "lengths", tmp_path / "cache", longest=77)
        )


def test_fingerprint_of_an_autoencoder_is_stable():
    assert fingerprint(Halving()) == fingerprint(Halving())
