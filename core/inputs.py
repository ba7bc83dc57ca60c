"""What ``--input`` comes to: files, folders and patterns as one list."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import PolyditError

__all__ = ["SUFFIXES", "Inputs", "count_suffixes", "find_inputs"]

SUFFIXES: dict[str, tuple[str, ...]] = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm"),
    "video": (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"),
}
"""Endings of the files that are taken from a folder or a pattern, by kind."""


@dataclass
class Inputs:
    """What ``--input`` came to.

    Attributes:
        files: what is to be done, in order, each once.
        skipped: how many files of a folder or pattern were left out, by suffix.
        clashes: files whose results would have the names of another one's, which is the value.
    """

    files: list[Path]
    skipped: Counter[str] = field(default_factory=Counter)
    clashes: dict[Path, Path] = field(default_factory=dict)


def find_inputs(
    words: Sequence[str],
    kinds: Sequence[str],
    results_of: Callable[[Path], Hashable] = lambda file: None,
    flag: str = "--input",
) -> Inputs:
    """Expand files, folders and patterns.

    A file that is named is taken whatever its suffix; from folders (without their subfolders) and patterns, only
    those of the kinds. Hidden files are left out.

    Args:
        words: from the command line.
        kinds: keys of `SUFFIXES`, or suffixes; ``"frames"`` takes a folder of pictures as one input.
        results_of: tells what a file's results are called beside its stem; files of one stem clash where it is equal.
        flag: the option that the words were given to, for messages.

    Raises:
        PolyditError: a file does not exist, or a folder or pattern gives nothing.
    """
    suffixes = {suffix for kind in kinds for suffix in SUFFIXES.get(kind, (kind,))}
    found: dict[Path, None] = {}  # a set that keeps the order
    skipped: Counter[str] = Counter()
    for word in words:
        path = Path(word).expanduser()
        if path.is_file():
            found[path] = None
            continue
        if path.is_dir():
            matches = sorted(path.iterdir())
            if "frames" in kinds and holds_frames(matches, suffixes):
                found[path] = None
                continue
        elif glob.has_magic(word):
            matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
        else:
            raise PolyditError(f"{flag} {word}: no such file or folder")
        files = [match for match in matches if match.is_file() and not match.name.startswith(".")]
        taken = [file for file in files if file.suffix.lower() in suffixes]
        left = Counter(
            file.suffix.lower() or "no suffix" for file in files if file.suffix.lower() not in suffixes
        )
        if not taken:
            raise PolyditError(_nothing_found(f"{flag} {word}", path, kinds, suffixes, left))
        skipped += left
        found.update(dict.fromkeys(taken))
    owners: dict[tuple[str, Hashable], Path] = {}
    first = {file: owners.setdefault((file.stem, results_of(file)), file) for file in found}
    clashes = {file: owner for file, owner in first.items() if owner != file}
    return Inputs(list(found), skipped, clashes)


def holds_frames(files: Sequence[Path], others: set[str]) -> bool:
    """Whether a folder of these files is a video by frames: there are pictures, and no file of the other kinds."""
    suffixes = {file.suffix.lower() for file in files if file.is_file()}
    return bool(suffixes & set(SUFFIXES["image"])) and not suffixes & others


def _nothing_found(
    given: str, path: Path, kinds: Sequence[str], suffixes: set[str], left: Counter[str]
) -> str:
    what = " or ".join(kinds)
    if path.is_dir():
        inside = f"{sum(left.values())} other files ({count_suffixes(left)})" if left else "no files"
        deeper = any(
            file.suffix.lower() in suffixes
            for folder in path.iterdir()
            if folder.is_dir()
            for file in folder.iterdir()
        )
        hint = f"; its subfolders hold some, give '{str(path).rstrip('/')}/*/*'" if deeper else ""
        return f"{given}: no {what} in this folder, {inside}{hint}; read are {', '.join(sorted(suffixes))}"
    if left:
        return f"{given}: no {what} matches, {count_suffixes(left)}; read are {', '.join(sorted(suffixes))}"
    return f"{given}: the pattern matches no file; quote it, and look at the folder"


def count_suffixes(counter: Counter[str]) -> str:
    """``"3 .txt, 1 .pdf"``."""
    return ", ".join(f"{number} {suffix}" for suffix, number in counter.most_common(5))
