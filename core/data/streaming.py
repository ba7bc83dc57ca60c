"""Pictures packed into shards, for sets of many small files and for object stores; read through litdata.

``polydit shards build`` packs a folder. A sample is found by its number, so the order of training, its place after a
resume and the share of each process follow from numbers as for any other data set.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..errors import PolyditError
from .images import MAX_PIXELS, image_size, read_image, to_uint8
from .picture_lists import pictures_of

__all__ = ["ShardedPictures", "build_shards", "is_sharded_folder"]

INDEX = "index.json"
FIELDS = ("picture", "name", "caption", "width", "height")


def build_shards(
    root: str | Path,
    output: str | Path,
    *,
    split: str | None = None,
    min_side: int = 1,
    shard_mb: int = 64,
    overwrite: bool = False,
) -> Path:
    """Pack the pictures of a folder or corpus, as the files they are, with the captions beside them.

    Args:
        root: See `pictures_of`.
        output: Folder of the shards; it appears under its name when it is complete.
        split: Of a corpus or folder.
        min_side: Smaller pictures are left out, pixels.
        shard_mb: Size of a shard, megabytes.
        overwrite: Replace shards that are there.

    Returns:
        The folder.

    Raises:
        PolyditError: no pictures, the output exists, or the disk is full.
    """
    litdata = _litdata()
    output = Path(output).expanduser()
    if output.exists() and not overwrite:
        raise PolyditError(f"{output}: exists already; choose another name or pass --overwrite")
    temporary = output.with_name(f".{output.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    count = refused = 0
    listed = pictures_of(root, split)
    try:
        shards = litdata.streaming.Cache(str(temporary), chunk_bytes=shard_mb * 2**20)
        for path, _ in listed:
            try:
                width, height = image_size(path)
            except PolyditError as error:
                refused += 1
                sys.stderr.write(f"skipped {error}\n")
                continue
            if min(width, height) < min_side:
                refused += 1
                continue
            caption = path.with_suffix(".txt")
            shards[count] = {
                "picture": path.read_bytes(),
                "name": _name(path, root),
                "caption": caption.read_text(encoding="utf-8").strip() if caption.is_file() else "",
                "width": width,
                "height": height,
            }
            count += 1
        if not count:
            raise PolyditError(
                f"{root}: none of {len(listed)} pictures can be packed; give others or a lower --min-side"
            )
        shards.done()
        shards.merge(1)
        if output.exists():
            shutil.rmtree(output)
        os.replace(temporary, output)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise PolyditError(
            f"{output}: cannot be written ({'the disk is full' if full else error.strerror or error}); make room and "
            "build again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    number = len(json.loads((output / INDEX).read_text())["chunks"])
    sys.stderr.write(f"{output}: {count} pictures in {number} shards, {refused} left out\n")
    return output


def is_sharded_folder(root: str | Path) -> bool:
    """Whether this is a folder of shards, or an address of an object store."""
    return _is_remote(root) or (Path(root).expanduser() / INDEX).is_file()


class ShardedPictures(Dataset[dict[str, Any]]):
    """The pictures of a folder of shards, by their number.

    Args:
        root: A folder made by `build_shards`, or the address of a copy of it, such as ``s3://bucket/folder``.
        cache: Where shards from an address are kept; None is litdata's own place.
        cache_gb: How much of them is kept, gigabytes.
        max_pixels: Larger pictures are refused.

    Each sample is a dict with ``picture`` (H, W, 3) uint8, ``name`` and ``caption``. Numbers go on counting after the
    last picture, for samplers that count through the epochs.

    Raises:
        PolyditError: shards are missing or half-copied, or were made by something else; while reading: a picture is
            damaged.
    """

    def __init__(
        self,
        root: str | Path,
        cache: str | Path | None = None,
        cache_gb: int = 100,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.root, self.cache, self.cache_gb, self.max_pixels = str(root), cache, cache_gb, max_pixels
        self._reader: tuple[int, Any] | None = None
        if _is_remote(root):
            sizes = [last - first for first, last in self._open().region_of_interest]
        else:
            sizes = [chunk["chunk_size"] for chunk in _verified(Path(root).expanduser())]
        self.starts = np.concatenate([[0], np.cumsum(sizes)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, number: int) -> dict[str, Any]:
        item = self._open()[int(number) % len(self)]
        name = f"{self.root}/{item['name']}"
        pixels = read_image(name, max_pixels=self.max_pixels, data=item["picture"])[0]
        return {"picture": np.array(to_uint8(pixels)), "name": name, "caption": item["caption"]}

    def order(self, seed: int, epoch: int, window: int = 8) -> np.ndarray:
        """Numbers of an epoch in a random order that stays within a few shards at a time.

        Args:
            seed: Of the order.
            epoch: Another one for each.
            window: Shards among which samples are mixed.
        """
        rng = np.random.default_rng([seed, epoch])
        shards = rng.permutation(len(self.starts) - 1)
        parts = []
        for first in range(0, len(shards), window):
            part = np.concatenate(
                [np.arange(self.starts[s], self.starts[s + 1]) for s in shards[first : first + window]]
            )
            parts.append(rng.permutation(part))
        return np.concatenate(parts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def _open(self) -> Any:
        """The reader of this process: one that was forked must not use the threads of another."""
        if self._reader is None or self._reader[0] != os.getpid():
            litdata = _litdata()
            options = {} if self.cache is None else {"cache_dir": str(self.cache)}
            source = self.root if _is_remote(self.root) else str(Path(self.root).expanduser())
            try:
                reader = litdata.StreamingDataset(source, max_cache_size=f"{self.cache_gb}GB", **options)
            except Exception as error:  # each object store has its own kinds
                line = " ".join(str(error).split()) or type(error).__name__
                raise PolyditError(
                    f"{self.root}: no shards can be read from there ({line[:200]}); check the address and the access"
                ) from error
            self._reader = (os.getpid(), reader)
        return self._reader[1]


def _verified(root: Path) -> list[dict[str, Any]]:
    """What the index says of each shard, if all are there as they were written; litdata waits for missing ones."""
    try:
        index = json.loads((root / INDEX).read_text(encoding="utf-8"))
        chunks, made_of = index["chunks"], json.loads(index["config"]["data_spec"])[1]["context"]
    except FileNotFoundError as error:
        raise PolyditError(
            f"{root}: has no {INDEX}; it is no folder of shards or was copied in part, copy it again"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise PolyditError(f"{root / INDEX}: cannot be read ({error}); copy the folder again") from error
    if json.loads(made_of) != list(FIELDS):
        raise PolyditError(
            f"{root}: these shards hold no pictures of ours; make them with `polydit shards build`"
        )
    problems = []
    for chunk in chunks:
        path = root / chunk["filename"]
        size = path.stat().st_size if path.is_file() else None
        if size != chunk["chunk_bytes"]:
            state = "is missing" if size is None else f"has {size:,} of {chunk['chunk_bytes']:,} bytes"
            problems.append(f"{path} {state}")
    if problems:
        raise PolyditError(
            f"{problems[0]} ({len(problems)} of {len(chunks)} shards are incomplete); copy the folder again"
        )
    return chunks


def _is_remote(root: str | Path) -> bool:
    return isinstance(root, str) and ("://" in root or root.startswith("local:"))


def _name(path: Path, root: str | Path) -> str:
    folder = Path(root).expanduser()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _litdata() -> Any:
    try:
        import litdata
        import litdata.helpers
        import litdata.streaming
    except ModuleNotFoundError as error:
        raise PolyditError(
            "shards need litdata, which is not installed; pip install 'polydit[streaming]'"
        ) from error
    # It asks the package registry for a newer version of itself, and waits half a minute where there is no network.
    litdata.helpers._get_newer_version = lambda version: None
    return litdata
