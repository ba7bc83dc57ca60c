from __future__ import annotations

import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.alpha import recompose
from polydit.core.errors import PolyditError
from polydit.tasks.layer_decomposition.data import LayerDecompData
from polydit.tasks.layer_decomposition.mulan import MulanLayers, find_mulan, mulan_layers, read_mulan
from polydit.tasks.layer_decomposition.real_pairs import RemovalPairs, find_rord
from polydit.tasks.layer_decomposition.simulated import rough_mask


def test_simulated_layers_make_their_picture_and_repeat(corpus: Path):
    data = LayerDecompData(str(corpus), size=48, bank=3, num_workers=0, unlabelled=0.5)
    data.setup()
    labelled, shadows = [], 0
    for index in range(24):
        sample = data.train_set[index]
        again = data.train_set[index]
        assert all(torch.equal(sample[name], again[name]) for name in sample)
        labelled.append(bool(sample["has_foreground"]))
        if labelled[-1]:
            background, image = ((sample[name] + 1) / 2 for name in ("background", "image"))
            torch.testing.assert_close(recompose(background, sample["foreground"]), image, atol=1e-5, rtol=0)
            alpha, mask = sample["foreground"][3], sample["mask"][0]
            shadows += int(((alpha > 0.1) & (alpha < 0.75) & (mask == 0)).sum() > 20)
        else:
            assert sample["foreground"].abs().max() == 0
    assert 4 <= sum(labelled) <= 20
    assert shadows > 2


def test_held_out_scenes_come_from_the_held_out_split(corpus: Path):
    data = LayerDecompData(str(corpus), size=48, bank=3, num_workers=0)
    data.setup()
    files = {path.parent.name for path in data.train_set.compositor.cutouts}
    assert files == {"train"}
    assert {path.parent.name for path in data.val_set.compositor.photos} == {"val"}
    assert torch.equal(data.val_set[0]["image"], data.val_set[0]["image"])


def test_rough_masks_stay_near_the_object():
    alpha = torch.zeros(1, 64, 64)
    alpha[:, 20:44, 20:44] = 1
    alpha[:, 19] = alpha[:, 44] = 0.4
    kinds = set()
    for seed in range(40):
        mask = rough_mask(alpha, np.random.default_rng(seed))
        kinds.add(round(float(mask.sum())))
        assert mask[:, 24:40, 24:40].min() == 1
        assert mask[:, :14].max() == 0
    assert len(kinds) >= 4
    assert rough_mask(alpha * 0, np.random.default_rng(0)).max() == 0


def removal_pairs(root: Path, count: int = 2) -> None:
    for number in range(count):
        background = np.full((60, 90, 3), 90 + number, np.uint8)
        image, mask = background.copy(), np.full((60, 90), 255, np.uint8)
        image[20:40, 30:60], mask[20:40, 30:60] = 200, 0  # RORD: 0 is the object
        for part, pixels in (("img", image), ("gt", background), ("mask", mask)):
            (root / "train" / part).mkdir(parents=True, exist_ok=True)
            suffix = "png" if part == "mask" else "jpg"
            Image.fromarray(pixels).save(root / "train" / part / f"s{number}.{suffix}", quality=95)


def test_rord_s_masks_are_inverted(tmp_path: Path):
    removal_pairs(tmp_path)
    pairs = RemovalPairs(find_rord(tmp_path), size=32)
    for sample in (pairs[0], pairs[1]):
        assert not sample["has_foreground"]
        inside = sample["mask"][0] == 1
        assert 0.02 < inside.float().mean() < 0.8
        assert sample["image"][0][inside].mean() > 0.4
        assert sample["background"][0][inside].mean() < 0
        torch.testing.assert_close(
            sample["image"][0][~inside].mean(), sample["background"][0].mean(), atol=0.1, rtol=0
        )


def test_batches_mix_simulated_and_real_samples(corpus: Path, tmp_path: Path):
    removal_pairs(tmp_path / "rord")
    data = LayerDecompData(
        str(corpus), str(tmp_path / "rord"), real_share=0.5, size=48, bank=2, num_workers=0
    )
    data.setup()
    samples = [data.train_set[i] for i in range(20)]
    known = sum(bool(sample["has_foreground"]) for sample in samples)
    assert 4 <= known <= 16
    batch = torch.utils.data.default_collate(samples)
    assert batch["foreground"].shape == (20, 4, 48, 48)


@pytest.mark.parametrize("missing", ["gt", "mask"])
def test_pairs_without_a_partner_are_named(tmp_path: Path, missing: str):
    removal_pairs(tmp_path)
    next((tmp_path / "train" / missing).iterdir()).unlink()
    with pytest.raises(PolyditError, match="there is none for"):
        find_rord(tmp_path)


def mulan_content(seed: int = 0) -> tuple[dict, np.ndarray, list[np.ndarray]]:
    """A file of MULAN's layout, its picture, and the layers that went in: background and two discs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :50]
    alphas = [np.ones((40, 50)), *((np.hypot(y - 20, x - c) < 12).astype(float) for c in (18, 30))]
    colours = [rng.integers(0, 256, (40, 50, 3)) for _ in alphas]
    image, owner = colours[0].copy(), np.zeros((40, 50), int)
    for number in (1, 2):
        image[alphas[number] > 0], owner[alphas[number] > 0] = colours[number][alphas[number] > 0], number
    parts = []
    for number, colour in enumerate(colours):
        seen = owner == number
        delta = (colour * ~seen[..., None]).astype(np.uint8)
        parts.append({"original_image_mask": seen, "inpainted_delta": delta, "blip2": "a disc"})
        if number:
            parts[-1]["instance_alpha"] = (alphas[number] * 255).astype(np.uint8)
    content = {
        "captioning": {"llava": "discs"},
        "background": parts[0],
        "instances": {0: parts[1], 1: parts[2]},
    }
    layers = [np.dstack([c, a * 255]).astype(np.uint8) for c, a in zip(colours, alphas, strict=True)]
    return content, image.astype(np.uint8), layers


def test_mulan_s_layers_are_read(tmp_path: Path):
    content, image, layers = mulan_content()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "0001.p.zl").write_bytes(zlib.compress(pickle.dumps(content)))
    Image.fromarray(image).save(tmp_path / "0001.png")
    found = mulan_layers(read_mulan(tmp_path / "m" / "0001.p.zl"), image)
    assert len(found) == 3
    assert all((mine == true).all() for mine, true in zip(found, layers, strict=True))
    files = find_mulan(tmp_path / "m", tmp_path)
    sample = MulanLayers(files, 32)[0]
    background, picture = ((sample[name] + 1) / 2 for name in ("background", "image"))
    torch.testing.assert_close(recompose(background, sample["foreground"]), picture, atol=1e-5, rtol=0)
    assert sample["has_foreground"]
    data = LayerDecompData(mulan_path=str(tmp_path / "m"), mulan_images=str(tmp_path), size=32, num_workers=0)
    data.setup()
    assert data.train_set[7]["image"].shape == (3, 32, 32)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path(Evil.target),))

    target = ""


def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path: Path):
    Evil.target = str(tmp_path / "touched")
    for number, content in enumerate(({"background": Evil(), "instances": {}}, {"a": 1}, [1])):
        file = tmp_path / f"{number}.p.zl"
        file.write_bytes(zlib.compress(pickle.dumps(content)))
        with pytest.raises(PolyditError, match=r"refused|none of MULAN's"):
            read_mulan(file)
    assert not (tmp_path / "touched").exists()
    (tmp_path / "torn.p.zl").write_bytes(b"not compressed")
    with pytest.raises(PolyditError, match="refused"):
        read_mulan(tmp_path / "torn.p.zl")
    with pytest.raises(PolyditError, match=r"no \*\.p\.zl files"):
        find_mulan(tmp_path / "none", tmp_path)


def test_options_that_contradict_each_other(corpus: Path):
    with pytest.raises(PolyditError, match="real_share 2"):
        LayerDecompData(str(corpus), real_share=2)
    with pytest.raises(PolyditError, match="give both"):
        LayerDecompData(str(corpus), mulan_path="x")
    with pytest.raises(PolyditError, match="no corpus is here"):
        LayerDecompData(str(corpus / "photos")).setup()
