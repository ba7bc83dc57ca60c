"""Tensors kept on disk: found by content and settings, whole or not at all, from any number of processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import time
from pathlib import Path

import pytest
import torch

from polydit.core.autoencoders import PixelSpace
from polydit.core.data.cache import CachedTensors, TensorCache, fill, fingerprint
from polydit.core.errors import PolyditError

SETTINGS = {"size": 256, "autoencoder": "abc"}


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "a.bin"
    path.write_bytes(b"first")
    return path


def never() -> dict:
    raise AssertionError("computed although it is there")


def made(value: float) -> dict:
    return {"latents": torch.full((2, 3), value, dtype=torch.bfloat16)}


def test_computed_once_and_read_as_written(tmp_path, picture):
    cache = TensorCache(tmp_path / "cache", SETTINGS)
    first = cache.get(picture, lambda: made(1.0))
    again = TensorCache(tmp_path / "cache", SETTINGS).get(picture, never)
    assert torch.equal(first["latents"], again["latents"])
    assert again["latents"].dtype == torch.bfloat16
    assert len(cache) == 1


def test_a_changed_file_is_computed_again_and_a_renamed_one_is_not(tmp_path, picture):
    cache = TensorCache(tmp_path / "cache", SETTINGS)
    cache.get(picture, lambda: made(1.0))
    renamed = picture.rename(tmp_path / "b.bin")
    assert cache.get(renamed, never)["latents"][0, 0] == 1
    renamed.write_bytes(b"other")
    os.utime(renamed, (1, 1))
    assert cache.get(renamed, lambda: made(2.0))["latents"][0, 0] == 2


def test_other_settings_find_nothing_and_are_named(tmp_path, picture):
    TensorCache(tmp_path / "cache", SETTINGS).get(picture, lambda: made(1.0))
    other = TensorCache(tmp_path / "cache", {"size": 512, "autoencoder": "abc", "flip": True})
    with pytest.raises(
        PolyditError, match=r"other settings \(flip none, now True, size 256, now 512\)\. Compute"
    ):
        other.get(picture)
    assert other.get(picture, lambda: made(2.0))["latents"][0, 0] == 2
    assert TensorCache(tmp_path / "cache", SETTINGS).get(picture)["latents"][0, 0] == 1


def test_a_missing_entry_names_the_file(tmp_path, picture):
    with pytest.raises(
        PolyditError, match=r"cache: has nothing for .*a\.bin, or it has changed since\. Compute"
    ):
        TensorCache(tmp_path / "cache", SETTINGS).get(picture)
    with pytest.raises(PolyditError, match=r"gone\.bin: cannot be read"):
        TensorCache(tmp_path / "cache", SETTINGS).get(tmp_path / "gone.bin", lambda: made(1.0))


def test_texts_and_pairs_have_keys_of_their_own(tmp_path, picture):
    cache = TensorCache(tmp_path, SETTINGS)
    keys = [
        cache.key("first"),
        cache.key(b"first"),
        cache.key(picture),
        cache.key([picture, "a cat"]),
        cache.key([picture, "a dog"]),
        cache.key(["a cat", picture]),
    ]
    assert keys[1] == keys[2], "a file is its bytes"
    assert len(set(keys)) == 5


@pytest.mark.parametrize("damage", [b"", b"no tensors", None])
def test_a_half_written_entry_is_computed_again(tmp_path, picture, damage, capsys):
    cache = TensorCache(tmp_path / "cache", SETTINGS)
    cache.get(picture, lambda: made(1.0))
    path = cache.path(cache.key(picture))
    path.write_bytes(path.read_bytes()[:-3] if damage is None else damage)
    assert cache.get(picture, lambda: made(2.0))["latents"][0, 0] == 2
    assert "is damaged" in capsys.readouterr().err
    assert cache.get(picture, never)["latents"][0, 0] == 2


def test_a_full_disk_says_what_to_do_and_leaves_nothing(tmp_path, picture):
    cache = TensorCache(tmp_path / "cache", SETTINGS)
    cache.get("settings are written", lambda: made(0.0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(PolyditError, match="cache: the cache cannot be written"):
            cache.get(picture, lambda: {"latents": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(cache) == 1
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_leftovers_of_killed_processes_are_swept(tmp_path):
    cache = TensorCache(tmp_path, SETTINGS)
    cache.get("a", lambda: made(1.0))
    old, new = (cache.folder / "ab" / f".{age}.partial" for age in ("old", "new"))
    old.parent.mkdir(exist_ok=True)
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    cache.sweep()
    assert not old.exists()
    assert new.exists(), "somebody may still be writing it"


def writer(folder: Path, number: int) -> None:
    cache = TensorCache(folder, SETTINGS)
    for index in range(200):
        cache.get(str(index % 20), lambda index=index: {"latents": torch.full((500,), float(index % 20))})


def test_two_processes_write_one_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=writer, args=(tmp_path, n)) for n in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    cache = TensorCache(tmp_path, SETTINGS)
    assert len(cache) == 20
    for index in range(20):
        assert (cache.get(str(index), never)["latents"] == index).all()
    assert json.loads((cache.folder / "settings.json").read_text()) == SETTINGS
    assert not list(tmp_path.rglob("*.partial"))


# -- filling and reading -------------------------------------------------------------------------------------


def test_fill_computes_what_is_missing_by_groups(tmp_path, capsys):
    cache, calls = TensorCache(tmp_path, SETTINGS), []

    def compute(numbers: list[int]) -> list[dict]:
        calls.append(numbers)
        assert not torch.is_grad_enabled()
        return [{"latents": torch.tensor([float(n)])} for n in numbers]

    texts = [f"text {n}" for n in range(7)]
    cache.get(texts[2], lambda: {"latents": torch.tensor([2.0])})
    assert fill(cache, texts, compute, batch_size=2, group=lambda n: n % 2, title="texts") == 6
    assert sorted(map(tuple, calls)) == [(0, 4), (1, 3), (5,), (6,)]
    assert "texts: 6 computed, 1 were there" in capsys.readouterr().err
    assert fill(cache, texts, never) == 0
    data = CachedTensors(cache, texts, names=texts)
    assert [float(data[n]["latents"]) for n in range(7)] == [0, 1, 2, 3, 4, 5, 6]
    assert data[3]["name"] == "text 3"


def test_fill_is_shared_by_processes(tmp_path):
    cache, texts = TensorCache(tmp_path, SETTINGS), [str(n) for n in range(5)]
    compute = lambda numbers: [{"latents": torch.tensor([float(n)])} for n in numbers]  # noqa: E731
    assert [fill(cache, texts, compute, rank=rank, world=2) for rank in (0, 1)] == [3, 2]
    assert len(cache) == 5


def test_fill_names_a_cache_made_with_other_settings(tmp_path, capsys):
    compute = lambda numbers: [made(0.0) for _ in numbers]  # noqa: E731
    fill(TensorCache(tmp_path, SETTINGS), ["a"], compute)
    fill(TensorCache(tmp_path, {**SETTINGS, "size": 128}), ["a"], compute, title="latents")
    assert (
        "holds latents made with other settings (size 256, now 128); computing anew"
        in capsys.readouterr().err
    )


def test_fingerprint_changes_with_any_weight():
    torch.manual_seed(0)
    first = torch.nn.Linear(3, 3)
    before = fingerprint(first)
    assert fingerprint(first) == before
    with torch.no_grad():
        first.weight[2, 1] += 1e-6
    assert fingerprint(first) != before
    assert fingerprint(first.bfloat16()) != before
    assert fingerprint(PixelSpace(3)) != fingerprint(torch.nn.Identity())
