"""Pictures in shards: packed whole, read by number, shared by processes, resumed, and half-copied."""

from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from polydit.core.cli import main
from polydit.core.data import streaming
from polydit.core.data.images import read_image
from polydit.core.data.streaming import ShardedPictures, build_shards, is_sharded_folder
from polydit.core.errors import PolyditError
from polydit.core.training.resume import ResumableSampler, resumable_loader

COUNT = 20


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "litdata", None)
    with pytest.raises(
        PolyditError, match=r"litdata, which is not installed; pip install 'polydit\[streaming\]'"
    ):
        build_shards(tmp_path, tmp_path / "out")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Twenty noise pictures, one in a folder of its own, two with captions; one damaged."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    (folder / "inner").mkdir()
    for number in range(COUNT):
        path = folder / ("inner" if number == 3 else "") / f"{number:02d}.png"
        Image.fromarray(rng.integers(0, 255, (160 + number, 160, 3), dtype=np.uint8)).save(path)
    (folder / "00.txt").write_text("noise\n")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture(scope="module")
def shards(pictures, tmp_path_factory) -> Path:
    pytest.importorskip("litdata", reason="needs polydit[streaming]")
    return build_shards(pictures, tmp_path_factory.mktemp("packed") / "shards", shard_mb=1)


@pytest.fixture
def copied(shards, tmp_path) -> Path:
    import shutil

    return shutil.copytree(shards, tmp_path / "copy")


def test_command_packs_a_folder(pictures, tmp_path, capsys):
    pytest.importorskip("litdata", reason="needs polydit[streaming]")
    words = ["shards", "build", "--input", str(pictures), "--output", str(tmp_path / "out")]
    assert main([*words, "--min-side", "165", "--shard-mb", "1"]) == 2, "none is as wide"
    assert "none of 21 pictures can be packed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main([*words, "--shard-mb", "1"]) == 0
    said = capsys.readouterr()
    assert "20 pictures in 2 shards, 1 left out" in said.err
    assert "skipped " in said.err
    assert said.out.strip() == str(tmp_path / "out")
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_pictures_come_back_as_they_were(shards, pictures):
    data = ShardedPictures(shards)
    assert len(data) == COUNT
    assert len(data.starts) == 3
    assert is_sharded_folder(shards)
    assert not is_sharded_folder(pictures)
    files = sorted(path for path in pictures.rglob("*.png") if path.name != "broken.png")
    by_name = {Path(path).relative_to(pictures).as_posix(): read_image(path)[0] for path in files}
    for number in range(COUNT):
        sample = data[number]
        name = Path(sample["name"]).relative_to(shards).as_posix()
        assert np.array_equal(sample["picture"], by_name.pop(name))
        assert sample["caption"] == ("noise" if name == "00.png" else "")
    assert not by_name
    assert data[COUNT + 2]["name"] == data[2]["name"]


def test_order_stays_within_a_window_of_shards(shards):
    data = ShardedPictures(shards)
    order = data.order(0, 0, window=1)
    assert sorted(order) == list(range(COUNT))
    shard = np.searchsorted(data.starts, order, side="right")
    assert (np.diff(shard) != 0).sum() == 1, "one shard after the other"
    assert not np.array_equal(order, data.order(0, 1, window=1))
    assert not np.array_equal(order, np.sort(order))
    assert np.array_equal(order, data.order(0, 0, window=1))


def trainer(seen: int = 0, world: int = 1, rank: int = 0) -> SimpleNamespace:
    module = SimpleNamespace(samples_seen=seen)
    return SimpleNamespace(
        world_size=world, global_rank=rank, limit_train_batches=1.0, lightning_module=module
    )


def names(data: ShardedPictures, run: SimpleNamespace, workers: int = 0, batch: int = 2) -> list[str]:
    order = partial(data.order, 7)
    loader = resumable_loader(
        data,
        run,
        batch,
        order=order,
        num_workers=workers,
        collate_fn=lambda items: [i["name"] for i in items],
    )
    return [name for batch in loader for name in batch]


def test_two_processes_see_disjoint_samples(shards):
    data = ShardedPictures(shards)
    first, second = (names(data, trainer(world=2, rank=rank)) for rank in (0, 1))
    assert len(first) == len(second) == COUNT // 2
    assert not set(first) & set(second)
    assert len({*first, *second}) == COUNT
    one = names(data, trainer(), batch=4)
    assert [one[0::2], one[1::2]] == [first, second]


def test_a_resumed_run_goes_on_with_the_next_sample(shards):
    data = ShardedPictures(shards)
    straight = names(data, trainer(), workers=2)
    assert names(data, trainer(seen=6), workers=0) == straight[6:]
    assert names(data, trainer(seen=COUNT)) != straight
    assert sorted(names(data, trainer(seen=COUNT), workers=1)) == sorted(straight)


def test_numbers_beyond_the_end_fill_up_the_last_round(shards):
    data = ShardedPictures(shards)
    shares = [
        list(ResumableSampler(data, trainer(world=3, rank=rank), 1, order=partial(data.order, 0)))
        for rank in range(3)
    ]
    assert [len(share) for share in shares] == [7, 7, 7]
    assert {number for share in shares for number in share} == set(range(COUNT))


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_are_streamed_from_an_address(shards, tmp_path, workers):
    """litdata's `local:` stands for an object store: shards are fetched into a cache when they are needed."""
    data = ShardedPictures(f"local:{shards}", cache=tmp_path / "cache")
    assert len(data) == COUNT
    here = ShardedPictures(shards)
    order = [int(n) for n in here.order(0, 0)]
    loader = DataLoader(data, None, sampler=order, num_workers=workers)
    for number, sample in zip(order, loader, strict=True):
        assert np.array_equal(sample["picture"], here[number]["picture"])
    assert len(list(tmp_path.rglob("chunk-*.bin"))) == 2


def test_reader_travels_to_another_process(shards):
    data = ShardedPictures(shards)
    data[0]
    again = pickle.loads(pickle.dumps(data))
    assert again[5]["name"] == data[5]["name"]


# -- what goes wrong -----------------------------------------------------------------------------------------


def test_half_copied_shards_are_named(copied):
    paths = sorted(copied.glob("chunk-*.bin"))
    paths[1].write_bytes(paths[1].read_bytes()[:1000])
    with pytest.raises(
        PolyditError, match=r"chunk-0-1\.bin has 1,000 of .* bytes \(1 of 2 shards are incomplete"
    ):
        ShardedPictures(copied)
    paths[0].unlink()
    with pytest.raises(PolyditError, match=r"chunk-0-0\.bin is missing \(2 of 2 shards are incomplete\)"):
        ShardedPictures(copied)
    (copied / "index.json").unlink()
    with pytest.raises(
        PolyditError, match=r"has no index\.json; it is no folder of shards or was copied in part"
    ):
        ShardedPictures(copied)


def test_an_index_that_was_cut_or_is_of_others_is_named(copied):
    text = (copied / "index.json").read_text()
    (copied / "index.json").write_text(text[: len(text) // 2])
    with pytest.raises(PolyditError, match=r"index\.json: cannot be read"):
        ShardedPictures(copied)
    index = json.loads(text)
    spec = json.loads(index["config"]["data_spec"])
    spec[1]["context"] = '["tokens"]'
    index["config"]["data_spec"] = json.dumps(spec)
    (copied / "index.json").write_text(json.dumps(index))
    with pytest.raises(PolyditError, match="hold no pictures of ours; make them with `polydit shards build`"):
        ShardedPictures(copied)


def test_an_address_without_shards_is_named(tmp_path):
    pytest.importorskip("litdata", reason="needs polydit[streaming]")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PolyditError, match=r"no shards can be read from there .* check the address"):
        ShardedPictures(f"local:{tmp_path}/empty", cache=tmp_path / "cache")


def test_a_full_disk_leaves_nothing(pictures, tmp_path, monkeypatch):
    pytest.importorskip("litdata", reason="needs polydit[streaming]")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(PolyditError, match="out: cannot be written"):
            build_shards(pictures, tmp_path / "out", shard_mb=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_nothing_asks_the_registry_for_versions(shards, monkeypatch):
    import requests

    def get(*args, **kwargs):
        raise AssertionError("asked the network")

    monkeypatch.setattr(requests, "get", get)
    litdata = streaming._litdata()
    assert litdata.helpers._get_newer_version("0.0.1") is None
    assert len(ShardedPictures(shards)) == COUNT
