"""Tensors that are computed once and kept on disk: latents of pictures, embeddings of texts.

An entry is found by its content (the bytes of the files and texts that it was made from) and by the settings it was
made with. When either changes, the entry is not found and is computed anew; nothing stale is ever read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..errors import PolyditError
from ..tensor_files import save_tensors

__all__ = ["CachedTensors", "TensorCache", "fill", "fingerprint"]

Content = Path | str | bytes
"""A file (its bytes count, not its name), or a text."""
STALE_SECONDS = 3600
"""A temporary file this old was left by a process that was killed."""


class TensorCache:
    """A folder of safetensors files: ``<settings>/<xx>/<content>.safetensors``, with the settings as ``settings.json``.

    Any number of processes may read and write it: an entry appears under its name when it is complete.

    Args:
        folder: Where the caches of all settings lie.
        settings: What the entries depend on besides their content, as plain values: the size of the pictures, the
            `fingerprint` of the network that computes. A key that begins with ``_`` is only told, not compared.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.root = Path(folder).expanduser()
        self.settings = json.loads(json.dumps(dict(settings), sort_keys=True))
        compared = {key: value for key, value in self.settings.items() if not key.startswith("_")}
        digest = hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()
        self.folder = self.root / digest[:16]
        self._digests: dict[tuple[str, int, int], bytes] = {}

    def __len__(self) -> int:
        """Entries made with these settings."""
        return sum(1 for _ in self.folder.glob("??/*.safetensors"))

    # -- names -----------------------------------------------------------------------------------------------

    def key(self, contents: Content | Sequence[Content]) -> str:
        """The name of what is made from these files and texts, in this order.

        Raises:
            PolyditError: a file cannot be read.
        """
        parts = [contents] if isinstance(contents, Path | str | bytes) else contents
        digest = hashlib.sha256()
        for part in parts:
            digest.update(self._digest(part))
        return digest.hexdigest()[:40]

    def _digest(self, content: Content) -> bytes:
        if isinstance(content, str):
            return hashlib.sha256(b"text" + content.encode()).digest()
        if isinstance(content, bytes):
            return hashlib.sha256(b"file" + content).digest()
        try:
            stat = content.stat()
            known = (str(content), stat.st_size, stat.st_mtime_ns)
            if (
                known not in self._digests
            ):  # read once in a run; a file that is changed later shows in its time
                self._digests[known] = hashlib.sha256(b"file" + content.read_bytes()).digest()
        except OSError as error:
            raise PolyditError(f"{content}: cannot be read ({error.strerror}); check the file") from error
        return self._digests[known]

    def path(self, key: str) -> Path:
        """The file of an entry, whether or not it exists."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        return self.path(key).is_file()

    # -- entries ---------------------------------------------------------------------------------------------

    def read(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of an entry; None if there is no whole one (a damaged one is removed)."""
        path = self.path(key)
        try:
            return load_file(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            sys.stderr.write(f"{path}: is damaged ({error}); it will be computed again\n")
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a name.

        Raises:
            PolyditError: the disk is full or the folder cannot be written.
        """
        path = self.path(key)
        temporary = path.with_name(f".{key}.{os.getpid()}.{secrets.token_hex(4)}.partial")
        try:
            self._describe()
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(tensors, temporary)
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space" in str(error)
            raise PolyditError(
                f"{self.root}: the cache cannot be written ({'the disk is full' if full else error}); make room, "
                "choose another folder, or leave the cache out"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def get(
        self, contents: Content | Sequence[Content], compute: Callable[[], Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor]:
        """The tensors made from these files and texts.

        Args:
            contents: What they are made from.
            compute: Makes them where they are missing.

        Raises:
            PolyditError: they are missing and there is no `compute`; tells the settings of what is there.
        """
        key = self.key(contents)
        found = self.read(key)
        if found is not None:
            return found
        if compute is None:
            what = contents if isinstance(contents, Path) else "an entry"
            others = self.others()
            raise PolyditError(
                f"{self.root}: has nothing for {what}"
                + (f"; it was made with other settings ({others})" if others else ", or it has changed since")
                + ". Compute the cache again"
            )
        made = dict(compute())
        self.write(key, made)
        return made

    # -- settings --------------------------------------------------------------------------------------------

    def others(self) -> str:
        """How the settings of other caches in the folder differ from these: ``size 256, now 512``; empty if none."""
        lines = []
        for file in sorted(self.root.glob("*/settings.json")):
            if file.parent == self.folder:
                continue
            try:
                theirs = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            keys = [key for key in sorted({*theirs, *self.settings}) if not key.startswith("_")]
            different = [key for key in keys if theirs.get(key) != self.settings.get(key)]
            lines.append(
                ", ".join(
                    f"{key} {_short(theirs.get(key))}, now {_short(self.settings.get(key))}"
                    for key in different
                )
            )
        return "; or ".join(lines)

    def _describe(self) -> None:
        file = self.folder / "settings.json"
        if file.is_file():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".settings.{os.getpid()}.{secrets.token_hex(4)}.partial")
        temporary.write_text(json.dumps(self.settings, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(temporary, file)

    def sweep(self) -> None:
        """Remove what killed processes left half-written."""
        for path in self.folder.glob("**/.*.partial"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()


def fingerprint(module: nn.Module) -> str:
    """A name for a network with its weights: any change of a weight gives another one. About a second per gigabyte."""
    digest = hashlib.sha256(type(module).__name__.encode())
    config = getattr(module, "config", None)
    if config is not None:
        digest.update(json.dumps(dict(config), sort_keys=True, default=str).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def fill(
    cache: TensorCache,
    contents: Sequence[Content | Sequence[Content]],
    compute: Callable[[list[int]], Iterable[Mapping[str, Tensor]]],
    *,
    batch_size: int = 8,
    group: Callable[[int], Hashable] = lambda index: None,
    rank: int = 0,
    world: int = 1,
    title: str = "cache",
) -> int:
    """Compute what a cache lacks.

    Args:
        cache: Where the entries go.
        contents: What each entry is made from.
        compute: The tensors of several entries, given their numbers; all of one group.
        batch_size: How many at once.
        group: What can be computed together, such as pictures of one size.
        rank: Number of this process, which takes its share of the entries.
        world: How many processes fill the cache; wait for all of them before reading.
        title: What is computed, for the progress line.

    Returns:
        How many entries this process computed.
    """
    cache.sweep()
    groups: dict[Hashable, list[int]] = {}
    for index in range(rank, len(contents), world):
        if cache.key(contents[index]) not in cache:
            groups.setdefault(group(index), []).append(index)
    missing = sum(map(len, groups.values()))
    if missing and not rank and (others := cache.others()):
        sys.stderr.write(f"{cache.root}: holds {title} made with other settings ({others}); computing anew\n")
    done, told = 0, time.monotonic()
    for members in groups.values():
        for start in range(0, len(members), batch_size):
            batch = members[start : start + batch_size]
            with torch.no_grad():
                for index, tensors in zip(batch, compute(batch), strict=True):
                    cache.write(cache.key(contents[index]), tensors)
            done += len(batch)
            if not rank and time.monotonic() - told > 10:
                told = time.monotonic()
                sys.stderr.write(f"{title}: {done} of {missing} computed\n")
    if missing and not rank:
        sys.stderr.write(
            f"{title}: {done} computed, {len(range(0, len(contents), world)) - missing} were there\n"
        )
    return done


class CachedTensors(Dataset[dict[str, Any]]):
    """Entries of a filled cache as a data set; one entry is in memory at a time.

    Args:
        cache: The cache.
        contents: What each entry is made from.
        names: Of the samples, for messages; None is the name of their first file.

    Raises:
        PolyditError: while reading: an entry is missing, was made with other settings, or its file has changed.
    """

    def __init__(
        self,
        cache: TensorCache,
        contents: Sequence[Content | Sequence[Content]],
        names: Sequence[str] | None = None,
    ) -> None:
        self.cache, self.contents, self.names = cache, contents, names

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        contents = self.contents[index]
        first = contents if isinstance(contents, Path | str | bytes) else contents[0]
        name = self.names[index] if self.names else str(first) if isinstance(first, Path) else str(index)
        return {**self.cache.get(contents), "name": name}


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
