"""Episodes: composed ones, and the layouts of published data sets."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.data.corpus.manifest import Record, save_manifest
from polydit.core.errors import PolyditError
from polydit.tasks.segmentation.few_shot.composed import DrawnShapes, corpus_episodes, drawn_episodes
from polydit.tasks.segmentation.few_shot.data import FewShotData, episodes_of, held_out
from polydit.tasks.segmentation.few_shot.episodes import EpisodeGroups, EpisodeSet, EveryPicture
from polydit.tasks.segmentation.few_shot.layouts import coco_20i, fss_1000, pascal_5i

sys.path.insert(0, str(Path(__file__).parent))


def test_an_episode_depends_on_seed_and_number_only():
    data = EpisodeSet(drawn_episodes("val"), 10, shots=2, size=32, seed=4)
    first = data[3]
    data[0]
    again = EpisodeSet(drawn_episodes("val"), 10, shots=2, size=32, seed=4)[3]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["support"].shape == (2, 3, 32, 32)
    assert first["support_mask"].unique().tolist() == [0, 1]
    assert first["query"].abs().max() <= 1
    assert not torch.equal(data[4]["query"], first["query"])


def test_a_group_asks_the_same_pictures_about_different_things():
    data = EpisodeGroups(drawn_episodes("train"), 10, episodes=12, shots=2, sizes={32: 1.0}, seed=1)
    group = data[5]
    assert group["query"].shape == (12, 3, 32, 32)
    pictures = {q.numpy().tobytes() for q in group["query"]}
    assert 2 <= len(pictures) <= 6
    asked = {
        (q.numpy().tobytes(), int(label)) for q, label in zip(group["query"], group["label"], strict=True)
    }
    assert len(asked) > len(pictures), "a picture is asked about several things"
    for query, supports in zip(group["query"], group["support"], strict=True):
        assert not any(torch.equal(query, support) for support in supports)
    assert group["support_mask"].flatten(2).any(2).all()


def test_sizes_are_the_same_within_a_batch():
    data = EpisodeGroups(drawn_episodes("train"), 40, episodes=2, sizes={16: 0.5, 24: 0.5}, batch=4, seed=1)
    sides = [data[i]["query"].shape[-1] for i in range(16)]
    assert all(len(set(sides[i : i + 4])) == 1 for i in range(0, 16, 4))
    assert set(sides) == {16, 24}


def test_drawn_classes_of_training_and_evaluation_are_disjoint():
    train, val = drawn_episodes("train"), drawn_episodes("val")
    assert not set(train.classes) & set(val.classes)
    shapes = DrawnShapes(2)
    rng = np.random.default_rng(0)
    alpha = [np.asarray(shapes.draw(rng, 0).getchannel("A")) for _ in range(2)]
    np.testing.assert_array_equal(*alpha)


@pytest.fixture
def corpus(tmp_path):
    """Two photographs and three cut-outs a split, one of them a line that is too thin."""
    records = []
    for number, split in enumerate(("train", "val", "reserved")):
        where = "reserved" if split == "reserved" else None
        for kind, count in (("photos", 2), ("cutouts", 3)):
            folder = Path(where, kind) if where else Path(kind, split)
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                name = folder / f"{split}-{kind}-{i}.png"
                array = np.full((60, 60, 4 if kind == "cutouts" else 3), 40 * i + 20 * number, np.uint8)
                if kind == "cutouts":
                    array[..., 3] = 0
                    array[10:50, 10:50, 3] = 255
                    if i == 2:
                        array[..., 3] = 255 * np.eye(60, dtype=np.uint8)
                Image.fromarray(array).save(tmp_path / name)
                records.append(
                    Record(
                        str(name),
                        kind,
                        split,
                        "photo" if kind == "photos" else "",
                        "p",
                        "1",
                        "s",
                        "l",
                        60,
                        60,
                        1,
                        "x",
                    )
                )
    save_manifest(tmp_path, records)
    return tmp_path


def test_classes_of_a_corpus_are_disjoint_by_split(corpus):
    found = {split: corpus_episodes(corpus, split).classes for split in ("train", "val")}
    assert len(found["train"]) == 3
    assert not set(found["train"]) & set(found["val"])
    with pytest.raises(PolyditError, match="evaluation only"):
        corpus_episodes(corpus, "reserved")
    episodes = held_out(corpus, "corpus", "reserved", 0, 20, 1, 32)
    assert all("reserved" in name for name in episodes.source.classes)
    labels = {episodes.draw(i).label for i in range(20)}
    assert labels == {0, 1}, "a thing that is a line of a pixel is left out"


def test_masks_are_what_is_seen_of_the_thing(corpus):
    source = corpus_episodes(corpus, "val")
    rng = np.random.default_rng(0)
    for _ in range(5):
        scene = source.scene(rng, [0, 1], 64)
        assert set(np.unique(scene.owner)) <= {-1, 0, 1}
        assert not (scene.showing(0).mask & scene.showing(1).mask).any()
        for number in (0, 1):
            pixels = scene.image[scene.showing(number).mask]
            if len(pixels):  # its grey, up to the change of light, and the rim
                assert abs(np.median(pixels) - (40 * number + 20)) < 25


def picture(path: Path, level: int = 100, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, 30, 60)).save(path)


def mask(path: Path, value: int, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(size[::-1], np.uint8)
    array[4:10, 5:12] = value
    array[0, 0] = 255
    Image.fromarray(array).save(path)


@pytest.fixture
def coco(tmp_path):
    """Classes 1 and 5 are tested in fold 1, classes 2 and 3 are trained on."""
    lists = {}
    for number in (1, 2, 3, 5):
        names = [f"train2014/{number}_{i}.jpg" for i in range(3)]
        for name in names:
            picture(tmp_path / name)
            mask((tmp_path / "annotations" / name).with_suffix(".png"), number + 1)
        lists[number] = names
    for part in ("trn", "val"):
        (tmp_path / "splits" / part).mkdir(parents=True)
        (tmp_path / "splits" / part / "fold1.pkl").write_bytes(pickle.dumps(lists))
    return tmp_path


def test_coco_20i(coco):
    assert list(coco_20i(coco, "train", 1)) == ["class 2", "class 3"]
    tested = coco_20i(coco, "val", 1)
    assert list(tested) == ["class 1", "class 5"]
    assert tested["class 5"][0].value == 6
    episodes = held_out(coco, "coco-20i", "val", 1, 5, 2, 32)
    sample = episodes[0]
    assert sample["query_mask"].mean() == pytest.approx(6 * 7 / (20 * 16), abs=0.05)
    data = FewShotData(str(coco), "coco-20i", fold=1, size=32, num_workers=0, val_episodes=2)
    data.setup()
    assert data.train_set[0]["support"].shape == (2, 3, 32, 32)


def test_a_pickle_that_would_run_code_is_refused(coco):
    class Bad:
        def __reduce__(self):
            return (print, ("ran",))

    (coco / "splits/val/fold1.pkl").write_bytes(pickle.dumps(Bad()))
    with pytest.raises(PolyditError, match="refused, no list of pictures by class"):
        coco_20i(coco, "val", 1)


def test_pascal_5i_leaves_out_what_does_not_count(tmp_path):
    for i in range(2):
        picture(tmp_path / f"JPEGImages/p{i}.jpg")
        mask(tmp_path / f"SegmentationClassAug/p{i}.png", 3)
    (tmp_path / "splits/val").mkdir(parents=True)
    (tmp_path / "splits/val/fold0.txt").write_text("p0__03\np1__03\np0__11\np1__11\n")
    assert list(pascal_5i(tmp_path, "val", 0)) == ["class 3"]
    sample = held_out(tmp_path, "pascal-5i", "val", 0, 1, 1, 40)[0]
    assert 0 < (1 - sample["counted"]).sum() < 10
    assert sample["query_mask"].sum() > 0
    (tmp_path / "splits/val/fold0.txt").write_text("nonsense\n")
    with pytest.raises(PolyditError, match="no line of the form"):
        pascal_5i(tmp_path, "val", 0)


def test_fss_1000_asks_every_picture_once(tmp_path):
    for name in ("apple", "bell"):
        for i in range(1, 4):
            picture(tmp_path / f"data/{name}/{i}.jpg")
            mask(tmp_path / f"data/{name}/{i}.png", 255)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/test.txt").write_text("apple\nbell\n")
    assert [len(found) for found in fss_1000(tmp_path, "test", 0).values()] == [3, 3]
    episodes = held_out(tmp_path, "fss-1000", "test", 0, 1000, 2, 24)
    assert isinstance(episodes, EveryPicture)
    assert len(episodes) == 6
    assert [episodes.draw(i).label for i in range(6)] == [0, 0, 0, 1, 1, 1]
    with pytest.raises(PolyditError, match="too few for a query and 3 supports"):
        held_out(tmp_path, "fss-1000", "test", 0, 1000, 3, 24).draw(0)


def test_what_cannot_be_used_is_one_line(tmp_path, coco):
    with pytest.raises(PolyditError, match="no such folder"):
        episodes_of(tmp_path / "nowhere", "coco-20i", "val")
    with pytest.raises(PolyditError, match="is unknown"):
        episodes_of(tmp_path, "cocoa", "val")
    with pytest.raises(PolyditError, match=r"no such file; --data\.path"):
        episodes_of(tmp_path, "fss-1000", "val")
    for bad in ({"fold": 4}, {"shots": 0}, {"layout": "coco-20i", "sizes": {32: 1.0}}):
        with pytest.raises(PolyditError):
            FewShotData(**bad)
    for file in (coco / "annotations/train2014").glob("1_*.png"):
        mask(file, 2, (9, 9))
    source = episodes_of(coco, "coco-20i", "val", 1)
    with pytest.raises(PolyditError, match="is not the size of"):
        source.episode(np.random.default_rng(0), 0, 1, 16)
