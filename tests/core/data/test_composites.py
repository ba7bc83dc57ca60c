from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from polydit.core.data.composites import CompositeOptions, Compositor, blend, flatten
from polydit.core.errors import PolyditError


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    photos, cutouts = [], []
    for number in range(3):
        photos.append(tmp_path / f"photo{number}.png")
        noise = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC).save(photos[-1])
        cutouts.append(tmp_path / f"cutout{number}.png")
        y, x = np.mgrid[:90, :70]
        alpha = (255 * np.clip(30 - np.hypot(x - 35, y - 45), 0, 1)).astype(np.uint8)
        color = np.full((90, 70, 3), (200, 40 * number, 30), np.uint8)
        Image.fromarray(np.dstack([color, alpha])).save(cutouts[-1])
    return photos, cutouts


def test_same_generator_state_same_composite_other_seed_another(files):
    compositor = Compositor(*files, size=64)
    one, two, other = (compositor(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(one.image, two.image)
    assert np.array_equal(one.alpha, two.alpha)
    assert one.sources == two.sources
    assert not np.array_equal(one.image, other.image)


def test_plain_composites_are_exactly_layers_over_background(files):
    compositor = Compositor(
        *files, size=(48, 64), options=CompositeOptions.plain(count=(2, 2), scale=(0.5, 0.7))
    )
    for seed in range(5):
        it = compositor(np.random.default_rng(seed))
        assert it.image.shape == (48, 64, 3)
        assert len(it.layers) == 2
        assert np.abs(it.exact() - it.image).max() <= 0.5
        clear = it.alpha == 0
        assert clear.any()
        assert np.array_equal(it.image[clear], it.background[clear])
        opaque = it.layers[-1][..., 3] == 255
        assert np.array_equal(it.image[opaque], it.layers[-1][..., :3][opaque])
        a, color = it.alpha[..., None], it.foreground[..., :3].astype(np.float32)
        assert np.abs(it.background * (1 - a) + color * a - it.exact()).max() < 2.0  # 8 bit colours and alpha


def test_degradation_moves_the_picture_only(files):
    options = CompositeOptions.plain(degrade=1.0, noise=20.0, jpeg=(20, 30))
    it = Compositor(*files, size=64, options=options)(np.random.default_rng(1))
    assert 0.5 < np.abs(it.exact() - it.image).mean() < 20


def test_degradation_is_of_the_same_strength_inside_and_outside(files):
    options = CompositeOptions.plain(degrade=1.0, noise=20.0)
    ratios = []
    for seed in range(12):
        it = Compositor(*files, size=96, options=options)(np.random.default_rng(seed))
        error = np.abs(it.exact() - it.image).mean(-1)
        inside = it.alpha > 0.5
        ratios.append(error[inside].mean() / error[~inside].mean())
    assert 0.7 < np.mean(ratios) < 1.3


def test_coverage_is_kept_within_its_limits(files):
    options = CompositeOptions.plain(coverage=(0.1, 0.2))
    compositor = Compositor(*files, size=64, options=options)
    shares = [compositor(np.random.default_rng(seed)).alpha.mean() for seed in range(10)]
    assert 0.1 <= min(shares) <= max(shares) <= 0.2


def test_every_kind_of_change_does_change_the_picture(files):
    base = CompositeOptions.plain()
    plain = Compositor(*files, size=64, options=base)
    for change in (
        {"color": 1.0},
        {"harmonize": 1.0},
        {"background_blur": 1.0},
        {"foreground_blur": 1.0},
        {"distractors": (3, 3)},
    ):
        changed = Compositor(*files, size=64, options=replace(base, **change))
        differ = [
            not np.array_equal(plain(np.random.default_rng(s)).image, changed(np.random.default_rng(s)).image)
            for s in range(6)
        ]
        assert any(differ), change


def test_files_without_transparency_are_passed_over(files):
    photos, cutouts = files
    options = CompositeOptions.plain()
    compositor = Compositor(photos, [photos[0], cutouts[1]], size=64, options=options)
    assert {compositor(np.random.default_rng(s)).sources[1] for s in range(8)} == {cutouts[1]}
    with pytest.raises(PolyditError, match="100 cut-outs in a row"):
        Compositor(photos, photos, size=64, options=options)(np.random.default_rng(0))


def test_flattened_layers_look_the_same_over_any_background():
    rng = np.random.default_rng(0)
    layers = [rng.integers(0, 256, (8, 8, 4), dtype=np.uint8) for _ in range(3)]
    for value in (0, 128, 255):
        background = np.full((8, 8, 3), value, np.uint8)
        assert np.abs(blend(background, layers) - blend(background, [flatten(layers)])).max() < 2


def test_empty_lists_and_folders_without_manifest_are_refused(files, tmp_path):
    with pytest.raises(PolyditError, match="empty"):
        Compositor([], files[1])
    with pytest.raises(PolyditError, match="no corpus is here"):
        Compositor.from_corpus(tmp_path)
