"""Which pictures belong to a split, in a corpus or in any folder; and the guard before reserved pictures."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

from ..errors import PolyditError
from .corpus.manifest import SPLITS, load_manifest
from .images import list_images

__all__ = ["is_reserved_path", "pictures_of"]

_VALIDATION_PERCENT = 10


def is_reserved_path(path: Path) -> bool:
    """Whether a file lies in the ``reserved`` folder of a corpus."""
    path = path.absolute()
    return any(
        parent.name == "reserved" and (parent.parent / "manifest.jsonl").is_file() for parent in path.parents
    )


def pictures_of(
    root: str | Path | Sequence[str | Path],
    split: str | None = None,
    *,
    tag: str | None = None,
    kind: str = "photos",
    allow_reserved: bool = False,
) -> list[tuple[Path, tuple[int, int] | None]]:
    """List the pictures of a split.

    Args:
        root: a corpus (its manifest decides), a folder, a pattern, or a list of files. In a folder, ``train`` and
            ``val`` are its subfolders of these names if it has them; otherwise a tenth of the files, chosen by their
            names and at least one, is ``val``.
        split: ``train``, ``val``, ``reserved``, or None for everything that is not reserved.
        tag: only pictures of a corpus with this tag.
        kind: ``photos`` or ``cutouts`` of a corpus.
        allow_reserved: list reserved pictures; without it they are refused or left out.

    Returns:
        each file with its (width, height), or with None where only the file knows.

    Raises:
        PolyditError: nothing found, unknown split, or reserved pictures asked for without `allow_reserved`.
    """
    if split is not None and split not in SPLITS:
        raise PolyditError(f"split '{split}': unknown; choose from {', '.join(SPLITS)}")
    if split == "reserved" and not allow_reserved:
        raise PolyditError("split 'reserved': these pictures are for evaluation only; use 'train' or 'val'")
    if isinstance(root, str | Path) and (Path(root) / "manifest.jsonl").is_file():
        return _of_corpus(Path(root), split, tag, kind)
    if tag is not None:
        raise PolyditError(f"{root}: tags need a corpus with a manifest.jsonl; leave the tag out")
    if split == "reserved":
        raise PolyditError(f"{root}: has no manifest.jsonl, so no reserved pictures; leave the split out")

    if isinstance(root, str | Path):
        folder = Path(root)
        has_folders = (folder / "train").is_dir() and (folder / "val").is_dir()
        if split is not None and has_folders:
            return [(path, None) for path in _unreserved(list_images(folder / split), root, allow_reserved)]
        paths = list_images(root)
    else:
        paths = [path for item in root for path in list_images(item)]
    paths = _unreserved(paths, root, allow_reserved)
    return [(path, None) for path in (paths if split is None else _share(paths, split))]


def _of_corpus(
    root: Path, split: str | None, tag: str | None, kind: str
) -> list[tuple[Path, tuple[int, int] | None]]:
    wanted = ("train", "val") if split is None else (split,)
    records = [
        r for r in load_manifest(root) if r.kind == kind and r.split in wanted and tag in (None, r.tag)
    ]
    if not records:
        what = f"{kind} in the split '{split}'" if split else kind
        raise PolyditError(
            f"{root}: the corpus has no {what}; build it with 'polydit corpus build --output {root}'"
        )
    return [(root / r.file, (r.width, r.height)) for r in sorted(records, key=lambda r: r.file)]


def _unreserved(paths: list[Path], root: object, allow_reserved: bool) -> list[Path]:
    if allow_reserved:
        return paths
    kept = [path for path in paths if not is_reserved_path(path)]
    if not kept:
        raise PolyditError(f"{root}: these pictures are reserved for evaluation; give others")
    if len(kept) < len(paths):
        warnings.warn(
            f"{root}: {len(paths) - len(kept)} pictures reserved for evaluation were left out", stacklevel=4
        )
    return kept


def _share(paths: list[Path], split: str) -> list[Path]:
    ranked = sorted(paths, key=lambda path: hashlib.sha256(path.name.encode()).digest())
    if len(ranked) < 2:
        return paths  # one picture is both
    count = max(1, len(ranked) * _VALIDATION_PERCENT // 100)
    return sorted(ranked[:count] if split == "val" else ranked[count:])
