"""Drawn people and garments: the same from the same seed, disjoint between splits, and right where it matters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polydit.core.errors import PolyditError
from polydit.tasks.virtual_try_on.data import DrawnPairs, SyntheticTryOn
from polydit.tasks.virtual_try_on.synthetic import draw_scene
from polydit.tasks.virtual_try_on.synthetic.body import SPLITS, _build, draw_body
from polydit.tasks.virtual_try_on.synthetic.garment import KINDS, draw_garment
from polydit.tasks.virtual_try_on.synthetic.sources import CorpusSources, ProceduralSources

SIZE = (48, 32)
PICTURES = ProceduralSources()


def scenes(count: int = 12, **options):
    return [draw_scene(number, SIZE, PICTURES, **options) for number in range(count)]


def test_a_number_is_a_scene():
    one, same = (draw_scene(5, SIZE, PICTURES) for _ in range(2))
    other = draw_scene(5, SIZE, PICTURES, seed=1)
    np.testing.assert_array_equal(one.person, same.person)
    np.testing.assert_array_equal(one.garment, same.garment)
    assert np.abs(one.person - other.person).mean() > 0.02


def test_a_scene_is_the_same_at_any_size():
    small, large = draw_scene(7, SIZE, PICTURES), draw_scene(7, (96, 64), PICTURES)
    for name in ("person", "garment"):
        reduced = getattr(large, name).reshape(48, 2, 32, 2, 3).mean((1, 3))
        assert np.abs(reduced - getattr(small, name)).mean() < 0.02


def test_splits_share_no_body():
    cells = {
        split: {
            tuple((_build(np.random.default_rng([number, 9]), split) * 10).astype(int))
            for number in range(400)
        }
        for split in SPLITS
    }
    assert not cells["train"] & cells["test"]
    assert not cells["train"] & cells["val"]
    assert not cells["val"] & cells["test"]


def test_a_garment_does_not_change_who_wears_it():
    own, other = draw_scene(3, SIZE, PICTURES), draw_scene(3, SIZE, PICTURES, garment=8)
    outside = (own.mask == 0) & (own.worn == 0) & (other.worn == 0)
    np.testing.assert_array_equal(own.mask, other.mask)
    # Shadows of an arm may fall on what is outside of the mask; nothing else differs there.
    np.testing.assert_allclose(own.person[outside], other.person[outside], atol=1e-6)
    np.testing.assert_array_equal(other.garment, draw_scene(8, SIZE, PICTURES).garment)
    assert np.abs(own.person - other.person)[own.mask > 0].mean() > 0.05


def test_masks_hide_the_garment_and_never_the_face():
    for scene in scenes():
        assert scene.mask[scene.worn > 0.5].mean() > 0.995
        assert set(np.unique(scene.mask)) == {0, 1}
        assert 0.1 < scene.mask.mean() < 0.75
        assert scene.worn.mean() > 0.05


def test_hulls_are_larger_than_bodies():
    for kind in ("hull", "painted"):
        for body, more in zip(scenes(4, mask="body"), scenes(4, mask=kind), strict=True):
            assert more.mask.mean() >= body.mask.mean()


def test_the_worn_garment_has_the_colours_of_the_flat_one():
    flat, worn = [], []
    for scene in scenes(16):
        flat.append(np.median(scene.garment[scene.garment_mask > 0.9], axis=0))
        worn.append(np.median(scene.person[scene.worn > 0.9], axis=0))
    flat, worn = np.array(flat), np.array(worn)
    distances = np.abs(flat[:, None] - worn[None]).mean(-1)
    own = distances.diagonal()
    assert (own[:, None] <= distances).mean() > 0.9  # nearer to its own than to nine in ten of the others
    assert own.mean() < 0.12


def test_all_kinds_are_drawn_and_masks_do_not_tell_them():
    garments = [draw_garment(np.random.default_rng(n), PICTURES, 60) for n in range(40)]
    assert {garment.kind for garment in garments} == set(KINDS)
    short, long = (
        next(n for n in range(40) if draw_scene(n, SIZE, PICTURES).kind == kind)
        for kind in ("tank", "long sleeves")
    )
    masks = [draw_scene(2, SIZE, PICTURES, garment=n).mask for n in (short, long)]
    np.testing.assert_array_equal(*masks)


def test_torso_coordinates_turn_back():
    body = draw_body(np.random.default_rng(4), "train", 2 / 3)
    for across, down in ((0.0, 0.0), (0.2, 0.4), (-0.3, 0.13), (0.1, 1.0)):
        point = body.torso.point(across, down)
        back = body.torso.coordinates(*(np.float32([value]) for value in point))
        np.testing.assert_allclose([back[0][0], back[1][0]], [across, down], atol=2e-3)


def test_a_corpus_is_read_by_its_splits(tmp_path: Path):
    from polydit.core.data.corpus.manifest import Record, save_manifest

    records = []
    for split, folder in (("train", "{}/train"), ("val", "{}/val"), ("reserved", "reserved/{}")):
        for kind, mode in (("photos", "RGB"), ("cutouts", "RGBA")):
            file = f"{folder.format(kind)}/a.png"
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            colour = {"train": 40, "val": 120, "reserved": 200}[split]
            Image.new(mode, (40, 30), (colour,) * len(mode)).save(tmp_path / file)
            records.append(Record(file, kind, split, "", "p", "1", "s", "CC0-1.0", 40, 30, 1, "0"))
    save_manifest(tmp_path, records)
    rng = np.random.default_rng(0)
    for split, colour in (("train", 40), ("val", 120), ("test", 200)):
        sources = CorpusSources(tmp_path, split)
        assert (sources.photo(rng) == colour).all()
        assert sources.cutout(rng).shape == (30, 40, 4)
    draw_scene(0, SIZE, sources)


def test_drawn_pairs_are_kept_and_mirrored_every_other_time():
    pairs = DrawnPairs(SIZE, PICTURES, distinct=3, length=12)
    first, mirrored, third = pairs[1], pairs[4], pairs[7]
    for name in ("person", "garment", "mask", "masked_person", "worn_mask", "garment_mask"):
        np.testing.assert_array_equal(mirrored[name].numpy(), first[name].flip(-1).numpy())
        np.testing.assert_array_equal(third[name].numpy(), first[name].numpy())
    assert first["person"].min() >= -1
    assert first["person"].max() <= 1
    assert (first["masked_person"][first["mask"].expand(3, -1, -1) == 1] == 0).all()


def test_unpaired_scenes_show_what_the_person_wore_and_another_garment():
    paired = DrawnPairs(SIZE, PICTURES, distinct=4, mask="body")
    unpaired = DrawnPairs(SIZE, PICTURES, distinct=4, mask="body", shift=1)
    for number in range(4):
        np.testing.assert_array_equal(unpaired[number]["person"], paired[number]["person"])
        np.testing.assert_array_equal(unpaired[number]["garment"], paired[(number + 1) % 4]["garment"])
    assert "worn_mask" not in unpaired[0]


def test_settings_that_cannot_be_are_one_line(tmp_path: Path):
    with pytest.raises(PolyditError, match=r": no corpus there; make one with `polydit corpus build"):
        SyntheticTryOn(str(tmp_path)).setup()
    with pytest.raises(PolyditError, match=r"--data.masks: 'round' is unknown"):
        SyntheticTryOn(masks="round")
    with pytest.raises(PolyditError, match=r"--data.height 8: too small"):
        SyntheticTryOn(height=8)
    with pytest.raises(PolyditError, match="give 1 or more scenes"):
        SyntheticTryOn(distinct=0)


def test_drawn_files_are_a_data_set(tmp_path: Path):
    from polydit.core.cli import main
    from polydit.tasks.virtual_try_on.data import VitonHD

    words = ["--count", "3", "--height", "48", "--width", "32", "--corpus", "none", "--split", "test"]
    out = tmp_path / "drawn"
    command = ["virtual-try-on", "draw", "--output", str(out), "--sheet", str(tmp_path / "s.png"), *words]
    assert main(command) == 0
    data = VitonHD(str(out), height=48, width=32)
    data.setup("validate")
    assert len(data.val_set) == 3
    pairs = DrawnPairs((48, 32), PICTURES, split="test", distinct=3, mask="body")
    for name in ("person", "garment", "mask", "masked_person"):
        np.testing.assert_array_equal(data.val_set[1][name], pairs[1][name])
    assert Image.open(tmp_path / "s.png").size == (3 * 38 - 6, 4 * 54 - 6)
    assert main(command) == 2  # nothing is replaced unasked
